#include "witness_boot.h"

#include <algorithm>
#include <cstring>

#include "continuo/vmm/witness_machine.h"
#include "flat_segment.h"

namespace continuo::vmm {

namespace {

using namespace witness;

// Selectors, and the descriptors of a flat long-mode GDT in their architectural encoding.
constexpr std::uint16_t kKernelCode = 0x08;
constexpr std::uint16_t kKernelData = 0x10;
constexpr std::uint64_t kDescriptors[] = {
    0,
    0x00af9b000000ffff,  // 64-bit code, DPL 0
    0x00cf93000000ffff,  // data, DPL 0
    0x00cff3000000ffff,  // data, DPL 3
    0x00affb000000ffff,  // 64-bit code, DPL 3
};
constexpr std::uint64_t kPagePresentWriteUser = 0x7;
constexpr std::uint64_t kPageAccessedDirtyLarge = 0xe0;
constexpr std::uint64_t kLargePage = 2ull << 20;
constexpr std::uint32_t kFaultVectors = 32;
constexpr std::uint64_t kApicBase = 0xfee00000;
constexpr std::uint64_t kApicBootstrap = 1u << 8;
constexpr std::uint64_t kApicX2apic = 1u << 10;
constexpr std::uint64_t kApicEnabled = 1u << 11;
constexpr std::uint64_t kCr0 = 0x80010033;  // PG WP NE ET MP PE
constexpr std::uint64_t kCr4Pae = 0x20;
constexpr std::uint64_t kEferLongMode = 0x500;  // LMA LME
constexpr std::uint32_t kCpuid1EcxTscDeadline = 1u << 24;
constexpr std::uint32_t kCpuid7EbxTscAdjust = 1u << 1;

/// A 64-bit interrupt gate of ring 0.
struct Gate {
    std::uint64_t low;
    std::uint64_t high;
};

Gate make_gate(std::uint64_t handler) {
    const std::uint64_t low = (handler & 0xffff) | (std::uint64_t{kKernelCode} << 16) |
                              (0x8e00ull << 32) | ((handler >> 16 & 0xffff) << 48);
    return Gate{low, handler >> 32};
}

kvm_segment task_segment(std::uint32_t vcpu) {
    kvm_segment out{};
    out.base = kTaskStates + kTaskStateStride * vcpu;
    out.limit = 0x67;
    out.selector = 0x28;
    out.type = 11;
    out.present = 1;
    return out;
}

}  // namespace

void put_tables(GuestWriter& out, std::span<const std::byte> image) {
    CONTINUO_CHECK(image.size() >= sizeof(GateHeader));
    GateHeader gates;
    std::memcpy(&gates, image.data(), sizeof gates);
    for (std::size_t i = 0; i < std::size(kDescriptors); ++i)
        out.put(kGdt + 8UL * i, kDescriptors[i]);
    for (std::uint32_t vector = 0; vector < kFaultVectors; ++vector)
        out.put(kIdt + 16UL * vector, make_gate(gates.fault_gates + kFaultGateStride * vector));
    out.put(kIdt + 16UL * kTimerVector, make_gate(gates.timer_gate));
    out.put(kIdt + 16UL * kSpuriousVector, make_gate(gates.spurious_gate));
    out.put(kPml4, kPdpt | kPagePresentWriteUser);
    out.put(kPdpt, kPageDirectory | kPagePresentWriteUser);
    for (std::uint64_t i = 0; i < kIdentityMapBytes / kLargePage; ++i)
        out.put(kPageDirectory + 8 * i,
                i * kLargePage | kPagePresentWriteUser | kPageAccessedDirtyLarge);
}

void put_vcpu_tables(GuestWriter& out, std::uint32_t vcpu) {
    // TSS: RSP0 at offset 4; an I/O map base beyond the limit.
    const std::uint64_t task = kTaskStates + kTaskStateStride * vcpu;
    out.put(task + 4, stack_top(vcpu));
    out.put(task + 102, std::uint16_t{0x68});
}

Status set_entry(kvm::Vcpu& vcpu, std::uint64_t entry) {
    auto sregs = vcpu.sregs();
    if (!sregs) return tl::unexpected(std::move(sregs.error()));
    const kvm_segment data = flat_data(kKernelData);
    sregs->cs = flat_code(kKernelCode, CodeWidth::k64);
    sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = data;
    sregs->tr = task_segment(vcpu.id());
    sregs->ldt = kvm_segment{};
    sregs->ldt.unusable = 1;
    sregs->gdt.base = kGdt;
    sregs->gdt.limit = sizeof kDescriptors - 1;
    sregs->idt.base = kIdt;
    sregs->idt.limit = 0xfff;
    sregs->cr0 = kCr0;
    sregs->cr3 = kPml4;
    sregs->cr4 = kCr4Pae;
    sregs->efer = kEferLongMode;
    sregs->apic_base =
        kApicBase | kApicEnabled | kApicX2apic | (vcpu.id() == 0 ? kApicBootstrap : 0);
    if (auto done = vcpu.set_sregs(*sregs); !done) return done;
    kvm_regs regs{};
    regs.rip = entry;
    regs.rsp = stack_top(vcpu.id());
    regs.rdi = report_gpa(vcpu.id());
    regs.rsi = kControl;
    regs.rflags = 2;
    if (auto done = vcpu.set_regs(regs); !done) return done;
    return vcpu.set_mp_state(kvm_mp_state{KVM_MP_STATE_RUNNABLE});
}

Status fill_machine_control(VirtualMachine& machine, const WitnessConfig& config,
                            Control& control) {
    if (config.user_mode) control.flags |= kFlagUserMode;
    control.cross_pages_a_loop = std::min(config.cross_pages_a_loop, control.vcpu_count - 1);
    const kvm::CpuidEntry* extended = kvm::find_cpuid(machine.cpu_model(), 7);
    if (extended != nullptr && (extended->ebx & kCpuid7EbxTscAdjust) != 0)
        control.flags |= kFlagTscAdjust;
    if (!config.timer) return {};
    const kvm::CpuidEntry* features = kvm::find_cpuid(machine.cpu_model(), 1);
    if (features == nullptr || (features->ecx & kCpuid1EcxTscDeadline) == 0) {
        control.timer_mode = TimerMode::kPeriodic;
        control.timer_period = config.timer_period_ns;
        return {};
    }
    const auto khz = machine.vcpus().front().tsc_khz();
    if (!khz) return tl::unexpected(khz.error());
    control.timer_mode = TimerMode::kTscDeadline;
    control.timer_period = config.timer_period_ns / 1000 * *khz / 1000;
    return {};
}

}  // namespace continuo::vmm
