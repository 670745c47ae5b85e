// What host and guest ask for through MSRs, and the guest through hypercalls.
#include <cerrno>
#include <string>

#include "continuo/model/kvm_vm.h"

namespace continuo::model {

namespace {

using state::ErrorCode;

tl::unexpected<state::Error> unknown_msr(std::uint32_t msr) {
    return state::fail(ErrorCode::kUnsupported, "MSR " + std::to_string(msr),
                       "the model knows those that carry time, and this kernel must have it",
                       "Use IA32_TSC, IA32_TSC_ADJUST, or KVM's system time and wall clock");
}

}  // namespace

Status KvmVm::host_write_msr(unsigned vcpu, std::uint32_t msr, std::uint64_t value) {
    KvmVcpu& to = at(vcpu);
    load(to);
    auto written = write_msr(to, msr, value, true);
    put(to);
    return written;
}

Result<std::uint64_t> KvmVm::host_read_msr(unsigned vcpu, std::uint32_t msr) {
    KvmVcpu& from = at(vcpu);
    load(from);
    auto value = read_msr(from, msr);
    put(from);
    return value;
}

Status KvmVm::guest_write_msr(unsigned vcpu, std::uint32_t msr, std::uint64_t value) {
    KvmVcpu& writer = at(vcpu);
    leave_guest(writer);
    return write_msr(writer, msr, value, false);
}

Result<std::uint64_t> KvmVm::guest_read_msr(unsigned vcpu, std::uint32_t msr) {
    return read_msr(at(vcpu), msr);
}

/// The guest's TSC_ADJUST follows, as in the processor; nothing is synchronised, no page is
/// written.
void KvmVm::guest_write_tsc(KvmVcpu& vcpu, std::uint64_t value) {
    const std::uint64_t moved = offset_for(vcpu, value) - vcpu.map.offset();
    write_offset(vcpu, vcpu.map.offset() + moved);
    vcpu.tsc_adjust += moved;
}

void KvmVm::write_wall_clock(KvmVcpu& vcpu, std::uint64_t msr) {
    if (arch_.wall_clock_msr != msr) arch_.wall_clock = {};
    arch_.wall_clock_msr = msr;
    if (msr == 0) return;
    const std::uint64_t epoch = wall_clock_epoch(vcpu.thread_cpu);
    arch_.wall_clock.version = ((arch_.wall_clock.version + 1) | 1) + 1;
    arch_.wall_clock.sec = static_cast<std::uint32_t>(epoch / time::kNanosPerSecond);
    arch_.wall_clock.nsec = static_cast<std::uint32_t>(epoch % time::kNanosPerSecond);
}

/// A host's write says nothing of which number the guest knows.
void KvmVm::write_system_time(KvmVcpu& vcpu, std::uint64_t msr, bool old_msr, bool by_host) {
    if (index_of(vcpu) == 0 && !by_host) {
        if (arch_.boot_vcpu_runs_old_kvmclock != old_msr) vcpu.requests |= kMasterclockUpdate;
        arch_.boot_vcpu_runs_old_kvmclock = old_msr;
        if (rules_.counts_from_zero) count_from_zero(vcpu);
    }
    if (abi::system_time_gpa(msr) != abi::system_time_gpa(vcpu.system_time_msr)) vcpu.page = {};
    vcpu.system_time_msr = msr;
    vcpu.requests |= kGlobalClockUpdate;
}

Status KvmVm::write_msr(KvmVcpu& vcpu, std::uint32_t msr, std::uint64_t value, bool by_host) {
    switch (msr) {
        case abi::kMSR_IA32_TSC:
            if (by_host && !rules_.host_access_quirk)
                synchronize(vcpu, value);
            else
                guest_write_tsc(vcpu, value);
            return {};
        case abi::kMSR_IA32_TSC_ADJUST:
            if (!rules_.has_tsc_adjust) return unknown_msr(msr);
            if (!arch_.cpuid_tsc_adjust) return {};
            if (!by_host || rules_.host_access_quirk) {
                write_offset(vcpu, vcpu.map.offset() + (value - vcpu.tsc_adjust));
                vcpu.requests |= kClockUpdate;
            }
            vcpu.tsc_adjust = value;
            return {};
        case abi::kMSR_KVM_SYSTEM_TIME:
        case abi::kMSR_KVM_SYSTEM_TIME_NEW:
            write_system_time(vcpu, value, msr == abi::kMSR_KVM_SYSTEM_TIME, by_host);
            return {};
        case abi::kMSR_KVM_WALL_CLOCK:
        case abi::kMSR_KVM_WALL_CLOCK_NEW:
            write_wall_clock(vcpu, value);
            return {};
        default:
            return unknown_msr(msr);
    }
}

Result<std::uint64_t> KvmVm::read_msr(KvmVcpu& vcpu, std::uint32_t msr) {
    switch (msr) {
        case abi::kMSR_IA32_TSC:
            return vcpu.l1_tsc(read_tsc(vcpu));
        case abi::kMSR_IA32_TSC_ADJUST:
            if (!rules_.has_tsc_adjust) return unknown_msr(msr);
            return vcpu.tsc_adjust;
        case abi::kMSR_KVM_SYSTEM_TIME:
        case abi::kMSR_KVM_SYSTEM_TIME_NEW:
            return vcpu.system_time_msr;
        case abi::kMSR_KVM_WALL_CLOCK:
        case abi::kMSR_KVM_WALL_CLOCK_NEW:
            return arch_.wall_clock_msr;
        default:
            return unknown_msr(msr);
    }
}

Status KvmVm::kvmclock_ctrl(unsigned vcpu) {
    KvmVcpu& to = at(vcpu);
    load(to);
    const bool told = rules_.has_kvmclock_ctrl && set_guest_stopped(to);
    put(to);
    if (told) return {};
    if (!rules_.has_kvmclock_ctrl)
        return state::fail(ErrorCode::kUnsupported, "KVM_KVMCLOCK_CTRL",
                           "this kernel has no such call", "Tell the guest another way", ENOTTY);
    return state::fail(ErrorCode::kKernel, "KVM_KVMCLOCK_CTRL",
                       "the guest has not enabled kvmclock on this vCPU",
                       "Ask only for vCPUs whose system-time MSR is enabled", EINVAL);
}

/// kvm_set_guest_paused()
bool KvmVm::set_guest_stopped(KvmVcpu& vcpu) {
    if (!vcpu.page_active()) return false;
    vcpu.set_guest_stopped = true;
    vcpu.requests |= kClockUpdate;
    return true;
}

std::optional<abi::kvm_clock_pairing> KvmVm::clock_pairing(unsigned vcpu) {
    KvmVcpu& caller = at(vcpu);
    leave_guest(caller);
    if (caller.tsc_always_catchup || !platform_->tsc_clocksource()) return std::nullopt;
    const std::uint64_t tsc = read_tsc(caller);
    const std::int64_t real = platform_->realtime_ns(tsc);
    constexpr auto second = static_cast<std::int64_t>(time::kNanosPerSecond);
    abi::kvm_clock_pairing pairing{};
    pairing.sec = real / second;
    pairing.nsec = real % second;
    pairing.tsc = caller.l1_tsc(tsc);
    return pairing;
}

}  // namespace continuo::model
