#include "continuo/model/kvm_arm_machine.h"

#include <fmt/format.h>

namespace continuo::model {

namespace {

using machine::BracketedTsc;
using machine::WriteBracket;
using state::ErrorCode;
using time::Count;
using time::GuestCounter;
using time::HostCounter;
using time::TscMap;

tl::unexpected<state::Error> of_x86(std::string where) {
    return state::fail(ErrorCode::kUnsupported, std::move(where), "arm64 has none");
}

std::uint64_t apart(std::uint64_t a, std::uint64_t b) {
    return time::Ticks<GuestCounter>::from_raw(static_cast<std::int64_t>(a - b)).magnitude();
}

bool inside(const TscMap& map, const BracketedTsc& read) {
    return (read.value - map.at(read.before)).raw() >= 0 &&
           (map.at(read.after) - read.value).raw() >= 0;
}

}  // namespace

KvmArmMachine::KvmArmMachine(ArmHost& host, KvmArm& vm, unsigned vcpus, bool own_counter,
                             ArmCallCost cost)
    : host_{host}, vm_{vm}, random_{cost.seed}, call_ticks_max_{cost.ticks_max} {
    if (own_counter && vm_.set_counter_offset({host_.counter, 0}))
        owned_ = TscMap{0 - host_.counter};
    for (unsigned i = 0; i < vcpus; ++i)
        CONTINUO_CHECK(vm_.create_vcpu());
}

void KvmArmMachine::pass_time() {
    host_.counter +=
        static_cast<std::uint64_t>(random_.between(0, static_cast<std::int64_t>(call_ticks_max_)));
}

time::Hz KvmArmMachine::stated() const {
    return *time::Hz::from_hz(host_.cntfrq_of(0));
}

Status KvmArmMachine::known(std::size_t vcpu) const {
    if (vcpu < vm_.vcpus()) return {};
    return state::fail(ErrorCode::kInvalidArgument, fmt::format("vCPU {}", vcpu),
                       fmt::format("this machine has {}", vm_.vcpus()));
}

Result<machine::HostFacts> KvmArmMachine::host_facts() {
    machine::HostFacts facts;
    facts.architecture = state::Architecture::kArm64;
    facts.identity = host_.identity;
    facts.counter_frequency = stated();
    facts.masterclock = false;
    const auto add = [&](state::Quirk quirk) { facts.quirks |= static_cast<state::Quirks>(quirk); };
    if (by_value()) add(state::Quirk::kNoTscOffset);
    if (!by_value()) add(state::Quirk::kTscWriteIgnored);  // from the first offset on
    const bool reads_the_hosts =
        host_.mode == ArmMode::kProtected ||
        (host_.mode == ArmMode::kVhe && host_.ecv_cntpoff && host_.cntpoff_without_effect);
    if (by_value() || reads_the_hosts) add(state::Quirk::kPhysicalCounterFixed);
    return facts;
}

Count<HostCounter> KvmArmMachine::now() {
    pass_time();
    return Count<HostCounter>::from_raw(host_.counter - host_.user_offset);
}

Result<state::Anchor<HostCounter>> KvmArmMachine::anchor() {
    round_.reset();
    constexpr std::uint64_t kTaiOffsetSec = 37;
    state::Anchor<HostCounter> anchor;
    anchor.counter = now();
    anchor.frequency = stated();
    anchor.tai = time::Instant<time::Tai>::from_raw(host_.realtime_ns(host_.counter) +
                                                    kTaiOffsetSec * time::kNanosPerSecond);
    anchor.tai_bound_ns = 1;  // rounded down
    anchor.tai_offset_sec = static_cast<std::int32_t>(kTaiOffsetSec);
    return anchor;
}

Result<BracketedTsc> KvmArmMachine::read_register(std::size_t vcpu, std::uint64_t id) {
    const auto before = now();
    pass_time();
    const auto value = vm_.one_reg(static_cast<unsigned>(vcpu), id);
    if (!value) return tl::unexpected(value.error());
    return BracketedTsc{before, Count<GuestCounter>::from_raw(*value), now()};
}

Status KvmArmMachine::confirm(std::size_t vcpu, std::uint64_t id) {
    const auto read = read_register(vcpu, id);
    if (!read) return tl::unexpected(read.error());
    if (inside(*owned_, *read)) return {};
    return state::fail(ErrorCode::kKernel, fmt::format("vCPU {}: register {:#x}", vcpu, id),
                       fmt::format("it is {} ticks off the offset that was set, in a bracket of {}",
                                   (read->value - owned_->at(read->before)).raw(),
                                   (read->after - read->before).magnitude()),
                       "This host's user space sees another counter than KVM: do not plan by it");
}

Result<TscMap> KvmArmMachine::tsc_map(std::size_t vcpu) {
    if (Status is = known(vcpu); !is) return tl::unexpected(is.error());
    if (by_value())
        return state::fail(ErrorCode::kUnsupported, fmt::format("vCPU {}: counter offset", vcpu),
                           "this VM's counter is the kernel's, and no call reads its offset");
    for (const std::uint64_t id : {abi::kKVM_REG_ARM_TIMER_CNT, abi::kKVM_REG_ARM_PTIMER_CNT})
        if (Status seen = confirm(vcpu, id); !seen) return tl::unexpected(seen.error());
    return *owned_;
}

Result<machine::VcpuClockState> KvmArmMachine::vcpu_state(std::size_t vcpu) {
    if (Status is = known(vcpu); !is) return tl::unexpected(is.error());
    machine::VcpuClockState clocks;
    clocks.frequency = stated();
    if (by_value()) return clocks;
    const auto map = tsc_map(vcpu);
    if (!map) return tl::unexpected(map.error());
    clocks.map = *map;
    return clocks;
}

Result<BracketedTsc> KvmArmMachine::read_tsc_by_value(std::size_t vcpu) {
    if (Status is = known(vcpu); !is) return tl::unexpected(is.error());
    return read_register(vcpu, abi::kKVM_REG_ARM_TIMER_CNT);
}

KvmArmMachine::Round* KvmArmMachine::round_of(std::size_t vcpu) {
    return round_ && (round_->written & 1U << vcpu) == 0 ? &*round_ : nullptr;
}

Status KvmArmMachine::disagree(std::size_t vcpu, std::uint64_t offset) const {
    return state::fail(
        ErrorCode::kInvalidArgument, fmt::format("vCPU {}: counter offset", vcpu),
        fmt::format("it is to be {} ticks apart from the vCPUs before it, and KVM on arm64 has one "
                    "offset for all",
                    apart(offset, round_->offset)),
        "Give all vCPUs of the record one counter");
}

Status KvmArmMachine::set_tsc_offset(std::size_t vcpu, std::uint64_t offset) {
    if (Status is = known(vcpu); !is) return is;
    pass_time();
    if (Round* round = round_of(vcpu)) {
        if (round->offset != offset) return disagree(vcpu, offset);
        round->written |= 1U << vcpu;
        return {};
    }
    if (Status set = vm_.set_counter_offset({0 - offset, 0}); !set) return set;
    owned_ = TscMap{offset};
    round_ = Round{offset, 1U << vcpu, {}};
    return {};
}

Result<WriteBracket> KvmArmMachine::write_tsc_by_value(std::size_t vcpu,
                                                       Count<GuestCounter> value) {
    if (Status is = known(vcpu); !is) return tl::unexpected(is.error());
    if (!by_value())
        return state::fail(ErrorCode::kUnsupported, fmt::format("vCPU {}: CNTVCT_EL0", vcpu),
                           "the kernel drops such writes once an offset was set",
                           "Set the offset instead");
    const auto before = now();
    const std::uint64_t offset = value.raw() - before.raw();
    if (Round* round = round_of(vcpu)) {
        // Of one line, a later write is the first one's value and the time since, give or take what
        // either was led by; KVM on x86-64 takes a second for that.
        const std::uint64_t since = (before - round->bracket.before).magnitude();
        if (apart(offset, round->offset) > since + stated().hz()) {
            const Status refused = disagree(vcpu, offset);
            return tl::unexpected(refused.error());
        }
        round->written |= 1U << vcpu;
        return round->bracket;
    }
    pass_time();
    const Status written =
        vm_.set_one_reg(static_cast<unsigned>(vcpu), abi::kKVM_REG_ARM_TIMER_CNT, value.raw());
    if (!written) return tl::unexpected(written.error());
    round_ = Round{offset, 1U << vcpu, {before, now()}};
    return round_->bracket;
}

Status KvmArmMachine::set_tsc_khz(std::size_t vcpu, std::uint64_t khz) {
    if (Status is = known(vcpu); !is) return is;
    if (khz == stated().floor_khz()) return {};
    return state::fail(ErrorCode::kUnsupported, fmt::format("vCPU {}: CNTFRQ_EL0", vcpu),
                       fmt::format("{} kHz on a host of {} Hz, and nothing scales the counter", khz,
                                   stated().hz()),
                       "choose a destination of the same CNTFRQ");
}

Result<std::optional<time::PvclockLine>> KvmArmMachine::pvclock_page(std::size_t vcpu) {
    if (Status is = known(vcpu); !is) return tl::unexpected(is.error());
    return std::optional<time::PvclockLine>{};
}

Result<machine::KvmclockReading> KvmArmMachine::kvmclock() {
    return of_x86("kvmclock");
}

Status KvmArmMachine::set_kvmclock(time::Instant<time::Kvmclock>) {
    return of_x86("kvmclock");
}

Status KvmArmMachine::set_tsc_adjust(std::size_t vcpu, std::int64_t) {
    return of_x86(fmt::format("vCPU {}: IA32_TSC_ADJUST", vcpu));
}

Status KvmArmMachine::signal_guest_stopped(std::size_t vcpu) {
    return of_x86(fmt::format("vCPU {}: GUEST_STOPPED", vcpu));
}

}  // namespace continuo::model
