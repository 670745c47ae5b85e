#include "probe_vm.h"

#include <cstddef>
#include <cstring>

#include "continuo/abi/arm64.h"
#include "continuo/kvm/counter.h"

extern "C" {
// Of probe_guest.S.
extern const std::byte continuo_probe_guest[];
extern const std::byte continuo_probe_guest_end[];
extern const std::byte continuo_probe_cntvct;
extern const std::byte continuo_probe_cntpct;
extern const std::byte continuo_probe_cntfrq;
extern const std::byte continuo_probe_cntvct_loop;
extern const std::byte continuo_probe_cntpct_loop;
extern const std::byte continuo_probe_vtimer;
extern const std::byte continuo_probe_ptimer;
extern const std::byte continuo_probe_hvc;
}

namespace continuo::kvm {

namespace {

using time::Count;
using time::GuestCounter;

constexpr int kRunLimitMs = 2000;
constexpr std::uint64_t kMemoryGpa = 0x4000'0000;
constexpr std::uint64_t kMemorySize = 16 * kPageSize;
/// Where no memory is.
constexpr std::uint64_t kAnswerGpa = 0x0900'0000;
constexpr std::uint64_t kFaultGpa = 0x0900'1000;

/// Of the core registers the id holds the place in struct kvm_regs, in 32-bit words.
constexpr std::uint64_t core_register(std::size_t offset) {
    return KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | offset / sizeof(std::uint32_t);
}
constexpr std::uint64_t x(std::size_t n) {
    return core_register(offsetof(kvm_regs, regs.regs) + n * sizeof(std::uint64_t));
}
constexpr std::uint64_t kPc = core_register(offsetof(kvm_regs, regs.pc));
constexpr std::uint64_t kVbar = abi::arm64_sysreg(3, 0, 12, 0, 0);

std::uint64_t gpa_of(const std::byte& label) {
    return kMemoryGpa + static_cast<std::uint64_t>(&label - continuo_probe_guest);
}

}  // namespace

Result<std::unique_ptr<ProbeVm>> ProbeVm::create(const System& system, std::size_t vcpus,
                                                 CounterOwner counter) {
    std::unique_ptr<ProbeVm> probe{new ProbeVm};
    auto limit = RunLimit::create();
    if (!limit) return tl::unexpected(limit.error());
    probe->limit_ = std::move(*limit);
    auto memory = GuestMemory::create(kMemorySize, kMemoryGpa);
    if (!memory) return tl::unexpected(memory.error());
    probe->memory_.emplace(std::move(*memory));
    auto vm = Vm::create(system, VmOptions{0, counter});
    if (!vm) return tl::unexpected(vm.error());
    probe->vm_.emplace(std::move(*vm));
    Status ready = probe->memory_->write(
        kMemoryGpa, std::span{&continuo_probe_guest[0], &continuo_probe_guest_end[0]});
    if (ready) ready = probe->vm_->set_memory(0, *probe->memory_, false);
    if (!ready) return tl::unexpected(ready.error());
    probe->vcpus_.reserve(vcpus);
    for (std::uint32_t id = 0; id < vcpus; ++id) {
        auto vcpu = Vcpu::create(*probe->vm_, id);
        if (!vcpu) return tl::unexpected(vcpu.error());
        probe->vcpus_.push_back(std::move(*vcpu));
        if (auto started = probe->start(probe->vcpus_.back()); !started)
            return tl::unexpected(started.error());
    }
    return probe;
}

Status ProbeVm::start(Vcpu& vcpu) {
    Status done = vcpu.init(*vm_, false);
    if (done) done = vcpu.set_one_reg(kVbar, kMemoryGpa);
    if (done) done = vcpu.set_one_reg(x(19), kAnswerGpa);
    if (done) done = vcpu.set_one_reg(x(20), kFaultGpa);
    return done;
}

std::vector<Vcpu*> ProbeVm::vcpu_pointers() {
    std::vector<Vcpu*> pointers;
    for (Vcpu& vcpu : vcpus_)
        pointers.push_back(&vcpu);
    return pointers;
}

Result<std::uint64_t> ProbeVm::answer_of(Vcpu& vcpu) const {
    const kvm_run& run = vcpu.run_page();
    if (run.exit_reason != std::uint32_t{KVM_EXIT_MMIO})
        return state::fail(state::ErrorCode::kUnsupported, "probe guest",
                           "KVM_RUN came back with exit reason " + std::to_string(run.exit_reason));
    const std::uint64_t at = run.mmio.phys_addr;
    std::uint64_t value = 0;
    std::memcpy(&value, run.mmio.data, sizeof value);
    // The store is finished by the next KVM_RUN; without it the vCPU could not be started
    // elsewhere.
    vcpu.set_immediate_exit(true);
    const auto finished = vcpu.run();
    vcpu.set_immediate_exit(false);
    if (!finished) return tl::unexpected(finished.error());
    if (at == kAnswerGpa) return value;
    constexpr std::uint64_t kExceptionClass = 26;
    return state::fail(state::ErrorCode::kGuest, "probe guest",
                       "the instruction faults, exception class " +
                           std::to_string(value >> kExceptionClass & 0x3f));
}

Result<std::uint64_t> ProbeVm::ask(std::size_t vcpu, const std::byte& question, std::uint64_t x0,
                                   std::uint64_t x1, machine::WriteBracket* around) {
    Vcpu& cpu = vcpus_[vcpu];
    Status ready = cpu.set_one_reg(kPc, gpa_of(question));
    if (ready) ready = cpu.set_one_reg(x(0), x0);
    if (ready) ready = cpu.set_one_reg(x(1), x1);
    if (!ready) return tl::unexpected(ready.error());
    machine::WriteBracket bracket;
    bracket.before = host_counter();
    const auto end = limit_->run(cpu, kRunLimitMs);
    bracket.after = host_counter();
    if (around != nullptr) *around = bracket;
    if (!end) return tl::unexpected(end.error());
    return answer_of(cpu);
}

Result<machine::BracketedTsc> ProbeVm::bracketed(std::size_t vcpu, const std::byte& question) {
    machine::WriteBracket around;
    return ask(vcpu, question, 0, 0, &around).map([&](std::uint64_t value) {
        return machine::BracketedTsc{around.before, Count<GuestCounter>::from_raw(value),
                                     around.after};
    });
}

Result<machine::BracketedTsc> ProbeVm::guest_cntvct(std::size_t vcpu) {
    return bracketed(vcpu, continuo_probe_cntvct);
}

Result<machine::BracketedTsc> ProbeVm::guest_cntpct(std::size_t vcpu) {
    return bracketed(vcpu, continuo_probe_cntpct);
}

Result<std::uint64_t> ProbeVm::guest_cntfrq(std::size_t vcpu) {
    return ask(vcpu, continuo_probe_cntfrq, 0, 0);
}

Result<std::uint64_t> ProbeVm::cntvct_ticks(std::size_t vcpu, std::uint64_t reads) {
    return ask(vcpu, continuo_probe_cntvct_loop, 0, reads);
}

Result<std::uint64_t> ProbeVm::cntpct_ticks(std::size_t vcpu, std::uint64_t reads) {
    return ask(vcpu, continuo_probe_cntpct_loop, 0, reads);
}

Result<std::uint64_t> ProbeVm::vtimer_lateness(std::size_t vcpu, std::uint64_t ahead) {
    return ask(vcpu, continuo_probe_vtimer, 0, ahead);
}

Result<std::uint64_t> ProbeVm::ptimer_lateness(std::size_t vcpu, std::uint64_t ahead) {
    return ask(vcpu, continuo_probe_ptimer, 0, ahead);
}

Result<ProbeVm::Hypercall> ProbeVm::hypercall(std::size_t vcpu, std::uint64_t function,
                                              std::uint64_t argument) {
    Hypercall call;
    const auto first = ask(vcpu, continuo_probe_hvc, function, argument, &call.around);
    if (!first) return tl::unexpected(first.error());
    call.answer[0] = *first;
    for (std::size_t n = 1; n < call.answer.size(); ++n) {
        const auto value = vcpus_[vcpu].one_reg(x(n));
        if (!value) return tl::unexpected(value.error());
        call.answer[n] = *value;
    }
    return call;
}

}  // namespace continuo::kvm
