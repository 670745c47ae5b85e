#include "judge.h"

#include <xxhash.h>

#include <algorithm>
#include <limits>

namespace continuo::sim {

namespace {

using time::Count;
using time::GuestCounter;
using time::HostCounter;
using time::i128;
using time::TscMap;
using time::u128;

constexpr std::int64_t kMicrosecond = 1'000;
constexpr std::int64_t kMillisecond = 1'000'000;
/// From the agent's answer to the NTP daemon's new sample (S1.7: at once).
constexpr std::int64_t kResynchroniseNs = 50 * kMillisecond;
/// What REALTIME may be off and still be no stale value to anybody.
constexpr std::int64_t kStaleNs = kMillisecond;

/// Saturates: a clock that is 2^63 ns off is off.
std::int64_t size(std::int64_t value) {
    constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
    if (value >= 0) return value;
    return value == std::numeric_limits<std::int64_t>::min() ? most : -value;
}
std::int64_t larger(std::int64_t a, std::int64_t b) {
    return size(a) >= size(b) ? a : b;
}
std::int64_t saturated(std::uint64_t value) {
    return static_cast<std::int64_t>(std::min(value, std::uint64_t{1} << 62));
}
std::int64_t ns_between(TrueTime from, TrueTime to) {
    return floor_ns(to - from);
}

}  // namespace

Judge::Judge(World& world, const Strategy& strategy, RunResult& result)
    : world_{world},
      strategy_{strategy},
      result_{result},
      tsc_{Invariant::kCounterPerVcpu, Invariant::kCounterAcrossVcpus,
           span_ns(world.scenario.ordered_read_ns)},
      kvmclock_{Invariant::kKvmclockMonotonic, Invariant::kKvmclockMonotonic,
                span_ns(world.scenario.ordered_read_ns)},
      monotonic_{Invariant::kMonotonicNoStep, Invariant::kMonotonicNoStep,
                 span_ns(world.scenario.ordered_read_ns)},
      source_maps_{TscMap{0}, TscMap{0}, TscMap{0}, TscMap{0},
                   TscMap{0}, TscMap{0}, TscMap{0}, TscMap{0}} {}

void Judge::trace(std::uint64_t value) {
    if (traced_ == trace_.size()) {
        trace_hash_ = XXH3_64bits_withSeed(trace_.data(), sizeof trace_, trace_hash_);
        traced_ = 0;
    }
    trace_[traced_++] = value;
}

std::int64_t Judge::ticks_to_ns(std::int64_t ticks) const {
    const auto ns = (static_cast<u128>(static_cast<std::uint64_t>(size(ticks))) * tick_unit_) >> 32;
    const auto whole = static_cast<std::int64_t>(
        std::min<u128>(ns, static_cast<u128>(std::numeric_limits<std::int64_t>::max())));
    return ticks < 0 ? -whole : whole;
}

// -- what the guest sees --

Judge::Reading Judge::read(unsigned vcpu) {
    model::KvmVm& vm = world_.vm();
    const Span reading = world_.clock.reading;
    world_.clock.reading = Span{0};
    Reading out;
    out.at = world_.clock.now;
    out.tsc = vm.guest_tsc(vcpu);
    const bool damaged = page_damaged_ && vcpu == 0;
    out.kvmclock =
        world_.guest.read_kvmclock(damaged ? pristine_ : vm.page(vcpu), out.tsc, world_.probes);
    const bool by_tsc = world_.guest.timekeeper.source == Clocksource::kTsc;
    out.cycles = by_tsc ? out.tsc : out.kvmclock;
    out.monotonic = world_.guest.timekeeper.monotonic(out.cycles);
    world_.clock.reading = reading;
    trace(out.tsc);
    trace(out.kvmclock);
    trace(out.monotonic);
    return out;
}

Judge::Reading Judge::watch(unsigned vcpu) {
    const Reading now = read(vcpu);
    Verdicts& verdicts = result_.verdicts;
    tsc_.see(verdicts, vcpu, now.tsc, now.at, tick_unit_, synchronised_);
    constexpr std::uint64_t nanosecond = std::uint64_t{1} << 32;
    kvmclock_.see(verdicts, vcpu, now.kvmclock, now.at, nanosecond);
    // A guest that moved its counters apart has no MONOTONIC to speak of on clocksource tsc.
    const bool one = synchronised_ || world_.guest.timekeeper.source == Clocksource::kKvmclock;
    monotonic_.see(verdicts, vcpu, now.monotonic, now.at, nanosecond, one);
    return now;
}

void Judge::look(unsigned vcpu) {
    (void)watch(vcpu);
}

/// All vCPUs at one instant: what two of them read apart, two ordered readings see.
void Judge::look_at_all() {
    model::KvmVm& vm = world_.vm();
    const Reading zero = watch(0);
    for (unsigned vcpu = 1; vcpu < vm.vcpu_count(); ++vcpu)
        hold_together(zero, watch(vcpu), vcpu);
    if (!vm.masterclock()) world_.reached(Probe::kMasterclockOff);
}

void Judge::hold_together(const Reading& zero, const Reading& other, unsigned vcpu) {
    const std::int64_t ordered = world_.scenario.ordered_read_ns;
    const auto ticks = static_cast<std::int64_t>(other.tsc - zero.tsc - apart_[vcpu]);
    const std::int64_t skew = size(ticks_to_ns(ticks));
    result_.tsc_skew_ns = std::max(result_.tsc_skew_ns, skew);
    if (!synchronised_) return;
    hold(Invariant::kCounterAcrossVcpus, skew - ordered, vcpu);
    // Where the bit is off, readers go by the highest value that any has seen.
    if ((world_.vm().page(vcpu).flags & abi::kPVCLOCK_TSC_STABLE_BIT) == 0) return;
    const auto apart = size(static_cast<std::int64_t>(other.kvmclock - zero.kvmclock));
    hold(Invariant::kKvmclockMonotonic, apart - ordered, vcpu);
}

void Judge::race() {
    model::KvmVm& vm = world_.vm();
    if (vm.vcpu_count() < 2) return;
    const std::uint32_t msr =
        world_.scenario.guest.old_msrs ? abi::kMSR_KVM_SYSTEM_TIME : abi::kMSR_KVM_SYSTEM_TIME_NEW;
    // Another kernel of the guest's begins (kexec) that knew the MSR by its other number: where
    // there is a masterclock it takes a new sample for that.
    const std::uint32_t other = msr == abi::kMSR_KVM_SYSTEM_TIME ? abi::kMSR_KVM_SYSTEM_TIME_NEW
                                                                 : abi::kMSR_KVM_SYSTEM_TIME;
    (void)vm.guest_write_msr(0, other, vm.vcpu(0).system_time_msr);
    (void)vm.guest_write_msr(0, msr, vm.vcpu(0).system_time_msr);
    vm.exit(0);
    constexpr int kStepsMax = 64;
    for (int i = 0; i < kStepsMax && !vm.in_guest(0); ++i) {
        (void)vm.step(0);
        world_.wait(Span{64});
        const abi::pvclock_vcpu_time_info& page = vm.page(0);
        const bool torn = abi::update_in_progress(page.version);
        if (torn) world_.reached(Probe::kTornPage);
        // A reader that looks at the version waits until it is even.
        if (torn && !world_.has(Bug::kReaderWithoutRetry)) continue;
        const Span reading = world_.clock.reading;
        world_.clock.reading = Span{0};
        const std::uint64_t tsc = vm.guest_tsc(1);
        world_.clock.reading = reading;
        const std::uint64_t value = world_.guest.read_kvmclock(page, tsc, world_.probes);
        trace(value);
        kvmclock_.see(result_.verdicts, 1, value, world_.clock.now, std::uint64_t{1} << 32);
    }
    for (unsigned vcpu = 0; vcpu < vm.vcpu_count(); ++vcpu)
        if (!vm.in_guest(vcpu)) vm.enter(vcpu);
    look_at_all();
}

/// kvm_sched_clock_init() on one vCPU, and the first readings on the others at once (S4.3).
void Judge::start_sched_clock() {
    Guest& guest = world_.guest;
    const unsigned last = world_.vm().vcpu_count() - 1;
    const Span reading = world_.clock.reading;
    world_.clock.reading = Span{0};
    // By the pages alone: the scheduler's clock does not wait for what other vCPUs have read.
    const auto page_says = [&](unsigned vcpu) {
        const auto line = abi::pvclock_line(world_.vm().page(vcpu));
        const auto tsc = Count<GuestCounter>::from_raw(world_.vm().guest_tsc(vcpu));
        return line ? line->at(tsc).raw() : 0;
    };
    model::KvmVm& vm = world_.vm();
    for (unsigned starter = 0; starter <= last; ++starter) {
        // It registers its clock first (kvm_register_clock()): its page is fresh, the others' are
        // not, and without a masterclock they are not one line.
        (void)vm.guest_write_msr(starter, abi::kMSR_KVM_SYSTEM_TIME_NEW,
                                 vm.vcpu(starter).system_time_msr);
        vm.exit(starter);
        vm.enter(starter);
        guest.start_sched_clock(page_says(starter));
        for (unsigned vcpu = 0; vcpu <= last; ++vcpu) {
            const std::uint64_t clock = guest.sched_clock(page_says(vcpu));
            trace(clock);
            // It began now: whatever it says beyond a second is a difference below zero.
            const bool wrapped = clock > static_cast<std::uint64_t>(1'000) * kMillisecond;
            hold(Invariant::kKvmclockMonotonic,
                 wrapped ? std::numeric_limits<std::int64_t>::max() : 0, vcpu);
        }
    }
    world_.clock.reading = reading;
}

// -- boot --

void Judge::boot(std::uint32_t khz, std::uint64_t uptime_ns) {
    khz_ = khz;
    tick_unit_ = (std::uint64_t{1'000'000} << 32) / khz;
    const GuestSpec& spec = world_.scenario.guest;
    synchronised_ = spec.tsc_adjust == Draw{};
    Guest& guest = world_.guest;
    guest.begin(spec, khz, world_.bug);
    const Reading now = read(0);
    for (unsigned vcpu = 1; vcpu < world_.vm().vcpu_count(); ++vcpu)
        apart_[vcpu] = read(vcpu).tsc - now.tsc;
    Timekeeper& keeper = guest.timekeeper;
    // NTP has found the counter's true rate on this host: ns a tick = 1/16 over the true ticks a
    // unit, by the rate at which the guest's counter follows the host's.
    const time::ExactRatio slope = world_.vm().tsc_map(0).slope();
    const bool by_tsc = keeper.source == Clocksource::kTsc;
    const u128 rate = static_cast<u128>(world_.host().oscillator().rate());
    const u128 cycles =
        by_tsc ? rate * slope.num() / slope.den() : rate * 1'000'000 / world_.host().khz();
    keeper.mult = static_cast<std::uint32_t>((u128{1} << (60 + keeper.shift)) / cycles);
    keeper.cycle_last = now.cycles;
    keeper.mono_ns = uptime_ns;
    error_before_ns_ = spec.realtime_error_ns.from(world_.random);
    const std::uint64_t tai =
        world_.clock.true_tai(now.at) + static_cast<std::uint64_t>(error_before_ns_);
    keeper.to_real_ns = tai - keeper.to_tai_ns - uptime_ns;
    guest.ntp.maxerror_ns = size(error_before_ns_) + kMillisecond;
    look_at_all();
}

std::int64_t Judge::realtime_error_ns(const Reading& reading) const {
    const Timekeeper& keeper = world_.guest.timekeeper;
    // By its TAI: a leap second that it slept through is its NTP's to learn of.
    const std::uint64_t tai = reading.monotonic + keeper.to_real_ns + keeper.to_tai_ns;
    return static_cast<std::int64_t>(tai - world_.clock.true_tai(reading.at));
}

// -- the stop --

void Judge::last_tick(std::int64_t tick_ns) {
    const auto ago =
        static_cast<std::int64_t>(below(world_.random, static_cast<std::uint64_t>(tick_ns)));
    world_.guest.timekeeper.accumulate(read(0).cycles, true);
    world_.guest.arm_timer();
    world_.wait(span_ns(ago));
}

void Judge::damage_page() {
    abi::pvclock_vcpu_time_info& page = world_.vm().page(0);
    if (page.version == 0) return;
    pristine_ = page;
    page_damaged_ = true;
    world_.page_was_damaged = true;
    switch (below(world_.random, 3)) {
        case 0:
            page.system_time = world_.random.next();
            break;
        case 1:
            page.tsc_to_system_mul = static_cast<std::uint32_t>(world_.random.next()) | 1U;
            page.tsc_shift = static_cast<std::int8_t>(below(world_.random, 256));
            break;
        default:
            page.version |= 1U;
            page.tsc_timestamp = world_.random.next();
    }
}

void Judge::suspend() {
    const Reading now = watch(0);
    world_.guest.timekeeper.suspend(now.cycles);
    last_ = now;
    error_before_ns_ = realtime_error_ns(now);
    suspended_ = true;
    world_.reached(Probe::kQuiesced);
}

void Judge::last_look(unsigned vcpu) {
    // A guest that is suspended reads no MONOTONIC.
    if (suspended_) return;
    const Reading now = watch(vcpu);
    last_ = now;
    if (!told_) error_before_ns_ = realtime_error_ns(now);
}

void Judge::stopped() {
    entered_ = false;
    certified_.reset();
    worst_beyond_bound_ns_ = 0;
}

void Judge::saved(const SourceSide& source) {
    Host& host = world_.host();
    source_host_ = world_.on_host;
    anchor_count_ = source.anchor().value_or(host.count_now());
    anchor_at_ = host.time_of(anchor_count_);
    for (unsigned vcpu = 0; vcpu < world_.vm().vcpu_count(); ++vcpu) {
        source_maps_[vcpu] = world_.vm().tsc_map(vcpu);
        source_adjust_[vcpu] = world_.vm().vcpu(vcpu).tsc_adjust;
    }
    source_line_ = abi::pvclock_line(page_damaged_ ? pristine_ : world_.vm().page(0));
}

// -- the other side --

/// What the guest would find if it went on now: of a copy, so that nothing is carried out here.
Lines Judge::lines() {
    model::KvmVm copy = world_.vm();
    const Span reading = world_.clock.reading;
    world_.clock.reading = Span{0};
    Lines out;
    for (unsigned vcpu = 0; vcpu < copy.vcpu_count(); ++vcpu) {
        out.offsets[vcpu] = copy.tsc_map(vcpu).offset();
        copy.settle(vcpu);
    }
    copy.settle(0);
    out.page = copy.page(0);
    world_.clock.reading = reading;
    return out;
}

void Judge::hold_idempotent(const Lines& before, const Lines& after) {
    // Where the counter goes by value, a write lands within what is certified of it.
    const bool by_offset = world_.vm().rules().has_offset_attribute;
    for (unsigned vcpu = 0; vcpu < world_.vm().vcpu_count(); ++vcpu) {
        const auto moved = static_cast<std::int64_t>(after.offsets[vcpu] - before.offsets[vcpu]);
        const std::int64_t allowed = by_offset ? 0 : kMillisecond;
        hold(Invariant::kIdempotent, size(ticks_to_ns(moved)) - allowed, vcpu);
    }
    const auto line = abi::pvclock_line(before.page);
    const auto line_after = abi::pvclock_line(after.page);
    if (!line || !line_after) return;
    const auto at = line_after->tsc_timestamp();
    const std::int64_t moved = (line_after->at(at) - line->at(at)).raw();
    // Each time the closed loop ends within its target and the rounding of its reading, 2 ns in
    // all, of one line; without the triple of KVM_GET_CLOCK there is none to go by.
    hold(Invariant::kIdempotent, size(moved) - (by_offset ? 4 : kMillisecond));
}

void Judge::first_look(unsigned vcpu, DestinationSide& destination) {
    page_damaged_ = page_damaged_ && world_.vm().page(0) == pristine_;
    if (!entered_) {
        entered_ = true;
        place_resume(destination);
        const std::uint64_t cycles = read(vcpu).cycles;
        Timekeeper& keeper = world_.guest.timekeeper;
        if (suspended_) keeper.resume(cycles);
        suspended_ = false;
        if (keeper.beyond(cycles)) world_.reached(Probe::kLargeDelta);
        first_ = watch(vcpu);
        // The first tick: what was read is what is kept.
        keeper.accumulate(first_.cycles, false);
        error_first_ns_ = realtime_error_ns(first_);
        result_.lost_time_ns = larger(result_.lost_time_ns, -error_first_ns_);
        result_.entry_late_ns = std::max(result_.entry_late_ns, ns_between(resume_at_, first_.at));
        told_ = told_ || destination.published();
    } else {
        (void)watch(vcpu);
    }
    hold_realtime(first_, first_.at);
    judge_told_stopped(vcpu, destination);
    result_.blackout_ns = std::max(result_.blackout_ns, ns_between(stop_began_, world_.clock.now));
}

/// Where the strategy says when the guest goes on, that instant; else the first entry.
void Judge::place_resume(DestinationSide& destination) {
    Host& host = world_.host();
    certified_ = destination.certified();
    const auto at = destination.resume_at();
    resume_count_ = at.value_or(host.count_now());
    resume_at_ = at ? host.time_of(*at) : world_.clock.now;
}

void Judge::judge_told_stopped(unsigned vcpu, DestinationSide& destination) {
    const bool tells =
        strategy_.told() == Told::kDelta || strategy_.told() == Told::kThatItHappened;
    const bool asked = world_.scenario.vmm.ctrl_at_stop || (tells && destination.published());
    if (!asked || !world_.vm().vcpu(vcpu).page_active()) return;
    abi::pvclock_vcpu_time_info& page = world_.vm().page(vcpu);
    const bool seen = (page.flags & abi::kPVCLOCK_GUEST_STOPPED) != 0;
    hold(Invariant::kStoppedSeen, seen ? 0 : 1, vcpu);
    // The guest touches its watchdogs and clears it.
    page.flags &= static_cast<std::uint8_t>(~abi::kPVCLOCK_GUEST_STOPPED);
}

std::int64_t Judge::Promised::off(std::uint64_t value) const {
    if (static_cast<std::int64_t>(value - high) > 0) return static_cast<std::int64_t>(value - high);
    if (static_cast<std::int64_t>(low - value) > 0) return -static_cast<std::int64_t>(low - value);
    return 0;
}

Judge::Promised Judge::promised_tsc(unsigned vcpu) const {
    const auto at = [&](std::uint64_t count) {
        return source_maps_[vcpu].at(Count<HostCounter>::from_raw(count)).raw();
    };
    if (strategy_.promise() == Promise::kFreezes) return {at(anchor_count_), at(anchor_count_)};
    // As if never stopped: what the source's counter would have counted in true time.
    Host& source = world_.hosts[source_host_];
    const auto length = static_cast<std::uint64_t>((resume_at_ - anchor_at_).count());
    const auto counted = static_cast<u128>(length) * source.oscillator().rate();
    const std::uint64_t passed = source_host_ == world_.on_host && !world_.slept_in_gap
                                     ? resume_count_ - anchor_count_
                                     : static_cast<std::uint64_t>(counted >> 64);
    return {at(anchor_count_ + passed), at(anchor_count_ + passed + 1)};
}

Judge::Promised Judge::promised_kvmclock() const {
    const Promised tsc = promised_tsc(0);
    const auto at = [&](std::uint64_t count) {
        return source_line_->at(Count<GuestCounter>::from_raw(count)).raw();
    };
    return {at(tsc.low), at(tsc.high)};
}

std::int64_t Judge::counter_bound_ns(unsigned vcpu) const {
    return certified_ ? ticks_to_ns(saturated(certified_->tsc_bound_ticks[vcpu])) : 0;
}

/// Where a counter goes by value it lands where it lands, and a certificate says how near.
std::int64_t Judge::by_value_ns() const {
    return world_.host().rules().has_offset_attribute ? 0 : counter_bound_ns(0);
}

/// What no strategy can know better than the two hosts' clocks and rates; one that certifies says
/// itself how well it knows.
std::int64_t Judge::hosts_allow_ns() const {
    if (certified_) return std::max(kMicrosecond, counter_bound_ns(0));
    if (strategy_.promise() == Promise::kFreezes || source_host_ == world_.on_host)
        return kMicrosecond;
    const HostSpec& from = world_.hosts[source_host_].spec();
    const HostSpec& to = world_.hosts[world_.on_host].spec();
    const auto bound = [](const HostSpec& host) {
        return host.synchronised ? static_cast<std::int64_t>(host.tai_bound_ns) : kNtpPhaseLimitNs;
    };
    const i128 gap = static_cast<i128>(ns_between(anchor_at_, resume_at_));
    const auto rates = static_cast<std::int64_t>(gap * from.rate_bound_ppb / 1'000'000'000);
    return bound(from) + bound(to) + rates + 10 * kMicrosecond;
}

void Judge::judge_move(DestinationSide& destination, bool wire_damaged) {
    judge_counters(destination);
    judge_kvmclock(destination);
    judge_monotonic();
    if (certified_) {
        judge_bounds(*certified_);
        note_how(*certified_);
    }
    if (wire_damaged)
        hold(Invariant::kNothingTrusted, std::max<std::int64_t>(1, size(result_.tsc_error_ns)));
    if (world_.page_was_damaged || world_.kernel_lied)
        hold(Invariant::kNothingTrusted, worst_beyond_bound_ns_);
}

void Judge::judge_counters(DestinationSide& destination) {
    const std::int64_t allowed = hosts_allow_ns();
    for (unsigned vcpu = 0; vcpu < destination.vcpus(); ++vcpu) {
        const std::uint64_t realised =
            world_.vm().tsc_map(vcpu).at(Count<HostCounter>::from_raw(resume_count_)).raw();
        const std::int64_t off = promised_tsc(vcpu).off(realised);
        const std::int64_t off_ns = ticks_to_ns(off);
        result_.tsc_error_ns = larger(result_.tsc_error_ns, off_ns);
        if (!certified_) {
            result_.tsc_seam_ns = larger(result_.tsc_seam_ns, off_ns);
        } else {
            const std::int64_t seam = ticks_to_ns(certified_->tsc_seam_ticks[vcpu]);
            result_.tsc_seam_ns = larger(result_.tsc_seam_ns, seam);
            const auto bound = certified_->tsc_bound_ticks[vcpu];
            const auto beyond = static_cast<u128>(static_cast<std::uint64_t>(size(off))) > bound
                                    ? size(off) - static_cast<std::int64_t>(bound)
                                    : 0;
            const std::int64_t beyond_ns =
                beyond > 0 ? std::max<std::int64_t>(1, ticks_to_ns(beyond)) : 0;
            hold(Invariant::kInsideBound, beyond_ns, vcpu);
            worst_beyond_bound_ns_ = std::max(worst_beyond_bound_ns_, beyond_ns);
            result_.certified_bound_ns =
                std::max(result_.certified_bound_ns, counter_bound_ns(vcpu));
        }
        hold(Invariant::kPromiseKept, size(off_ns) - allowed, vcpu);
        const auto adjusted =
            static_cast<std::int64_t>(world_.vm().vcpu(vcpu).tsc_adjust - source_adjust_[vcpu]);
        hold(Invariant::kPromiseKept, size(ticks_to_ns(adjusted)), vcpu);
    }
}

void Judge::judge_kvmclock(DestinationSide&) {
    const auto line = abi::pvclock_line(world_.vm().page(0));
    if (!source_line_ || !line) return;
    const auto tsc = world_.vm().tsc_map(0).at(Count<HostCounter>::from_raw(resume_count_));
    const std::int64_t off = promised_kvmclock().off(line->at(tsc).raw());
    result_.kvmclock_seam_ns = larger(result_.kvmclock_seam_ns, off);
    // The page's own rate is not the guest's nominal one: 500 ppb cover what is cut off it.
    const auto slope = static_cast<std::int64_t>(
        static_cast<i128>(size(ns_between(anchor_at_, resume_at_))) / 2'000'000);
    hold(Invariant::kPromiseKept, size(off) - hosts_allow_ns() - slope);
    if (!certified_ || !certified_->kvmclock_bound_ns) return;
    const std::uint64_t bound = *certified_->kvmclock_bound_ns;
    const bool outside = static_cast<std::uint64_t>(size(off)) > bound;
    const std::int64_t beyond = outside ? size(off) - static_cast<std::int64_t>(bound) : 0;
    hold(Invariant::kInsideBound, beyond);
    worst_beyond_bound_ns_ = std::max(worst_beyond_bound_ns_, beyond);
}

void Judge::judge_bounds(const Certified& certified) {
    const std::int64_t off = certified.gap_ns - ns_between(anchor_at_, resume_at_);
    const bool outside = static_cast<std::uint64_t>(size(off)) > certified.gap_bound_ns + 1;
    hold(Invariant::kInsideBound,
         outside ? size(off) - static_cast<std::int64_t>(certified.gap_bound_ns) : 0);
}

void Judge::note_how(const Certified& certified) {
    constexpr Probe by[] = {Probe::kSameBoot, Probe::kTaiUsed, Probe::kExchangeUsed};
    world_.reached(by[static_cast<std::size_t>(certified.elapsed_by)]);
    if (certified.rate == state::RateChoice::kScaled) world_.reached(Probe::kScaled);
    if (certified.rate == state::RateChoice::kTolerated) world_.reached(Probe::kTolerated);
    if (!world_.host().spec().synchronised) world_.reached(Probe::kUnsynchronised);
    if (world_.page_was_damaged && !certified.page_believed)
        world_.reached(Probe::kPageDamageCaught);
}

void Judge::judge_monotonic() {
    // Between the last reading and the anchor, and between the resume instant and the first
    // reading, the guest's clock ran as any clock does.
    std::int64_t ran = 0;
    if (!strategy_.quiesces())
        ran = ns_between(last_.at, anchor_at_) + ns_between(resume_at_, first_.at);
    const auto jump = static_cast<std::int64_t>(first_.monotonic - last_.monotonic) - ran;
    result_.forward_jump_ns = larger(result_.forward_jump_ns, jump);
    const bool frozen = strategy_.promise() == Promise::kFreezes || strategy_.quiesces() ||
                        strategy_.told() == Told::kFixMonotonic;
    // NTP's rate of the source's counter is a part in a thousand off on no host.
    if (frozen)
        hold(Invariant::kMonotonicFrozen,
             size(jump) - kMicrosecond - by_value_ns() - size(ran) / 1'000);
}

// -- after the entry --

std::int64_t Judge::realtime_allowed_ns(TrueTime until) const {
    // What is told is the gap; what is advanced is the counter.
    std::int64_t bound = 0;
    if (certified_)
        bound = strategy_.promise() == Promise::kFreezes ? saturated(certified_->gap_bound_ns)
                                                         : counter_bound_ns(0);
    const std::int64_t ran = ns_between(last_.at, anchor_at_) + ns_between(resume_at_, until);
    return size(error_before_ns_) + bound + kMicrosecond + size(ran) / 1'000;
}

/// While a notice stands, a reader gets nothing, or a value that is right.
void Judge::hold_realtime(const Reading& reading, TrueTime until) {
    if (!told_ || strategy_.told() == Told::kFixMonotonic) return;
    result_.verdicts.looked(Invariant::kNoStaleRealtime);
    if (!world_.guest.read_realtime(reading.cycles)) {
        world_.reached(Probe::kReadBlocked);
        return;
    }
    hold(Invariant::kNoStaleRealtime,
         size(realtime_error_ns(reading)) - realtime_allowed_ns(until));
}

void Judge::repair(bool cut_short) {
    const GuestSpec& spec = world_.scenario.guest;
    const bool stands = told_ || strategy_.told() == Told::kFixMonotonic;
    if (!stands) {
        daemon_alone(error_first_ns_);
        return;
    }
    if (cut_short || world_.over()) return;
    if (!spec.has_agent || spec.agent_dies) {
        result_.held_ns = std::max(result_.held_ns, world_.scenario.observe_ns);
        return;
    }
    std::int64_t latency = spec.agent_latency_ns.from(world_.random);
    if (world_.fault(Fault::kNoticeLate)) latency += 5'000 * kMillisecond;
    world_.wait(span_ns(latency));
    const bool held = world_.guest.notice.pending();
    if (held) result_.held_ns = std::max(result_.held_ns, latency);
    if (!held && size(error_first_ns_) > kStaleNs)
        result_.stale_exposure_ns = std::max(result_.stale_exposure_ns, latency);
    answer();
}

void Judge::answer() {
    Guest& guest = world_.guest;
    if (world_.has(Bug::kAgentRaisesFirst) && guest.notice.pending()) {
        ++guest.notice.sequence;
        const Reading early = watch(0);
        hold_realtime(early, early.at);
    }
    const bool owed = guest.notice.total_delta_ns != guest.accounted_ns;
    if (!guest.answer_notice(strategy_.told())) return;
    world_.reached(Probe::kAgentRepaired);
    const Reading after = watch(0);
    look_at_all();
    if (strategy_.told() == Told::kFixMonotonic) return;
    const std::int64_t error = realtime_error_ns(after);
    hold_realtime(after, after.at);
    told_ = false;
    hold(Invariant::kNtpThrownOut, guest.ntp.unsync && guest.ntp.maxerror_ns >= kNtpPhaseLimitNs
                                       ? 0
                                       : kNtpPhaseLimitNs - guest.ntp.maxerror_ns);
    if (owed) hold(Invariant::kTimersCancelled, guest.timer_cancelled ? 0 : 1);
    if (guest.timer_cancelled) world_.reached(Probe::kTimerCancelled);
    // The daemon, woken, resynchronises at once.
    world_.wait(span_ns(kResynchroniseNs));
    if (size(error) > kStaleNs) result_.stale_exposure_ns += kResynchroniseNs;
    const std::int64_t left = world_.scenario.guest.ntp_accuracy_ns.from(world_.random);
    const std::int64_t now = realtime_error_ns(watch(0));
    guest.synchronise(left - now, left, true);
    hold(Invariant::kNtpThrownOut, guest.ntp.unsync ? kNtpPhaseLimitNs : 0);
}

/// Nobody told the guest: REALTIME is wrong until the daemon's next sample, and then until it has
/// stepped or slewed it. Closed form, as nothing else happens meanwhile.
void Judge::daemon_alone(std::int64_t error_ns) {
    if (size(error_ns) <= kStaleNs) return;
    const GuestSpec& spec = world_.scenario.guest;
    std::int64_t wrong = spec.ntp_poll_ns.from(world_.random);
    const bool steps = size(error_ns) > spec.ntp_step_ns;
    if (!steps) wrong += (size(error_ns) - kStaleNs) / spec.ntp_slew_ppm * 1'000'000;
    result_.stale_exposure_ns = std::max(result_.stale_exposure_ns, wrong);
    const std::int64_t left = spec.ntp_accuracy_ns.from(world_.random);
    world_.guest.synchronise(left - error_ns, left, steps);
    world_.reached(Probe::kNtpRepaired);
}

std::uint64_t Judge::hash(const RunResult& result) {
    trace(static_cast<std::uint64_t>(result.ending));
    trace(result.probes);
    trace(static_cast<std::uint64_t>(result.ended.time_since_epoch().count()));
    for (const std::int64_t figure :
         {result.tsc_skew_ns, result.tsc_seam_ns, result.kvmclock_seam_ns, result.forward_jump_ns,
          result.lost_time_ns, result.stale_exposure_ns, result.held_ns, result.entry_late_ns,
          result.blackout_ns, result.certified_bound_ns, result.tsc_error_ns})
        trace(static_cast<std::uint64_t>(figure));
    for (std::size_t i = 0; i < kInvariants; ++i) {
        const Verdict& verdict = result.verdicts[static_cast<Invariant>(i)];
        trace(static_cast<std::uint64_t>(verdict.outcome) << 32 | verdict.times);
        trace(static_cast<std::uint64_t>(verdict.by_ns));
    }
    return XXH3_64bits_withSeed(trace_.data(), traced_ * sizeof trace_[0], trace_hash_);
}

}  // namespace continuo::sim
