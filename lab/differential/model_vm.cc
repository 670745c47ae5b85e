#include "model_vm.h"

#include "continuo/abi/msr.h"

namespace continuo::differential {

namespace {

/// KVM_EOPNOTSUPP as a guest in real mode reads it.
constexpr std::uint64_t kNotSupported = static_cast<std::uint32_t>(-95);

bool is_system_time(std::uint32_t msr) {
    return msr == abi::kMSR_KVM_SYSTEM_TIME || msr == abi::kMSR_KVM_SYSTEM_TIME_NEW;
}

void take_stable_bit_away(abi::pvclock_vcpu_time_info& page) {
    if ((page.flags & abi::kPVCLOCK_TSC_STABLE_BIT) == 0) return;
    page.version += 2;
    page.flags = static_cast<std::uint8_t>(page.flags & ~abi::kPVCLOCK_TSC_STABLE_BIT);
}

int error_of(const Status& done) {
    return done ? 0 : done.error().sys_errno;
}

}  // namespace

abi::pvclock_vcpu_time_info* ModelVm::memory_at(unsigned vcpu, std::uint64_t msr) {
    const std::uint64_t gpa = abi::system_time_gpa(msr);
    for (const bool other : {false, true})
        if (gpa == page_gpa(vcpu, other)) return &memory_[vcpu][other ? 1 : 0];
    return nullptr;
}

abi::pvclock_vcpu_time_info& ModelVm::page(unsigned vcpu, bool other) {
    const std::uint64_t msr = kvm_.vcpu(vcpu).system_time_msr;
    if (abi::system_time_gpa(msr) == page_gpa(vcpu, other)) return kvm_.page(vcpu);
    return memory_[vcpu][other ? 1 : 0];
}

int ModelVm::write_msr(const Act& act, bool by_host) {
    const std::uint64_t msr_before = kvm_.vcpu(act.vcpu).system_time_msr;
    const abi::pvclock_vcpu_time_info page_before = kvm_.page(act.vcpu);
    const Status done = by_host ? kvm_.host_write_msr(act.vcpu, act.msr, act.value)
                                : kvm_.guest_write_msr(act.vcpu, act.msr, act.value);
    const std::uint64_t msr = kvm_.vcpu(act.vcpu).system_time_msr;
    if (abi::system_time_gpa(msr_before) != abi::system_time_gpa(msr)) {
        if (auto* old = memory_at(act.vcpu, msr_before)) *old = page_before;
        if (const auto* fresh = memory_at(act.vcpu, msr)) kvm_.page(act.vcpu) = *fresh;
    }
    if (system_time_write_stores_ && by_host && act.vcpu == 0 && is_system_time(act.msr) &&
        abi::system_time_enabled(act.value))
        take_stable_bit_away(kvm_.page(0));
    return error_of(done);
}

void ModelVm::leave_and_enter(unsigned vcpu, const Moment& moment, Phase phase) {
    kvm_.exit(vcpu);
    moment(phase);
    kvm_.enter(vcpu);
}

Answer ModelVm::guest_acts(const Act& act, const Moment& moment, const Detours& detours) {
    Answer answer;
    moment(Phase::kEnter);
    kvm_.enter(act.vcpu);
    for (unsigned i = 0; i < detours.before; ++i)
        leave_and_enter(act.vcpu, moment, Phase::kDetour);
    moment(Phase::kAct);
    switch (act.kind) {
        case OpKind::kGuestReadTsc:
            answer.value = kvm_.guest_tsc(act.vcpu);
            break;
        case OpKind::kClockPairing: {
            const auto pairing = kvm_.clock_pairing(act.vcpu);
            answer.value = pairing ? 0 : kNotSupported;
            if (pairing) answer.pairing = *pairing;
            break;
        }
        default:
            answer.error = write_msr(act, false);
    }
    // The kernel handles a WRMSR and a hypercall itself, and the guest goes on to its OUT.
    if (enters_again(act.kind)) leave_and_enter(act.vcpu, moment, Phase::kEnterAgain);
    for (unsigned i = 0; i < detours.after; ++i)
        leave_and_enter(act.vcpu, moment, Phase::kDetourAfter);
    kvm_.exit(act.vcpu);
    return answer;
}

Answer ModelVm::perform(const Act& act, const Moment& moment, const Detours& detours) {
    if (enters_guest(act.kind)) return guest_acts(act, moment, detours);
    Answer answer;
    moment(act.kind == OpKind::kSettle ? Phase::kEnter : Phase::kAct);
    switch (act.kind) {
        case OpKind::kSettle:
            kvm_.settle(act.vcpu);
            break;
        case OpKind::kCreateVcpu: {
            const auto made = kvm_.create_vcpu();
            if (!made) answer.error = made.error().sys_errno;
            break;
        }
        case OpKind::kSetOffset:
            answer.error = error_of(kvm_.set_tsc_offset(act.vcpu, act.value));
            break;
        case OpKind::kReadTsc:
            answer.value = kvm_.host_read_msr(act.vcpu, act.msr).value_or(0);
            break;
        case OpKind::kSystemTime:
        case OpKind::kWriteTsc:
        case OpKind::kWriteAdjust:
        case OpKind::kWallClock:
            answer.error = write_msr(act, true);
            break;
        case OpKind::kSetKhz:
            answer.error =
                error_of(kvm_.set_tsc_khz(act.vcpu, static_cast<std::uint32_t>(act.value)));
            break;
        case OpKind::kSetVmKhz:
            answer.error = error_of(kvm_.set_vm_tsc_khz(static_cast<std::uint32_t>(act.value)));
            break;
        case OpKind::kMoveToCpu:
            move_to_cpu(static_cast<unsigned>(act.value));
            break;
        case OpKind::kStopped:
            answer.error = error_of(kvm_.kvmclock_ctrl(act.vcpu));
            break;
        case OpKind::kClearStopped: {
            auto& flags = kvm_.page(act.vcpu).flags;
            flags = static_cast<std::uint8_t>(flags & ~abi::kPVCLOCK_GUEST_STOPPED);
            break;
        }
        case OpKind::kWait:
            break;
        default:
            answer.error = error_of(kvm_.set_clock(act.clock));
    }
    return answer;
}

/// What is looked at afterwards loads each vCPU there.
void ModelVm::move_to_cpu(unsigned cpu) {
    kvm_.vmm_migrated(cpu);
    for (unsigned i = 0; i < kvm_.vcpu_count(); ++i) {
        kvm_.vcpu_migrated(i, cpu);
        (void)kvm_.tsc_khz(i);
    }
}

View ModelVm::look() {
    View view;
    view.vcpus = kvm_.vcpu_count();
    view.vm_khz = kvm_.vm_tsc_khz();
    for (unsigned i = 0; i < view.vcpus; ++i) {
        const model::KvmVcpu& vcpu = kvm_.vcpu(i);
        view.vcpu[i] = {vcpu.map.offset(),
                        vcpu.user_khz,
                        vcpu.tsc_adjust,
                        vcpu.system_time_msr,
                        {page(i, false), page(i, true)}};
    }
    view.wall = kvm_.arch().wall_clock;
    return view;
}

}  // namespace continuo::differential
