// What was proposed for KVM's clocks and is in no kernel: each behind a switch of KernelRules. The
// facts are those of the patches: "Precise TSC migration" (Levitsky, 2020) with its value in force
// from the first entry on, as Bonzini asked; KVM_GET_CLOCK_GUEST, KVM_SET_CLOCK_GUEST (Allister,
// Woodhouse, from 2024 on); KVM_VCPU_TSC_SCALE (Woodhouse, 2023); and one that was merged for a
// release and taken back, "zero kvmclock_offset when vcpu0 initializes kvmclock system MSR"
// (Tosatti, 2015).
#include <cerrno>

#include "continuo/model/kvm_vm.h"

namespace continuo::model {

namespace {

using state::ErrorCode;

tl::unexpected<state::Error> not_here(std::string call) {
    return state::fail(ErrorCode::kUnsupported, std::move(call), "no kernel has this call",
                       "Switch the proposal on in the rules", ENOTTY);
}

tl::unexpected<state::Error> invalid(std::string call, std::string what, std::string advice) {
    return state::fail(ErrorCode::kKernel, std::move(call), std::move(what), std::move(advice),
                       EINVAL);
}

constexpr const char* kSetClockGuest = "KVM_SET_CLOCK_GUEST";
constexpr const char* kGetClockGuest = "KVM_GET_CLOCK_GUEST";

/// Hz of the counter that a page's scale is for: 10^9 * 2^32 / mul, shifted back. Domain: mul not
/// 0, shift from -32 to 32.
std::uint64_t page_hz(const abi::pvclock_vcpu_time_info& page) {
    const time::u128 ticks = (time::u128{time::kNanosPerSecond} << 64) / page.tsc_to_system_mul;
    return static_cast<std::uint64_t>(ticks >> (32 + page.tsc_shift));
}

}  // namespace

std::int64_t KvmVm::realtime_at(const KvmVcpu& vcpu, std::uint64_t tsc) {
    return platform_->tsc_clocksource() ? platform_->realtime_ns(tsc)
                                        : platform_->realtime_now_ns(vcpu.thread_cpu);
}

Result<TscState> KvmVm::tsc_state(unsigned vcpu) {
    if (!rules_.precise_tuple) return not_here("KVM_GET_TSC_STATE");
    KvmVcpu& from = at(vcpu);
    load(from);
    TscState state;
    state.flags = TscState::kTimestampValid;
    const std::uint64_t host = read_tsc(from);
    state.nsec = static_cast<std::uint64_t>(realtime_at(from, host));
    state.tsc = from.l1_tsc(host);
    if (rules_.has_tsc_adjust) {
        state.tsc_adjust = from.tsc_adjust;
        state.flags |= TscState::kTscAdjustValid;
    }
    put(from);
    return state;
}

Status KvmVm::set_tsc_state(unsigned vcpu, const TscState& state) {
    if (!rules_.precise_tuple) return not_here("KVM_SET_TSC_STATE");
    if ((state.flags & ~(TscState::kTimestampValid | TscState::kTscAdjustValid)) != 0)
        return invalid("KVM_SET_TSC_STATE", "an unknown flag",
                       "Hand in what KVM_GET_TSC_STATE gave");
    KvmVcpu& to = at(vcpu);
    load(to);
    to.tsc_state = state;
    to.requests |= kTscStateWrite;
    put(to);
    return {};
}

void KvmVm::apply_tsc_state(KvmVcpu& vcpu) {
    const TscState& state = vcpu.tsc_state;
    vcpu.requests &= static_cast<Requests>(~kTscStateWrite);
    const std::uint64_t host = read_tsc(vcpu);
    std::uint64_t value = state.tsc;
    if ((state.flags & TscState::kTimestampValid) != 0) {
        const std::uint64_t now = static_cast<std::uint64_t>(realtime_at(vcpu, host));
        const auto passed = static_cast<std::int64_t>(now - state.nsec);
        value = passed >= 0 ? value + vcpu.ns_to_ticks.wrap_ns(now - state.nsec)
                            : value - vcpu.ns_to_ticks.wrap_ns(state.nsec - now);
    }
    write_offset(vcpu, value - vcpu.scaled(host));
    if ((state.flags & TscState::kTscAdjustValid) != 0 && rules_.has_tsc_adjust)
        vcpu.tsc_adjust = state.tsc_adjust;
    vcpu.requests |= kClockUpdate;
}

Result<abi::pvclock_vcpu_time_info> KvmVm::clock_guest(unsigned vcpu) {
    if (!rules_.clock_guest_handover) return not_here(kGetClockGuest);
    KvmVcpu& from = at(vcpu);
    load(from);
    // The scale is that of the last update, so one that waits is carried out first.
    const bool fresh = (from.requests & kClockUpdate) == 0 && from.hw_khz != 0;
    const bool known = fresh || publish(from);
    if (known) from.requests &= static_cast<Requests>(~kClockUpdate);
    put(from);
    if (!known || !arch_.use_master_clock)
        return invalid(kGetClockGuest, "the VM has no masterclock, so no line of the guest's TSC",
                       "Use KVM_GET_CLOCK");
    const auto host = time::Count<time::HostCounter>::from_raw(arch_.master_cycle_now);
    const time::PvclockLine line{
        from.map.at(host),
        time::Instant<time::Kvmclock>::from_raw(kvmclock_at(arch_.master_kernel_ns)),
        from.page_scale};
    return abi::pvclock_page(line, 0, abi::kPVCLOCK_TSC_STABLE_BIT);
}

/// The page is for a counter of this vCPU's frequency, to 1 kHz either way.
bool KvmVm::describes(const KvmVcpu& vcpu, const abi::pvclock_vcpu_time_info& page) {
    constexpr std::uint64_t slack_hz = 1000;
    const std::uint64_t hz = vcpu.map.wrap_scale(std::uint64_t{cpu_khz(vcpu.thread_cpu)} * 1000);
    const std::uint64_t asked = page_hz(page);
    return hz != 0 && asked + slack_hz >= hz && asked <= hz + slack_hz;
}

Status KvmVm::set_clock_guest(unsigned vcpu, const abi::pvclock_vcpu_time_info& page) {
    if (!rules_.clock_guest_handover) return not_here(kSetClockGuest);
    const auto line = abi::pvclock_line(page);
    const bool padded = page.pad0 != 0 || page.pad[0] != 0 || page.pad[1] != 0;
    if (padded || page.tsc_to_system_mul == 0 || !line || page.tsc_shift < -32)
        return invalid(kSetClockGuest, "padding is not 0, or the scale is none",
                       "Hand in what KVM_GET_CLOCK_GUEST gave");
    KvmVcpu& to = at(vcpu);
    load(to);
    begin_update();
    sample_masterclock(to.thread_cpu);
    const bool master = arch_.use_master_clock;
    const bool fits = master && describes(to, page);
    if (fits) {
        const std::uint64_t tsc = to.l1_tsc(arch_.master_cycle_now);
        const std::uint64_t wanted =
            page.system_time + line->scale().wrap_ns(tsc - page.tsc_timestamp);
        arch_.kvmclock_offset =
            static_cast<std::int64_t>(wanted - static_cast<std::uint64_t>(arch_.master_kernel_ns));
    }
    end_update();
    put(to);
    if (fits) return {};
    if (!master) return invalid(kSetClockGuest, "the VM has no masterclock", "Use KVM_SET_CLOCK");
    return state::fail(ErrorCode::kKernel, kSetClockGuest,
                       "the page is for another frequency than this vCPU's",
                       "Set the frequency first, or use KVM_SET_CLOCK", ERANGE);
}

Result<abi::kvm_vcpu_tsc_scale> KvmVm::tsc_scale(unsigned vcpu) {
    if (!rules_.tsc_scale_attribute || !rules_.scaling_frac_bits)
        return state::fail(ErrorCode::kUnsupported, "KVM_VCPU_TSC_SCALE",
                           "the processor does not scale, or the kernel has no such attribute",
                           "Compute the ratio from KVM_GET_TSC_KHZ", ENXIO);
    const TscMap& map = ioctl(vcpu).map;
    const auto bits = static_cast<std::uint64_t>(*rules_.scaling_frac_bits);
    return abi::kvm_vcpu_tsc_scale{map.scales() ? map.ratio() : std::uint64_t{1} << bits, bits};
}

/// vCPU 0's guest has written the system-time MSR: kvmclock of the whole VM is 0 from here on, in
/// the pages whenever each is written next.
void KvmVm::count_from_zero(const KvmVcpu& vcpu) {
    arch_.kvmclock_offset = -platform_->base_now_ns(vcpu.thread_cpu);
}

}  // namespace continuo::model
