#include "continuo/model/two_hosts.h"

#include <fmt/format.h>

#include <algorithm>

#include "continuo/time/pvclock_scale.h"

namespace continuo::model {

namespace {

using state::Policy;
using time::Count;
using time::GuestCounter;
using time::HostCounter;
using time::Hz;
using time::Instant;
using time::kNanosPerSecond;
using time::Kvmclock;
using time::SourceCounter;
using time::Tai;
using time::Ticks;
using time::u128;

constexpr i128 kFemtosecondsANano = 1'000'000;
/// Femtoseconds in a second, times the millihertz in a hertz.
constexpr u128 kTickUnit = static_cast<u128>(1'000'000'000'000'000) * 1'000;
constexpr std::uint64_t kTaiAtStart = 1'760'000'000'000'000'000;
constexpr std::int64_t kHourNs = 3'600'000'000'000;
constexpr std::size_t kVcpus = 2;

Femtoseconds nanos(std::int64_t ns) {
    return static_cast<i128>(ns) * kFemtosecondsANano;
}

/// floor(t * millihertz / 10^18) without a 129th bit.
std::uint64_t ticks_in(Femtoseconds t, std::uint64_t millihertz) {
    const auto whole = static_cast<u128>(t) / kTickUnit;
    const auto rest = static_cast<u128>(t) % kTickUnit;
    // rest < 2^60 and millihertz < 2^43: the product fits.
    return static_cast<std::uint64_t>(whole * millihertz + rest * millihertz / kTickUnit);
}

/// A host whose counter is off as far as it says at most, its clock as far as `honest` lets it.
TrueHost some_host(Random& random, bool honest, bool slow) {
    TrueHost host;
    host.stated_khz = static_cast<std::uint64_t>(slow ? random.between(20'000, 62'500)
                                                      : random.between(1'000'000, 4'000'000));
    host.synchronised = !random.one_in(3);
    const std::int64_t bound =
        host.synchronised ? random.between(15'000, 120'000) : state::kRateBoundUnknownPpb;
    host.rate_bound_ppb = static_cast<std::uint32_t>(bound);
    // As often at the end of what is stated as anywhere within.
    const std::int64_t off = random.one_in(2)   ? random.between(-bound, bound)
                             : random.one_in(2) ? bound
                                                : -bound;
    const auto stated = static_cast<i128>(host.stated_khz) * 1'000'000 + random.between(0, 999'999);
    host.true_millihertz =
        static_cast<std::uint64_t>(stated + stated * off / 1'000'000'000 + (off < 0 ? 1 : 0));
    host.count_at_start = random.one_in(4)
                              ? 0 - static_cast<std::uint64_t>(random.between(0, 1LL << 33))
                              : random.next();
    host.tai_bound_ns = static_cast<std::uint64_t>(random.of_any_size(50'000'000));
    const auto admitted = static_cast<std::int64_t>(host.tai_bound_ns);
    // 16 s less the nanosecond that is lost to whole ones.
    const std::int64_t unsynchronised = 15'999'999'999;
    const std::int64_t most = !honest             ? 12 * kHourNs
                              : host.synchronised ? admitted
                                                  : std::max(admitted, unsynchronised);
    host.tai_error_ns =
        random.one_in(2) ? random.between(-most, most) : (random.one_in(2) ? most : -most);
    return host;
}

/// Delays of one channel: a floor for each way, and a tail.
struct Channel {
    std::int64_t there_ns;
    std::int64_t back_ns;
    std::int64_t tail_ns;
    explicit Channel(Random& random)
        : there_ns{random.of_any_size(5'000'000)},
          back_ns{random.of_any_size(5'000'000)},
          tail_ns{random.of_any_size(20'000'000)} {}
    std::int64_t there(Random& random) const { return there_ns + random.of_any_size(tail_ns); }
    std::int64_t back(Random& random) const { return back_ns + random.of_any_size(tail_ns); }
};

/// Appends rounds from `t` on; the time when the last is over.
Femtoseconds exchange(TwoHosts& world, Random& random, const Channel& channel, Femtoseconds t,
                      std::int64_t rounds) {
    for (std::int64_t i = 0; i < rounds; ++i) {
        state::ExchangeRound round;
        round.asked = Count<HostCounter>::from_raw(world.destination.count(t));
        t += nanos(channel.there(random));
        round.received = Count<SourceCounter>::from_raw(world.source.count(t));
        t += nanos(random.of_any_size(2'000'000));
        round.answered = Count<SourceCounter>::from_raw(world.source.count(t));
        t += nanos(channel.back(random));
        round.heard = Count<HostCounter>::from_raw(world.destination.count(t));
        world.here.exchange.push_back(round);
    }
    return t;
}

void make_guest(TwoHosts& world, Random& random) {
    const Hz hz = *Hz::from_khz(world.source.stated_khz);
    for (std::size_t i = 0; i < kVcpus; ++i) {
        state::VcpuClock clock;
        clock.counter = Count<GuestCounter>::from_raw(random.next());
        clock.frequency = hz;
        clock.system_time_msr = 0x1001;
        world.record.vcpus.push_back(clock);
    }
    state::KvmclockState kvmclock;
    kvmclock.masterclock = true;
    kvmclock.origin = state::KvmclockOrigin::kPage;
    kvmclock.line = time::PvclockLine{
        world.record.vcpus.front().counter -
            Ticks<GuestCounter>::from_raw(random.between(0, 1LL << 40)),
        Instant<Kvmclock>::from_raw(random.next() >> 2), time::PvclockScale::from_hz(hz)};
    world.record.kvmclock = kvmclock;
}

i128 size(i128 value) {
    return value < 0 ? -value : value;
}

/// `what` where `measured` is further than `bound` from the truth; both in ns.
void hold(std::vector<std::string>& wrong, const char* what, i128 measured_ns, i128 true_fs,
          std::uint64_t bound_ns) {
    const i128 off = size(measured_ns * kFemtosecondsANano - true_fs);
    if (off <= static_cast<i128>(bound_ns) * kFemtosecondsANano) return;
    wrong.push_back(fmt::format("{}: off by {} ns, bound {} ns", what,
                                static_cast<std::int64_t>(off / kFemtosecondsANano), bound_ns));
}

void hold_clocks(std::vector<std::string>& wrong, const TwoHosts& world, const state::Plan& plan) {
    const Ticks<GuestCounter> passed = world.uninterrupted - world.record.vcpus.front().counter;
    for (std::size_t i = 0; i < plan.tsc.size(); ++i) {
        const auto off = plan.tsc[i].at_resume - (world.record.vcpus[i].counter + passed);
        if (off.magnitude() > plan.tsc[i].bound.total())
            wrong.push_back(fmt::format("vCPU {}: off by {} ticks, bound {}", i, off.raw(),
                                        plan.tsc[i].bound.total()));
    }
    const auto truth = world.record.kvmclock->line.at(world.uninterrupted);
    const auto off = plan.kvmclock->at_resume - truth;
    if (off.magnitude() > plan.kvmclock->bound.total())
        wrong.push_back(fmt::format("kvmclock: off by {} ns, bound {}", off.raw(),
                                    plan.kvmclock->bound.total()));
}

}  // namespace

std::uint64_t TrueHost::count(Femtoseconds t) const {
    return count_at_start + ticks_in(t, true_millihertz);
}

Femtoseconds TrueHost::time_of(std::uint64_t ticks) const {
    const u128 whole = static_cast<u128>(ticks) / true_millihertz;
    const u128 rest = static_cast<u128>(ticks) % true_millihertz;
    return static_cast<Femtoseconds>(whole * kTickUnit +
                                     (rest * kTickUnit + true_millihertz - 1) / true_millihertz);
}

template <time::CounterAxis D>
state::Anchor<D> TrueHost::anchor(std::uint64_t ticks) const {
    state::Anchor<D> out;
    out.counter = Count<D>::from_raw(count_at_start + ticks);
    const i128 ns = time_of(ticks) / kFemtosecondsANano + tai_error_ns;
    out.tai = Instant<Tai>::from_raw(kTaiAtStart + static_cast<std::uint64_t>(ns));
    // A nanosecond for the whole ones of CLOCK_TAI.
    out.tai_bound_ns = tai_bound_ns + 1;
    out.tai_offset_sec = 37;
    out.synchronised = synchronised;
    out.frequency = *Hz::from_khz(stated_khz);
    out.rate_bound_ppb = rate_bound_ppb;
    return out;
}

TwoHosts TwoHosts::of(std::uint64_t seed) {
    Random random{seed};
    TwoHosts world;
    world.clocks_are_honest = !random.one_in(3);
    const bool slow = random.one_in(4);  // ticks of 16 to 50 ns: their width must not be forgotten
    world.source = some_host(random, world.clocks_are_honest, slow);
    world.destination = some_host(random, world.clocks_are_honest, slow);
    world.here.scaling_frac_bits = random.one_in(2) ? 48 : 32;
    if (random.one_in(2)) world.destination.stated_khz = world.source.stated_khz;
    if (random.one_in(2)) {
        const auto stated = static_cast<i128>(world.destination.stated_khz) * 1'000'000;
        world.destination.true_millihertz = static_cast<std::uint64_t>(stated);
    }
    // What the destination states must be true of it, whatever was changed above.
    const auto stated = static_cast<i128>(world.destination.stated_khz) * 1'000'000;
    const i128 most = stated * world.destination.rate_bound_ppb / 1'000'000'000;
    world.destination.true_millihertz = static_cast<std::uint64_t>(
        std::clamp<i128>(world.destination.true_millihertz, stated - most, stated + most));

    const Channel channel{random};
    const bool talks = !random.one_in(5);
    Femtoseconds t =
        nanos(random.between(kNanosPerSecond, 1000 * static_cast<std::int64_t>(kNanosPerSecond)));
    if (talks) t = exchange(world, random, channel, t, random.between(1, 32));
    t += nanos(random.of_any_size(2'000'000'000));  // from the exchange to the stop

    const std::uint64_t stopped = ticks_in(t, world.source.true_millihertz) + 1;
    world.record.source.boot_id = {1};
    world.record.anchor = world.source.anchor<SourceCounter>(stopped);
    make_guest(world, random);
    t = world.source.time_of(stopped);
    t += nanos(random.of_any_size(60'000'000'000));  // the blackout
    if (talks && random.one_in(2)) t = exchange(world, random, channel, t, random.between(1, 8));

    const std::uint64_t here = ticks_in(t, world.destination.true_millihertz) + 1;
    world.here.identity.boot_id = {2};
    world.here.anchor = world.destination.anchor<HostCounter>(here);
    world.here.vcpu_count = kVcpus;
    const std::uint64_t resume = here + static_cast<std::uint64_t>(random.of_any_size(100'000'000));
    world.options.resume_at =
        Count<HostCounter>::from_raw(world.destination.count_at_start + resume);
    const Policy policies[] = {Policy::kAdvance, Policy::kFreeze, Policy::kAdvanceAndNotify,
                               Policy::kFreezeAndNotify};
    world.options.policy = policies[random.between(0, 3)];

    const Femtoseconds stopped_at = world.source.time_of(stopped);
    const Femtoseconds resumed_at = world.destination.time_of(resume);
    world.true_gap_fs = resumed_at - stopped_at;
    const std::uint64_t passed = ticks_in(resumed_at, world.source.true_millihertz) - stopped;
    world.uninterrupted = world.record.vcpus.front().counter +
                          Ticks<GuestCounter>::from_raw(static_cast<std::int64_t>(passed));
    return world;
}

std::vector<std::string> untrue(const TwoHosts& world, const state::Plan& plan) {
    std::vector<std::string> wrong;
    const state::GapMeasures& measures = plan.measures;
    // A clock that lies about its bound, and by less than the exchange can see, is believed.
    const bool believed_a_lie =
        !world.clocks_are_honest && plan.elapsed_by == state::ElapsedBy::kTai;
    if (!believed_a_lie) {
        hold(wrong, "gap", plan.gap.raw(), world.true_gap_fs, plan.gap_bound_ns);
        if (!freezes(plan.policy)) hold_clocks(wrong, world, plan);
    }
    if (world.clocks_are_honest)
        hold(wrong, "gap by TAI", measures.by_tai->gap.raw(), world.true_gap_fs,
             measures.by_tai->bound_ns);
    if (!measures.by_exchange) return wrong;
    hold(wrong, "gap by exchange", measures.by_exchange->gap.raw(), world.true_gap_fs,
         measures.by_exchange->bound_ns);
    const i128 apart =
        static_cast<i128>(world.destination.tai_error_ns) - world.source.tai_error_ns;
    // The nanoseconds of the two readings are whole, and so are those of the way to the resume.
    hold(wrong, "clock offset", measures.clock_offset->gap.raw(), apart * kFemtosecondsANano,
         measures.clock_offset->bound_ns + 2);
    return wrong;
}

}  // namespace continuo::model
