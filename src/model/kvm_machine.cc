#include "continuo/model/kvm_machine.h"

#include <fmt/format.h>

#include <limits>

namespace continuo::model {

namespace {

using abi::pvclock_vcpu_time_info;
using machine::BracketedTsc;
using machine::WriteBracket;
using state::ErrorCode;
using state::Quirk;
using time::Count;
using time::GuestCounter;
using time::HostCounter;
using time::Instant;

tl::unexpected<state::Error> damaged(std::size_t vcpu, std::string what) {
    return state::fail(ErrorCode::kGuest, fmt::format("vCPU {}: pvclock page", vcpu),
                       std::move(what), "the kernel's own line of kvmclock can be used instead");
}

state::Quirks quirks_of(const KernelRules& rules) {
    state::Quirks quirks = 0;
    const auto add = [&](bool has, Quirk quirk) {
        if (has) quirks |= static_cast<state::Quirks>(quirk);
    };
    add(!rules.has_offset_attribute, Quirk::kNoTscOffset);
    add(rules.offset_stays_zero, Quirk::kTscOffsetIgnored);
    add(rules.offset_stays_zero, Quirk::kTscWriteIgnored);
    add(!rules.user_write_arms_sync, Quirk::kTscSyncOnFirstWrite);
    add(!rules.has_tsc_adjust, Quirk::kNoTscAdjust);
    add(!rules.has_kvmclock_ctrl, Quirk::kNoKvmclockCtrl);
    add(!rules.has_clock_triple, Quirk::kNoClockTriple);
    return quirks;
}

/// What KVM never leaves in a page: its multipliers have their top bit set.
Status check_page(std::size_t vcpu, const pvclock_vcpu_time_info& page) {
    constexpr std::uint32_t top_bit = 1U << 31;
    if (page.version == 0) return damaged(vcpu, "it was never written");
    if (abi::update_in_progress(page.version)) return damaged(vcpu, "its version is odd");
    if ((page.tsc_to_system_mul & top_bit) == 0)
        return damaged(vcpu, "its multiplier is one that KVM does not publish");
    return {};
}

}  // namespace

Status KvmMachine::known(std::size_t vcpu) const {
    if (vcpu < vm_.vcpu_count()) return {};
    return state::fail(ErrorCode::kInvalidArgument, fmt::format("vCPU {}", vcpu),
                       fmt::format("this machine has {}", vm_.vcpu_count()));
}

Result<machine::HostFacts> KvmMachine::host_facts() {
    machine::HostFacts facts;
    facts.architecture = state::Architecture::kX86_64;
    facts.identity = host_.identity;
    facts.counter_frequency = *time::Hz::from_khz(vm_.platform().tsc_khz());
    facts.scaling_frac_bits = vm_.rules().scaling_frac_bits;
    facts.masterclock = vm_.platform().tsc_clocksource();
    facts.quirks = quirks_of(vm_.rules());
    return facts;
}

Count<HostCounter> KvmMachine::now() {
    return Count<HostCounter>::from_raw(vm_.platform().tsc(vm_.vmm_cpu()));
}

Result<state::Anchor<HostCounter>> KvmMachine::anchor() {
    state::Anchor<HostCounter> anchor;
    anchor.counter = now();
    const auto utc = static_cast<std::uint64_t>(vm_.platform().realtime_ns(anchor.counter.raw()));
    anchor.tai = Instant<time::Tai>::from_raw(
        utc + static_cast<std::uint64_t>(host_.tai_offset_sec) * time::kNanosPerSecond);
    anchor.tai_bound_ns = host_.tai_bound_ns + 1;  // REALTIME is rounded down
    anchor.tai_offset_sec = host_.tai_offset_sec;
    anchor.synchronised = host_.synchronised;
    anchor.frequency = *time::Hz::from_khz(vm_.platform().tsc_khz());
    anchor.rate_bound_ppb = host_.rate_bound_ppb;
    return anchor;
}

Result<machine::VcpuClockState> KvmMachine::vcpu_state(std::size_t vcpu) {
    if (Status is = known(vcpu); !is) return tl::unexpected(is.error());
    const auto of = static_cast<unsigned>(vcpu);
    machine::VcpuClockState clocks;
    clocks.frequency = *time::Hz::from_khz(vm_.tsc_khz(of));
    if (vm_.rules().has_offset_attribute) {
        const auto map = tsc_map(vcpu);
        if (!map) return tl::unexpected(map.error());
        clocks.map = *map;
    }
    if (vm_.rules().has_tsc_adjust) {
        const auto adjust = vm_.host_read_msr(of, abi::kMSR_IA32_TSC_ADJUST);
        if (!adjust) return tl::unexpected(adjust.error());
        clocks.tsc_adjust = static_cast<std::int64_t>(*adjust);
    }
    clocks.system_time_msr = vm_.vcpu(of).system_time_msr;
    clocks.guest_stopped_pending = stopped_pending(of);
    return clocks;
}

/// Once KVM has updated the page since it was asked, the flag was there; and where it is gone, the
/// guest has seen it.
bool KvmMachine::stopped_pending(unsigned vcpu) const {
    if (!vm_.vcpu(vcpu).page_active()) return false;
    const pvclock_vcpu_time_info& page = vm_.page(vcpu);
    if ((page.flags & abi::kPVCLOCK_GUEST_STOPPED) != 0) return true;
    return stopped_[vcpu].asked && page.version == stopped_[vcpu].version;
}

Result<BracketedTsc> KvmMachine::read_tsc_by_value(std::size_t vcpu) {
    if (Status is = known(vcpu); !is) return tl::unexpected(is.error());
    BracketedTsc read;
    read.before = now();
    const auto value = vm_.host_read_msr(static_cast<unsigned>(vcpu), abi::kMSR_IA32_TSC);
    if (!value) return tl::unexpected(value.error());
    read.value = Count<GuestCounter>::from_raw(*value);
    read.after = now();
    return read;
}

Result<std::optional<time::PvclockLine>> KvmMachine::pvclock_page(std::size_t vcpu) {
    if (Status is = known(vcpu); !is) return tl::unexpected(is.error());
    const auto of = static_cast<unsigned>(vcpu);
    if (!vm_.vcpu(of).page_active()) return std::optional<time::PvclockLine>{};
    const pvclock_vcpu_time_info& page = vm_.page(of);
    if (Status sane = check_page(vcpu, page); !sane) return tl::unexpected(sane.error());
    const auto line = abi::pvclock_line(page);
    if (!line) return damaged(vcpu, "its shift is one that KVM does not publish");
    return line;
}

Result<machine::KvmclockReading> KvmMachine::kvmclock() {
    const abi::kvm_clock_data data = vm_.get_clock();
    machine::KvmclockReading reading;
    reading.clock = Instant<time::Kvmclock>::from_raw(data.clock);
    if ((data.flags & abi::kKVM_CLOCK_HOST_TSC) != 0)
        reading.host = Count<HostCounter>::from_raw(data.host_tsc);
    if ((data.flags & abi::kKVM_CLOCK_REALTIME) != 0)
        reading.realtime = Instant<time::Realtime>::from_raw(data.realtime);
    reading.stable = (data.flags & abi::kKVM_CLOCK_TSC_STABLE) != 0;
    return reading;
}

/// Neither refused by the kernel nor given by catching up, which no map describes.
bool KvmMachine::scalable(std::uint64_t khz) const {
    if (khz == 0 || khz > std::numeric_limits<std::uint32_t>::max()) return false;
    return vm_.rules().scaling_frac_bits ||
           time::within_tsc_tolerance(static_cast<std::uint32_t>(khz), vm_.platform().tsc_khz());
}

Status KvmMachine::set_tsc_khz(std::size_t vcpu, std::uint64_t khz) {
    if (Status is = known(vcpu); !is) return is;
    const auto of = static_cast<unsigned>(vcpu);
    const std::uint32_t before = vm_.tsc_khz(of);
    if (before == khz) return {};
    if (!scalable(khz))
        return state::fail(ErrorCode::kUnsupported, fmt::format("vCPU {} KVM_SET_TSC_KHZ", vcpu),
                           fmt::format("{} kHz cannot be had on this host", khz),
                           "choose a destination with TSC scaling or the same frequency");
    Status set = vm_.set_tsc_khz(of, static_cast<std::uint32_t>(khz));
    if (!set) {
        // The error to report is the first one.
        [[maybe_unused]] const Status back = vm_.set_tsc_khz(of, before);
    }
    return set;
}

Status KvmMachine::set_tsc_adjust(std::size_t vcpu, std::int64_t value) {
    if (Status is = known(vcpu); !is) return is;
    return vm_.host_write_msr(static_cast<unsigned>(vcpu), abi::kMSR_IA32_TSC_ADJUST,
                              static_cast<std::uint64_t>(value));
}

Status KvmMachine::set_tsc_offset(std::size_t vcpu, std::uint64_t offset) {
    if (Status is = known(vcpu); !is) return is;
    return vm_.set_tsc_offset(static_cast<unsigned>(vcpu), offset);
}

Result<TscMap> KvmMachine::tsc_map(std::size_t vcpu) {
    if (Status is = known(vcpu); !is) return tl::unexpected(is.error());
    const auto of = static_cast<unsigned>(vcpu);
    const auto offset = vm_.tsc_offset(of);
    if (!offset) return tl::unexpected(offset.error());
    const auto map =
        time::kvm_tsc_map(vm_.tsc_khz(of), vm_.platform().tsc_khz(), vm_.rules().scaling_frac_bits);
    return map.value_or(TscMap{0}).with_offset(*offset);
}

Result<WriteBracket> KvmMachine::write_tsc_by_value(std::size_t vcpu, Count<GuestCounter> value) {
    if (Status is = known(vcpu); !is) return tl::unexpected(is.error());
    WriteBracket bracket;
    bracket.before = now();
    const Status written =
        vm_.host_write_msr(static_cast<unsigned>(vcpu), abi::kMSR_IA32_TSC, value.raw());
    if (!written) return tl::unexpected(written.error());
    bracket.after = now();
    return bracket;
}

Status KvmMachine::set_kvmclock(Instant<time::Kvmclock> clock) {
    abi::kvm_clock_data data{};
    data.clock = clock.raw();
    return vm_.set_clock(data);
}

Status KvmMachine::signal_guest_stopped(std::size_t vcpu) {
    if (Status is = known(vcpu); !is) return is;
    const auto of = static_cast<unsigned>(vcpu);
    if (Status asked = vm_.kvmclock_ctrl(of); !asked) return asked;
    stopped_[of] = StoppedRequest{true, vm_.page(of).version};
    return {};
}

Status KvmMachine::settle() {
    for (unsigned i = 0; i < vm_.vcpu_count(); ++i)
        vm_.settle(i);
    return {};
}

}  // namespace continuo::model
