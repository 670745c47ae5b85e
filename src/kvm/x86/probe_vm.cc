#include "probe_vm.h"

#include <array>
#include <cstring>

#include "continuo/abi/cpuid.h"
#include "continuo/abi/kvm_x86.h"
#include "continuo/abi/msr.h"
#include "continuo/kvm/counter.h"

namespace continuo::kvm {

namespace {

using time::Count;
using time::GuestCounter;

constexpr int kRunLimitMs = 500;

// Real-mode code, one snippet a kind of question. Each ends in an OUT, which comes back to us with
// the answer still in the registers.
constexpr std::uint64_t kRdtscAt = 0x1000;
constexpr std::uint64_t kRdmsrAt = 0x1100;
constexpr std::uint64_t kWrmsrAt = 0x1200;
constexpr std::uint64_t kWaitAt = 0x1300;
constexpr std::uint64_t kFaultAt = 0x1400;
constexpr std::uint64_t kTimerAt = 0x1500;
constexpr std::uint64_t kHypercallAt = 0x1600;
constexpr std::uint64_t kStackTop = 0x3000;
constexpr std::uint16_t kDonePort = 0x80;
constexpr std::uint16_t kFaultPort = 0x81;

constexpr std::array<std::uint8_t, 6> kRdtsc{0x0f, 0x31, 0xe6, kDonePort, 0xeb, 0xfa};
constexpr std::array<std::uint8_t, 6> kRdmsr{0x0f, 0x32, 0xe6, kDonePort, 0xeb, 0xfa};
constexpr std::array<std::uint8_t, 6> kWrmsr{0x0f, 0x30, 0xe6, kDonePort, 0xeb, 0xfa};
/// The processor's own of vmcall and vmmcall; the other one KVM would have to emulate.
constexpr std::array<std::uint8_t, 7> kVmcall{0x0f, 0x01, 0xc1, 0xe6, kDonePort, 0xeb, 0xf9};
constexpr std::array<std::uint8_t, 7> kVmmcall{0x0f, 0x01, 0xd9, 0xe6, kDonePort, 0xeb, 0xf9};
/// sti; hlt; jmp back
constexpr std::array<std::uint8_t, 4> kWait{0xfb, 0xf4, 0xeb, 0xfc};
/// out kFaultPort, al; jmp back
constexpr std::array<std::uint8_t, 4> kFault{0xe6, kFaultPort, 0xeb, 0xfc};
/// rdtsc; out kDonePort, al; jmp to the out
constexpr std::array<std::uint8_t, 6> kTimer{0x0f, 0x31, 0xe6, kDonePort, 0xeb, 0xfc};

std::uint64_t edx_eax(const kvm_regs& regs) {
    return (regs.rdx & 0xffff'ffffU) << 32 | (regs.rax & 0xffff'ffffU);
}

}  // namespace

Result<std::unique_ptr<ProbeVm>> ProbeVm::create(const System& system, std::size_t vcpus,
                                                 bool irqchip) {
    std::unique_ptr<ProbeVm> probe{new ProbeVm};
    auto limit = RunLimit::create();
    if (!limit) return tl::unexpected(limit.error());
    probe->limit_ = std::move(*limit);
    auto memory = GuestMemory::create(64 * kPageSize);
    if (!memory) return tl::unexpected(memory.error());
    probe->memory_.emplace(std::move(*memory));
    auto vm = Vm::create(system);
    if (!vm) return tl::unexpected(vm.error());
    probe->vm_.emplace(std::move(*vm));
    auto cpuid = system.supported_cpuid();
    if (!cpuid) return tl::unexpected(cpuid.error());
    probe->cpuid_ = std::move(*cpuid);
    const auto deadline = system.check_extension(abi::kKVM_CAP_TSC_DEADLINE_TIMER);
    probe->has_deadline_ = deadline && *deadline != 0;
    Status ready = probe->vm_->set_tss_address(0xfffbd000);
    if (ready && irqchip) ready = probe->vm_->create_irqchip();
    if (ready) ready = probe->load_code();
    if (ready) ready = probe->vm_->set_memory(0, *probe->memory_, false);
    if (!ready) return tl::unexpected(ready.error());
    for (std::size_t i = 0; i < vcpus; ++i)
        if (auto added = probe->add_vcpu(); !added) return tl::unexpected(added.error());
    return probe;
}

Status ProbeVm::add_vcpu() {
    auto vcpu = Vcpu::create(*vm_, static_cast<std::uint32_t>(vcpus_.size()));
    if (!vcpu) return tl::unexpected(vcpu.error());
    vcpus_.push_back(std::move(*vcpu));
    return start(vcpus_.back());
}

Status ProbeVm::load_code() {
    const auto put = [this](std::uint64_t gpa, auto& bytes) {
        return memory_->write(gpa, std::as_bytes(std::span{bytes}));
    };
    Status done = put(kRdtscAt, kRdtsc);
    if (done) done = put(kRdmsrAt, kRdmsr);
    if (done) done = put(kWrmsrAt, kWrmsr);
    if (done) done = put(kWaitAt, kWait);
    if (done) done = put(kFaultAt, kFault);
    if (done) done = put(kTimerAt, kTimer);
    // The interrupt vectors of real mode: everything but the timer is a fault.
    for (std::uint32_t vector = 0; done && vector < 256; ++vector) {
        const std::uint64_t handler = vector == kTimerVector ? kTimerAt : kFaultAt;
        done =
            memory_->write_object(std::uint64_t{vector} * 4, static_cast<std::uint32_t>(handler));
    }
    return done;
}

Status ProbeVm::start(Vcpu& vcpu) {
    CpuidEntries own = cpuid_;
    if (CpuidEntry* features = find_cpuid(own, abi::kCpuidFeatures)) {
        features->ebx = (features->ebx & 0x00ff'ffffU) | vcpu.id() << 24;
        // KVM offers it by capability, not in its list (up to Linux 6.14 or so).
        if (has_deadline_) features->ecx |= 1U << abi::kCpuid1EcxTscDeadline;
    }
    Status done = vcpu.set_cpuid(own);
    auto sregs = vcpu.sregs();
    if (!sregs) return tl::unexpected(sregs.error());
    sregs->cs.base = 0;
    sregs->cs.selector = 0;
    if (done) done = vcpu.set_sregs(*sregs);
    if (done) done = vcpu.set_mp_state(kvm_mp_state{KVM_MP_STATE_RUNNABLE});
    kvm_regs regs{};
    regs.rip = kRdtscAt;
    regs.rflags = 2;
    if (done) done = vcpu.set_regs(regs);
    return done;
}

std::vector<Vcpu*> ProbeVm::vcpu_pointers() {
    std::vector<Vcpu*> pointers;
    for (Vcpu& vcpu : vcpus_)
        pointers.push_back(&vcpu);
    return pointers;
}

Result<kvm_regs> ProbeVm::run_at(std::size_t vcpu, std::uint64_t rip, const kvm_regs& regs,
                                 machine::WriteBracket* bracket) {
    Vcpu& cpu = vcpus_[vcpu];
    kvm_regs start = regs;
    start.rip = rip;
    start.rsp = kStackTop;
    start.rflags = 2;
    if (auto set = cpu.set_regs(start); !set) return tl::unexpected(set.error());
    machine::WriteBracket around;
    around.before = host_counter();
    const auto end = limit_->run(cpu, kRunLimitMs);
    around.after = host_counter();
    if (bracket != nullptr) *bracket = around;
    if (!end) return tl::unexpected(end.error());
    const kvm_run& run = cpu.run_page();
    const std::uint32_t reason = run.exit_reason;
    const std::uint16_t port =
        reason == std::uint32_t{KVM_EXIT_IO} ? run.io.port : std::uint16_t{0};
    auto answer = cpu.regs();
    // The OUT is finished by the next KVM_RUN; without it the vCPU could not be started elsewhere.
    cpu.set_immediate_exit(true);
    const auto finished = cpu.run();
    cpu.set_immediate_exit(false);
    if (!finished) return tl::unexpected(finished.error());
    if (port == kDonePort) return answer;
    if (port == kFaultPort)
        return state::fail(state::ErrorCode::kGuest, "probe guest", "the instruction faults");
    return state::fail(state::ErrorCode::kUnsupported, "probe guest",
                       "KVM_RUN came back with exit reason " + std::to_string(reason));
}

Result<machine::BracketedTsc> ProbeVm::guest_rdtsc(std::size_t vcpu) {
    machine::WriteBracket bracket;
    return run_at(vcpu, kRdtscAt, kvm_regs{}, &bracket).map([&](const kvm_regs& regs) {
        return machine::BracketedTsc{bracket.before, Count<GuestCounter>::from_raw(edx_eax(regs)),
                                     bracket.after};
    });
}

Result<machine::BracketedTsc> ProbeVm::guest_rdtsc_narrow(std::size_t vcpu, int tries) {
    auto best = guest_rdtsc(vcpu);
    for (int i = 1; best && i < tries; ++i) {
        auto next = guest_rdtsc(vcpu);
        if (next && next->after - next->before < best->after - best->before) best = next;
    }
    return best;
}

Result<std::uint64_t> ProbeVm::guest_rdmsr(std::size_t vcpu, std::uint32_t index) {
    kvm_regs regs{};
    regs.rcx = index;
    return run_at(vcpu, kRdmsrAt, regs).map(edx_eax);
}

Status ProbeVm::guest_wrmsr(std::size_t vcpu, std::uint32_t index, std::uint64_t value) {
    kvm_regs regs{};
    regs.rcx = index;
    regs.rax = value & 0xffff'ffffU;
    regs.rdx = value >> 32;
    return run_at(vcpu, kWrmsrAt, regs).map([](const kvm_regs&) {});
}

Result<std::uint64_t> ProbeVm::guest_hypercall(std::size_t vcpu, std::uint32_t number,
                                               std::uint32_t a0, std::uint32_t a1) {
    constexpr std::uint32_t kEbxOfIntel = 0x756e6547;  // "Genu"
    const CpuidEntry* vendor = find_cpuid(cpuid_, 0);
    const bool intel = vendor != nullptr && vendor->ebx == kEbxOfIntel;
    if (auto put = memory_->write_object(kHypercallAt, intel ? kVmcall : kVmmcall); !put)
        return tl::unexpected(put.error());
    kvm_regs regs{};
    regs.rax = number;
    regs.rbx = a0;
    regs.rcx = a1;
    return run_at(vcpu, kHypercallAt, regs).map([](const kvm_regs& end) {
        return end.rax & 0xffff'ffffU;
    });
}

Result<std::uint64_t> ProbeVm::wait_for_timer(std::size_t vcpu) {
    return run_at(vcpu, kWaitAt, kvm_regs{}).map(edx_eax);
}

Status ProbeVm::enable_deadline_timer(std::size_t vcpu) {
    constexpr std::size_t kSpurious = 0xf0;
    constexpr std::size_t kTimerLvt = 0x320;
    constexpr std::uint32_t kApicEnabled = 1U << 8;
    constexpr std::uint32_t kDeadlineMode = 2U << 17;
    auto lapic = vcpus_[vcpu].lapic();
    if (!lapic) return tl::unexpected(lapic.error());
    const auto put = [&](std::size_t at, std::uint32_t value) {
        std::memcpy(lapic->regs + at, &value, sizeof value);
    };
    put(kSpurious, kApicEnabled | 0xff);
    put(kTimerLvt, kDeadlineMode | kTimerVector);
    return vcpus_[vcpu].set_lapic(*lapic);
}

Status ProbeVm::enable_pvclock(std::size_t vcpu) {
    return vcpus_[vcpu].set_msr(abi::kMSR_KVM_SYSTEM_TIME_NEW,
                                pvclock_gpa(vcpu) | abi::kKVM_MSR_ENABLED);
}

}  // namespace continuo::kvm
