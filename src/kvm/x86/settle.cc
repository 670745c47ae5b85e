#include "continuo/kvm/settle.h"

#include <cerrno>
#include <ctime>
#include <string>

#include "signal_mask.h"

namespace continuo::kvm {

namespace {

/// Real-time, so that each instance is queued and taken by itself; the last one, which programs
/// leave alone.
int settle_signal() {
    return SIGRTMAX;
}

/// KVM_RUN that must be cancelled by our signal.
Status cancelled_run(Vcpu& vcpu) {
    const std::uint8_t immediate_exit = vcpu.run_page().immediate_exit;
    vcpu.set_immediate_exit(false);
    const auto end = vcpu.run();
    vcpu.set_immediate_exit(immediate_exit != 0);
    if (!end) return tl::unexpected(end.error());
    if (*end == RunEnd::kInterrupted) return {};
    return state::fail(
        state::ErrorCode::kBusy, "vCPU " + std::to_string(vcpu.id()) + ": settle",
        "KVM_RUN came back with exit reason " + std::to_string(vcpu.run_page().exit_reason),
        "finish the vCPU's pending exit before its clocks are restored");
}

Status run_under_mask(Vcpu& vcpu) {
    if (auto set = let_in_only(vcpu, settle_signal()); !set) return set;
    Status ran = cancelled_run(vcpu);
    Status unset = let_in_as_outside(vcpu);
    return ran ? unset : ran;
}

/// True where an event is on its way into the guest: the vCPU is not waiting any more.
bool woken(const kvm_vcpu_events& events) {
    return events.interrupt.injected != 0 || events.nmi.injected != 0 ||
           events.exception.injected != 0;
}

/// vcpu_enter_guest() is for runnable vCPUs only; a waiting one is made runnable for the call.
Status run_waiting(Vcpu& vcpu, const kvm_mp_state& waiting) {
    if (auto set = vcpu.set_mp_state(kvm_mp_state{KVM_MP_STATE_RUNNABLE}); !set) return set;
    Status ran = run_under_mask(vcpu);
    const auto events = vcpu.events();
    const auto now = vcpu.mp_state();
    const bool still_waiting =
        events && now && !woken(*events) && now->mp_state == std::uint32_t{KVM_MP_STATE_RUNNABLE};
    if (still_waiting) {
        if (auto back = vcpu.set_mp_state(waiting); !back) return back;
    }
    if (!ran) return ran;
    if (!events) return tl::unexpected(events.error());
    if (!now) return tl::unexpected(now.error());
    return {};
}

}  // namespace

Result<PendingSignal> PendingSignal::raise() {
    const sigset_t ours = signal_set(settle_signal());
    sigset_t before;
    if (const int failed = ::pthread_sigmask(SIG_BLOCK, &ours, &before); failed != 0)
        return kernel_failure("pthread_sigmask", failed);
    if (const int failed = ::pthread_kill(::pthread_self(), settle_signal()); failed != 0) {
        ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
        return kernel_failure("pthread_kill", failed, "raise RLIMIT_SIGPENDING");
    }
    return PendingSignal{before};
}

PendingSignal::PendingSignal(PendingSignal&& other) noexcept
    : mask_before_{other.mask_before_}, active_{std::exchange(other.active_, false)} {}

PendingSignal::~PendingSignal() {
    if (!active_) return;
    const sigset_t ours = signal_set(settle_signal());
    const timespec at_once{};
    ::sigtimedwait(&ours, nullptr, &at_once);
    ::pthread_sigmask(SIG_SETMASK, &mask_before_, nullptr);
}

Status settle_vcpu(Vcpu& vcpu, const PendingSignal&) {
    const auto mp_state = vcpu.mp_state();
    if (!mp_state) return tl::unexpected(mp_state.error());
    if (mp_state->mp_state == std::uint32_t{KVM_MP_STATE_RUNNABLE}) return run_under_mask(vcpu);
    return run_waiting(vcpu, *mp_state);
}

Status settle_vcpu(Vcpu& vcpu) {
    const auto pending = PendingSignal::raise();
    if (!pending) return tl::unexpected(pending.error());
    return settle_vcpu(vcpu, *pending);
}

}  // namespace continuo::kvm
