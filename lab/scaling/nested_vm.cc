#include "nested_vm.h"

#include <fmt/format.h>
#include <sys/ioctl.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "continuo/abi/cpuid.h"
#include "continuo/abi/msr.h"
#include "continuo/kvm/counter.h"

extern "C" {
extern const char continuo_nested_l1[];
extern const char continuo_nested_l1_exit[];
extern const char continuo_nested_l2[];
extern const char continuo_nested_end[];
}

namespace continuo::scaling {

namespace {

using kvm::Result;
using kvm::Status;
using state::ErrorCode;

constexpr int kRunLimitMs = 2000;
constexpr std::uint64_t kMemoryBytes = 0x40000;
constexpr std::uint64_t kPml4 = 0x1000, kPdpt = 0x2000, kDirectory = 0x3000;
constexpr std::uint64_t kPvclock = 0x6000, kBlock = 0x8000, kFields = 0x9000;
constexpr std::uint64_t kVmxonRegion = 0xa000, kVmcsRegion = 0xb000, kCode = 0x10000;
constexpr std::uint64_t kL2Stack = 0x1e000, kL1Stack = 0x1f000;
constexpr std::uint16_t kL1Port = 0x91, kL2Port = 0x92;
constexpr std::uint64_t kExitVmcall = 18;

/// What the payload finds at %rdi; the offsets are those of nested_payload.S.
struct Block {
    std::uint64_t vmxon_region, vmcs_region, field_count, fields;
    std::uint64_t l2_tsc, l1_tsc, exit_reason, vmx_error;
};
static_assert(sizeof(Block) == 64 && offsetof(Block, fields) == 24 &&
              offsetof(Block, l2_tsc) == 32 && offsetof(Block, l1_tsc) == 40 &&
              offsetof(Block, exit_reason) == 48 && offsetof(Block, vmx_error) == 56);

/// A VMCS field as the payload writes it.
struct Field {
    std::uint64_t encoding, value;
};

// Control registers, EFER (Intel SDM 3A 2.5, 2.2.1).
constexpr std::uint64_t kCr0 = 0x80000021;  // PG, NE, PE: what VMX wants at least
constexpr std::uint64_t kCr4Pae = 0x20, kCr4Vmxe = 0x2000;
constexpr std::uint64_t kEferLongMode = 0x500;
constexpr std::uint32_t kFeatureControl = 0x3a;  // IA32_FEATURE_CONTROL: locked, VMXON allowed
constexpr std::uint64_t kVmxAllowed = 5;

// Capability MSRs of VMX (Intel SDM 3D appendix A): low half must be 1, high half may be 1.
constexpr std::uint32_t kVmxBasic = 0x480, kVmxSecondary = 0x48b, kVmxPin = 0x48d;
constexpr std::uint32_t kVmxPrimary = 0x48e, kVmxExit = 0x48f, kVmxEntry = 0x490;
constexpr std::uint32_t kUseTscOffset = 1U << 3, kUseSecondary = 1U << 31;
constexpr std::uint32_t kUseTscScaling = 1U << 25, kLongModeHost = 1U << 9,
                        kLongModeGuest = 1U << 9;

// KVM_GET_NESTED_STATE and KVM_SET_NESTED_STATE: a header of 128 bytes, then the VMCS. C++ gives
// the kernel's struct another size (its flexible array), and with it wrong ioctl numbers.
constexpr unsigned long kGetNestedState = 0xc080aebe, kSetNestedState = 0x4080aebf;
constexpr int kCapNestedState = 157;
constexpr std::size_t kNestedHeaderBytes = 128;
constexpr std::size_t kNestedSizeAt = 4;

std::uint64_t place_of(const char* symbol) {
    return kCode + static_cast<std::uint64_t>(symbol - continuo_nested_l1);
}

kvm_segment segment(std::uint16_t selector, std::uint8_t type, bool code) {
    kvm_segment out{};
    out.selector = selector;
    out.type = type;
    out.present = 1;
    out.s = 1;
    out.g = 1;
    out.l = code ? 1 : 0;
    out.db = code ? 0 : 1;
    out.limit = 0xffffffff;
    return out;
}

/// The access rights of a segment as a VMCS has them.
std::uint64_t rights(const kvm_segment& segment) {
    return static_cast<std::uint64_t>(segment.type | segment.s << 4 | segment.present << 7 |
                                      segment.l << 13 | segment.db << 14 | segment.g << 15);
}
constexpr std::uint64_t kUnusable = 1U << 16;

void enter_long_mode(kvm_sregs& sregs) {
    sregs.cr0 = kCr0;
    sregs.cr3 = kPml4;
    sregs.cr4 = kCr4Pae;
    sregs.efer = kEferLongMode;
    sregs.cs = segment(0x08, 0xb, true);
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = segment(0x10, 0x3, false);
    sregs.tr = segment(0x18, 0xb, false);
    sregs.tr.s = 0;
    sregs.tr.g = 0;
    sregs.tr.db = 0;
    sregs.tr.limit = 0x67;
    sregs.ldt = kvm_segment{};
    sregs.ldt.unusable = 1;
}

/// The controls asked for and those that the capability MSR insists on; none where it has not all.
Result<std::uint64_t> controls(const kvm::Vcpu& vcpu, std::uint32_t msr, std::uint32_t wanted) {
    const auto capability = vcpu.msr(msr);
    if (!capability) return tl::unexpected(capability.error());
    const auto may = static_cast<std::uint32_t>(*capability >> 32);
    if ((wanted & ~may) != 0)
        return state::fail(ErrorCode::kUnsupported, fmt::format("MSR {:#x}", msr),
                           fmt::format("KVM gives its guests no VMX control {:#x}", wanted & ~may),
                           "load kvm-intel with nested=1 on a processor that scales");
    return std::uint64_t{wanted | static_cast<std::uint32_t>(*capability)};
}

/// L2 begins as L1 is, with a stack of its own; L1 is entered again at its exit handler.
void add_levels(std::vector<Field>& fields, const kvm_sregs& sregs) {
    const std::uint64_t cr4 = sregs.cr4 | kCr4Vmxe;
    const std::array<const kvm_segment*, 6> data{&sregs.es, &sregs.cs, &sregs.ss,
                                                 &sregs.ds, &sregs.fs, &sregs.gs};
    for (std::uint64_t i = 0; i < data.size(); ++i) {
        fields.push_back({0x800 + 2 * i, data[i]->selector});
        fields.push_back({0x4800 + 2 * i, data[i]->limit});
        fields.push_back({0x4814 + 2 * i, rights(*data[i])});
        fields.push_back({0x6806 + 2 * i, 0});
        fields.push_back({0xc00 + 2 * i, data[i]->selector});
    }
    const std::array<Field, 40> rest{{
        {0x80c, 0},
        {0x4820, kUnusable},
        {0x480c, 0},  // LDTR
        {0x80e, 0x18},
        {0x480e, 0x67},
        {0x4822, rights(sregs.tr)},
        {0x6814, 0},
        {0x6812, 0},  // bases of TR and LDTR
        {0x4810, 0xffff},
        {0x4812, 0},
        {0x6816, 0},  // GDTR, IDTR
        {0x6818, 0},
        {0x4824, 0},
        {0x4826, 0},  // no interruptibility, active
        {0x2800, ~0ULL},
        {0x2802, 0},
        {0x681a, 0x400},
        {0x6800, kCr0},
        {0x6802, kPml4},
        {0x6804, cr4},
        {0x681c, kL2Stack},
        {0x681e, place_of(continuo_nested_l2)},
        {0x6820, 2},
        {0x6822, 0},
        {0x482a, 0},
        {0x6824, 0},
        {0x6826, 0},  // SYSENTER
        {0xc0c, 0x18},
        {0x6c00, kCr0},
        {0x6c02, kPml4},
        {0x6c04, cr4},
        {0x6c06, 0},
        {0x6c08, 0},
        {0x6c0a, 0},
        {0x6c0c, 0},
        {0x6c0e, 0},
        {0x6c10, 0},
        {0x6c12, 0},
        {0x6c14, kL1Stack},
        {0x6c16, place_of(continuo_nested_l1_exit)},
    }};
    fields.insert(fields.end(), rest.begin(), rest.end());
}

Result<std::vector<Field>> vmcs_fields(const kvm::Vcpu& vcpu, const kvm_sregs& sregs,
                                       const L2Tsc& l2) {
    const auto pin = controls(vcpu, kVmxPin, 0);
    const auto primary = controls(vcpu, kVmxPrimary, kUseTscOffset | kUseSecondary);
    const auto secondary = controls(vcpu, kVmxSecondary, kUseTscScaling);
    const auto exit = controls(vcpu, kVmxExit, kLongModeHost);
    const auto entry = controls(vcpu, kVmxEntry, kLongModeGuest);
    for (const auto* each : {&pin, &primary, &secondary, &exit, &entry})
        if (!*each) return tl::unexpected(each->error());
    std::vector<Field> fields{
        {0x4000, *pin},   {0x4002, *primary},  {0x401e, *secondary},    {0x400c, *exit},
        {0x4012, *entry}, {0x2010, l2.offset}, {0x2032, l2.multiplier},
    };
    // No exception, CR3 or MSR is looked at; no bit of CR0 and CR4 is L1's.
    for (const unsigned zero : {0x4004U, 0x4006U, 0x4008U, 0x400aU, 0x400eU, 0x4010U, 0x4014U,
                                0x4016U, 0x6000U, 0x6002U, 0x6004U, 0x6006U})
        fields.push_back({zero, 0});
    add_levels(fields, sregs);
    return fields;
}

Status nested_ioctl(const kvm::Vcpu& vcpu, unsigned long request, void* state, const char* name) {
    if (::ioctl(vcpu.fd(), request, state) == 0) return {};
    return kvm::kernel_failure(name, errno);
}

}  // namespace

std::uint64_t L2Tsc::at(Count<GuestCounter> l1) const {
    return static_cast<std::uint64_t>((static_cast<time::u128>(l1.raw()) * multiplier) >> 48) +
           offset;
}

Result<std::unique_ptr<NestedVm>> NestedVm::empty(const kvm::System& system,
                                                  const kvm::DoctorReport& report) {
    std::unique_ptr<NestedVm> nested{new NestedVm};
    auto limit = kvm::RunLimit::create();
    if (!limit) return tl::unexpected(limit.error());
    nested->limit_ = std::move(*limit);
    auto memory = kvm::GuestMemory::create(kMemoryBytes);
    if (!memory) return tl::unexpected(memory.error());
    nested->memory_.emplace(std::move(*memory));
    auto vm = kvm::Vm::create(system);
    if (!vm) return tl::unexpected(vm.error());
    nested->vm_.emplace(std::move(*vm));
    Status ready = nested->vm_->set_tss_address(0xfffbd000);
    if (ready) ready = nested->vm_->create_irqchip();
    if (ready) ready = nested->vm_->set_memory(0, *nested->memory_, false);
    if (!ready) return tl::unexpected(ready.error());
    auto vcpu = kvm::Vcpu::create(*nested->vm_, 0);
    if (!vcpu) return tl::unexpected(vcpu.error());
    nested->vcpu_.emplace(std::move(*vcpu));
    const auto cpuid = system.supported_cpuid();
    if (!cpuid) return tl::unexpected(cpuid.error());
    const auto bytes = system.check_extension(kCapNestedState);
    if (!bytes) return tl::unexpected(bytes.error());
    nested->nested_state_bytes_ = static_cast<std::size_t>(*bytes);
    ready = nested->vcpu_->set_cpuid(*cpuid);
    if (ready) ready = nested->vcpu_->set_msr(kFeatureControl, kVmxAllowed);
    if (ready) ready = nested->vcpu_->set_msr(abi::kMSR_KVM_SYSTEM_TIME_NEW, kPvclock | 1);
    if (!ready) return tl::unexpected(ready.error());
    kvm::ClockMachineOptions options;
    options.quirks = report.quirks;
    const std::array<kvm::Vcpu*, 1> vcpus{&*nested->vcpu_};
    nested->machine_ = std::make_unique<kvm::ClockMachine>(*nested->vm_, vcpus, *nested->memory_,
                                                           *report.host, options);
    return nested;
}

Result<std::unique_ptr<NestedVm>> NestedVm::create(const kvm::System& system,
                                                   const kvm::DoctorReport& report,
                                                   const L2Tsc& l2) {
    auto nested = empty(system, report);
    if (!nested) return nested;
    if (auto loaded = (*nested)->load_payload(l2); !loaded) return tl::unexpected(loaded.error());
    if (auto settled = (*nested)->machine().settle(); !settled)
        return tl::unexpected(settled.error());
    return nested;
}

Result<std::unique_ptr<NestedVm>> NestedVm::create(const kvm::System& system,
                                                   const kvm::DoctorReport& report,
                                                   const NestedState& state) {
    auto nested = empty(system, report);
    if (!nested) return nested;
    if (auto loaded = (*nested)->load(state); !loaded) return tl::unexpected(loaded.error());
    return nested;
}

Status NestedVm::load_payload(const L2Tsc& l2) {
    auto sregs = vcpu_->sregs();
    if (!sregs) return tl::unexpected(sregs.error());
    enter_long_mode(*sregs);
    const auto fields = vmcs_fields(*vcpu_, *sregs, l2);
    if (!fields) return tl::unexpected(fields.error());
    const auto basic = vcpu_->msr(kVmxBasic);
    if (!basic) return tl::unexpected(basic.error());
    const auto revision = static_cast<std::uint32_t>(*basic) & 0x7fffffff;
    const Block block{kVmxonRegion, kVmcsRegion, fields->size(), kFields, 0, 0, 0, 0};
    const auto code = std::as_bytes(std::span{continuo_nested_l1, continuo_nested_end});
    // Present, writable; the last one maps 2 MiB.
    Status done = memory_->write_object(kPml4, kPdpt | 3);
    if (done) done = memory_->write_object(kPdpt, kDirectory | 3);
    if (done) done = memory_->write_object(kDirectory, std::uint64_t{0x83});
    if (done) done = memory_->write_object(kVmxonRegion, revision);
    if (done) done = memory_->write_object(kVmcsRegion, revision);
    if (done) done = memory_->write_object(kBlock, block);
    if (done) done = memory_->write(kFields, std::as_bytes(std::span{*fields}));
    if (done) done = memory_->write(kCode, code);
    if (done) done = vcpu_->set_sregs(*sregs);
    kvm_regs regs{};
    regs.rip = place_of(continuo_nested_l1);
    regs.rsp = kL1Stack;
    regs.rdi = kBlock;
    regs.rflags = 2;
    if (done) done = vcpu_->set_regs(regs);
    return done;
}

Result<Stop> NestedVm::run() {
    Stop stop;
    stop.read.before = kvm::host_counter();
    const auto end = limit_->run(*vcpu_, kRunLimitMs);
    stop.read.after = kvm::host_counter();
    if (!end) return tl::unexpected(end.error());
    const kvm_run& run = vcpu_->run_page();
    const std::uint32_t reason = run.exit_reason;
    const std::uint16_t port =
        reason == std::uint32_t{KVM_EXIT_IO} ? run.io.port : std::uint16_t{0};
    // The OUT is finished by the next KVM_RUN; without it the state could not be saved.
    vcpu_->set_immediate_exit(true);
    const auto finished = vcpu_->run();
    vcpu_->set_immediate_exit(false);
    if (!finished) return tl::unexpected(finished.error());
    const auto block = memory_->read_object<Block>(kBlock);
    if (!block) return tl::unexpected(block.error());
    if (port != kL1Port && port != kL2Port)
        return state::fail(ErrorCode::kGuest, "nested payload",
                           fmt::format("KVM_RUN came back with exit reason {} (port {:#x}); the "
                                       "VMX error is {}, the last exit of L2 {:#x}",
                                       reason, port, block->vmx_error, block->exit_reason));
    stop.level = port == kL1Port ? Level::kL1 : Level::kL2;
    if (stop.level == Level::kL1 && block->exit_reason != kExitVmcall)
        return state::fail(ErrorCode::kGuest, "nested payload",
                           fmt::format("L2 left with reason {:#x}", block->exit_reason));
    stop.read.value =
        Count<GuestCounter>::from_raw(stop.level == Level::kL1 ? block->l1_tsc : block->l2_tsc);
    return stop;
}

Result<NestedState> NestedVm::save() {
    NestedState state;
    const auto memory = memory_->at(0, kMemoryBytes);
    const auto regs = vcpu_->regs();
    const auto sregs = vcpu_->sregs();
    if (!memory) return tl::unexpected(memory.error());
    if (!regs) return tl::unexpected(regs.error());
    if (!sregs) return tl::unexpected(sregs.error());
    state.regs = *regs;
    state.sregs = *sregs;
    state.nested.resize(std::max(nested_state_bytes_, kNestedHeaderBytes));
    const auto size = static_cast<std::uint32_t>(state.nested.size());
    std::memcpy(state.nested.data() + kNestedSizeAt, &size, sizeof size);
    if (auto got =
            nested_ioctl(*vcpu_, kGetNestedState, state.nested.data(), "KVM_GET_NESTED_STATE");
        !got)
        return tl::unexpected(got.error());
    // Last: it is in guest memory that KVM may have put the VMCS.
    state.memory.assign(memory->begin(), memory->end());
    return state;
}

Status NestedVm::load(const NestedState& state) {
    Status done = memory_->write(0, state.memory);
    if (done) done = vcpu_->set_sregs(state.sregs);
    if (done) done = vcpu_->set_regs(state.regs);
    if (!done) return done;
    std::vector<std::byte> nested = state.nested;
    return nested_ioctl(*vcpu_, kSetNestedState, nested.data(), "KVM_SET_NESTED_STATE");
}

}  // namespace continuo::scaling
