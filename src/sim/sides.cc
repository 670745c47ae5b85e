#include "continuo/sim/sides.h"

#include <algorithm>

namespace continuo::sim {

namespace {

using state::ErrorCode;
using time::Count;
using time::HostCounter;
using time::Instant;

model::KvmMachineHost described(const Host& host) {
    return {host.identity(), host.tai_bound_ns(), host.tai_offset_sec(), host.spec().synchronised,
            host.spec().rate_bound_ppb};
}

tl::unexpected<state::Error> given_up() {
    return state::fail(ErrorCode::kTimeout, "scenario", "a limit was reached");
}

}  // namespace

SimMachine::SimMachine(World& world, Host& host, model::KvmVm& vm)
    : world_{world}, host_{host}, vm_{vm}, inner_{vm, described(host)} {}

/// One call of the port: before it and after it the thread can lose its processor, and beyond the
/// scenario's limit every call fails, so that no loop above runs on.
template <class Call>
auto SimMachine::step(Site site, Call call) {
    world_.before(site);
    auto answer = call();
    world_.after(site);
    if (world_.over()) answer = given_up();
    return answer;
}

state::Result<machine::HostFacts> SimMachine::host_facts() {
    auto facts = inner_.host_facts();
    // The model says what its rules are; whether this VM can have a masterclock is the host's.
    if (facts) facts->masterclock = host_.tsc_clocksource();
    return facts;
}

/// The narrowest of three brackets, as on a real host; its half is in the bound.
state::Result<state::Anchor<HostCounter>> SimMachine::anchor() {
    state::Anchor<HostCounter> best;
    std::uint64_t narrowest = ~std::uint64_t{0};
    const int brackets = world_.has(Bug::kAnchorNotBracketed) ? 1 : 3;
    for (int i = 0; i < brackets; ++i) {
        const std::uint64_t first = host_.tsc(0);
        world_.before(Site::kReadAnchor);
        const std::uint64_t tai = clock_of_host();
        world_.after(Site::kReadAnchor);
        const std::uint64_t last = host_.tsc(0);
        if (last - first >= narrowest) continue;
        narrowest = last - first;
        best.counter = Count<HostCounter>::from_raw(first + narrowest / 2);
        best.tai = Instant<time::Tai>::from_raw(tai);
    }
    if (world_.over()) return given_up();
    best.frequency = *time::Hz::from_khz(host_.khz());
    const auto nanos = time::clock_line(Count<HostCounter>{}, Instant<time::Tai>{}, best.frequency);
    const std::uint64_t half =
        nanos.ceil_at(Count<HostCounter>::from_raw(narrowest - narrowest / 2)).raw();
    best.tai_bound_ns = host_.tai_bound_ns() + 1 + half;
    best.tai_offset_sec = world_.has(Bug::kTaiOffsetForgotten) ? 37 : host_.tai_offset_sec();
    if (world_.has(Bug::kAnchorNotBracketed)) {
        best.counter = Count<HostCounter>::from_raw(best.counter.raw() - narrowest / 2);
        best.tai_bound_ns = host_.tai_bound_ns();
    }
    best.synchronised = host_.spec().synchronised;
    best.rate_bound_ppb = host_.spec().rate_bound_ppb;
    if (!world_.has(Bug::kSuspendForgotten))
        best.suspended_ns = static_cast<std::uint64_t>(host_.slept_ns());
    return best;
}

/// CLOCK_TAI, or what a VMM that goes by UTC takes for it.
std::uint64_t SimMachine::clock_of_host() {
    if (!world_.has(Bug::kUtcInsteadOfTai)) return host_.tai_now_ns();
    return static_cast<std::uint64_t>(host_.realtime_now_ns(0)) + 37 * time::kNanosPerSecond;
}

state::Result<machine::VcpuClockState> SimMachine::vcpu_state(std::size_t vcpu) {
    return step(Site::kReadVcpu, [&] { return inner_.vcpu_state(vcpu); });
}

state::Result<machine::BracketedTsc> SimMachine::read_tsc_by_value(std::size_t vcpu) {
    machine::BracketedTsc bracket;
    bracket.before = now();
    auto read = step(Site::kReadTsc, [&] { return inner_.read_tsc_by_value(vcpu); });
    if (!read) return read;
    bracket.value = read->value;
    bracket.after = now();
    return bracket;
}

state::Result<std::optional<time::PvclockLine>> SimMachine::pvclock_page(std::size_t vcpu) {
    return step(Site::kReadPage, [&] { return inner_.pvclock_page(vcpu); });
}

state::Result<machine::KvmclockReading> SimMachine::kvmclock() {
    auto reading = step(Site::kGetClock,
                        [&] { return state::Result<machine::KvmclockReading>{inner_.kvmclock()}; });
    if (reading && reading->host && world_.fault(Fault::kClockAnswer)) {
        world_.kernel_lied = true;
        reading->host = Count<HostCounter>::from_raw(world_.random.next());
    }
    return reading;
}

state::Status SimMachine::set_tsc_khz(std::size_t vcpu, std::uint64_t khz) {
    if (world_.has(Bug::kFrequencyNotSet)) return {};
    return step(Site::kSetTscKhz, [&] { return inner_.set_tsc_khz(vcpu, khz); });
}

state::Status SimMachine::set_tsc_adjust(std::size_t vcpu, std::int64_t value) {
    if (world_.has(Bug::kTscAdjustForgotten)) return {};
    return step(Site::kSetTscAdjust, [&] { return inner_.set_tsc_adjust(vcpu, value); });
}

state::Status SimMachine::set_tsc_offset(std::size_t vcpu, std::uint64_t offset) {
    if (world_.fault(Fault::kOffsetIgnored)) {
        world_.kernel_lied = true;
        if (world_.has(Bug::kReadbackIgnored)) claimed_[vcpu] = offset;
        return {};
    }
    const bool last = vcpu + 1 == vcpu_count() && vcpu != 0;
    if (last && world_.has(Bug::kOffsetWriteSkipsVcpu)) {
        claimed_[vcpu] = offset;
        return {};
    }
    if (vcpu != 0 && world_.has(Bug::kOffsetFromWrongVcpu)) {
        claimed_[vcpu] = offset;
        offset = vm_.tsc_map(0).offset();
    }
    return step(Site::kSetTscOffset, [&] { return inner_.set_tsc_offset(vcpu, offset); });
}

state::Result<time::TscMap> SimMachine::tsc_map(std::size_t vcpu) {
    auto map = step(Site::kReadVcpu, [&] { return inner_.tsc_map(vcpu); });
    if (map && claimed_[vcpu]) map = map->with_offset(*claimed_[vcpu]);
    return map;
}

state::Result<machine::WriteBracket> SimMachine::write_tsc_by_value(
    std::size_t vcpu, Count<time::GuestCounter> value) {
    machine::WriteBracket bracket;
    bracket.before = now();
    auto written = step(Site::kWriteTsc, [&] { return inner_.write_tsc_by_value(vcpu, value); });
    if (!written) return written;
    bracket.after = now();
    return bracket;
}

state::Status SimMachine::set_kvmclock(Instant<time::Kvmclock> clock) {
    return step(Site::kSetClock, [&] { return inner_.set_kvmclock(clock); });
}

state::Status SimMachine::signal_guest_stopped(std::size_t vcpu) {
    return step(Site::kKvmclockCtrl, [&] { return inner_.signal_guest_stopped(vcpu); });
}

state::Status SimMachine::settle() {
    if (world_.has(Bug::kNoSettleBeforeTrim)) return {};
    for (unsigned vcpu = 0; vcpu < vm_.vcpu_count(); ++vcpu) {
        world_.before(Site::kSettle);
        vm_.settle(vcpu);
        world_.after(Site::kSettle);
    }
    if (world_.over()) return given_up();
    return {};
}

std::uint64_t VmmSide::realtime_ns() {
    world_.before(Site::kReadAnchor);
    const auto ns = static_cast<std::uint64_t>(host_.realtime_now_ns(0));
    world_.after(Site::kReadAnchor);
    return ns;
}

std::uint64_t VmmSide::tai_ns() {
    world_.before(Site::kReadAnchor);
    const std::uint64_t ns = host_.tai_now_ns();
    world_.after(Site::kReadAnchor);
    return ns;
}

abi::kvm_clock_data VmmSide::get_clock() {
    world_.before(Site::kGetClock);
    const abi::kvm_clock_data data = vm_.get_clock();
    world_.after(Site::kGetClock);
    return data;
}

void VmmSide::set_clock(const abi::kvm_clock_data& data) {
    world_.before(Site::kSetClock);
    (void)vm_.set_clock(data);
    world_.after(Site::kSetClock);
}

std::uint64_t VmmSide::read_tsc(unsigned vcpu) {
    world_.before(Site::kReadTsc);
    const auto value = vm_.host_read_msr(vcpu, abi::kMSR_IA32_TSC);
    world_.after(Site::kReadTsc);
    return value.value_or(0);
}

void VmmSide::write_tsc(unsigned vcpu, std::uint64_t value) {
    world_.before(Site::kWriteTsc);
    const std::uint64_t offset = vm_.arch().cur_tsc_offset;
    (void)vm_.host_write_msr(vcpu, abi::kMSR_IA32_TSC, value);
    if (vcpu != 0 && vm_.tsc_map(vcpu).offset() == offset) world_.reached(Probe::kWriteSnapped);
    world_.after(Site::kWriteTsc);
}

std::int64_t VmmSide::read_adjust(unsigned vcpu) {
    world_.before(Site::kReadVcpu);
    const auto value = vm_.host_read_msr(vcpu, abi::kMSR_IA32_TSC_ADJUST);
    world_.after(Site::kReadVcpu);
    return static_cast<std::int64_t>(value.value_or(0));
}

void VmmSide::write_adjust(unsigned vcpu, std::int64_t value) {
    if (world_.has(Bug::kTscAdjustForgotten)) return;
    world_.before(Site::kSetTscAdjust);
    (void)vm_.host_write_msr(vcpu, abi::kMSR_IA32_TSC_ADJUST, static_cast<std::uint64_t>(value));
    world_.after(Site::kSetTscAdjust);
}

std::uint64_t VmmSide::read_offset(unsigned vcpu) {
    world_.before(Site::kReadVcpu);
    const auto offset = vm_.tsc_offset(vcpu);
    world_.after(Site::kReadVcpu);
    return offset.value_or(0);
}

bool VmmSide::write_offset(unsigned vcpu, std::uint64_t offset) {
    world_.before(Site::kSetTscOffset);
    const bool done = vm_.set_tsc_offset(vcpu, offset).has_value();
    world_.after(Site::kSetTscOffset);
    return done;
}

std::uint32_t VmmSide::tsc_khz(unsigned vcpu) {
    world_.before(Site::kReadVcpu);
    const std::uint32_t khz = vm_.tsc_khz(vcpu);
    world_.after(Site::kReadVcpu);
    return khz;
}

bool VmmSide::set_tsc_khz(unsigned vcpu, std::uint32_t khz) {
    if (world_.has(Bug::kFrequencyNotSet)) return true;
    world_.before(Site::kSetTscKhz);
    const bool done = vm_.set_tsc_khz(vcpu, khz).has_value();
    world_.after(Site::kSetTscKhz);
    return done;
}

void VmmSide::ctrl(unsigned vcpu) {
    world_.before(Site::kKvmclockCtrl);
    (void)vm_.kvmclock_ctrl(vcpu);
    world_.after(Site::kKvmclockCtrl);
}

model::TscState VmmSide::tsc_state(unsigned vcpu) {
    world_.before(Site::kReadVcpu);
    const auto state = vm_.tsc_state(vcpu);
    world_.after(Site::kReadVcpu);
    return state.value_or(model::TscState{});
}

void VmmSide::set_tsc_state(unsigned vcpu, const Saved::Vcpu& from) {
    model::TscState state;
    state.flags = model::TscState::kTimestampValid | model::TscState::kTscAdjustValid;
    state.nsec = from.nanoseconds;
    state.tsc = from.tsc;
    state.tsc_adjust = static_cast<std::uint64_t>(from.tsc_adjust);
    world_.before(Site::kWriteTsc);
    (void)vm_.set_tsc_state(vcpu, state);
    world_.after(Site::kWriteTsc);
}

void DestinationSide::publish(std::int64_t delta_ns, std::int64_t gap_ns, std::uint64_t sequence) {
    think(Site::kPublishNotice);
    Guest& guest = world_.guest;
    if (guest.notice.pending()) world_.reached(Probe::kNoticeWhileOdd);
    // A restore that is repeated says again what it said, and adds nothing.
    if (published_) return;
    guest.notice.publish(delta_ns, gap_ns, sequence, guest.accounted_ns, world_.bug);
    published_ = true;
}

}  // namespace continuo::sim
