// Arbitrary records and destinations for property tests: any that check() lets through, with half
// of their numbers on an edge. Private to the tests. Call inside a property only.
#pragma once

#include <rapidcheck.h>

#include <cstdint>
#include <limits>
#include <ostream>
#include <string>
#include <vector>

#include "continuo/state/codec.h"
#include "continuo/state/plan.h"
#include "continuo/state/record.h"

namespace continuo::state::gen {

/// 64 bits: an edge, or uniform whatever rapidcheck's size is.
inline std::uint64_t u64() {
    static const std::vector<std::uint64_t> edges{
        0, 1, 0x7fff'ffff, 0x8000'0000, 0xffff'ffff, 1ULL << 32, ~0ULL >> 1, 1ULL << 63, ~0ULL};
    return *rc::gen::oneOf(rc::gen::elementOf(edges),
                           rc::gen::resize(rc::kNominalSize, rc::gen::arbitrary<std::uint64_t>()));
}
inline std::int64_t i64() {
    return static_cast<std::int64_t>(u64());
}
inline bool flag() {
    return *rc::gen::arbitrary<bool>();
}
inline Hz hz() {
    const std::uint64_t span = kFrequencyMaxHz - kFrequencyMinHz + 1;
    const std::uint64_t value = kFrequencyMinHz + u64() % span;
    return *Hz::from_hz(flag() ? value : flag() ? kFrequencyMinHz : kFrequencyMaxHz);
}

inline HostIdentity identity() {
    static const std::vector<std::string> characters{
        "a", " ", "/", "~", "\"", "\\", "\xc2\xa0", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x95\x92"};
    HostIdentity identity;
    if (flag())
        for (auto& byte : identity.boot_id)
            byte = static_cast<std::uint8_t>(u64());
    const int length = *rc::gen::inRange(0, 60);
    for (int i = 0; i < length; ++i)
        identity.kernel += *rc::gen::elementOf(characters);
    return identity;
}

template <time::CounterAxis D>
Anchor<D> anchor() {
    Anchor<D> anchor;
    anchor.counter = Count<D>::from_raw(u64());
    anchor.tai = Instant<Tai>::from_raw(u64());
    anchor.tai_bound_ns = u64();
    anchor.tai_offset_sec = static_cast<std::int32_t>(u64());
    anchor.synchronised = flag();
    anchor.frequency = hz();
    anchor.rate_bound_ppb = static_cast<std::uint32_t>(u64() % (kRateBoundPpbMax + 1));
    if (flag()) anchor.suspended_ns = u64();
    return anchor;
}

inline VcpuClock vcpu(Architecture architecture) {
    VcpuClock vcpu;
    vcpu.counter = Count<GuestCounter>::from_raw(u64());
    vcpu.counter_bound_ticks = u64();
    if (flag()) vcpu.tsc_offset = u64();
    vcpu.frequency = hz();
    if (architecture == Architecture::kArm64) return vcpu;
    vcpu.tsc_adjust = i64();
    vcpu.system_time_msr = u64();
    vcpu.guest_stopped_pending = flag();
    return vcpu;
}

inline KvmclockState kvmclock(bool has_page) {
    const auto mul = static_cast<std::uint32_t>(u64() | 1U);
    const int shift = *rc::gen::inRange(PvclockScale::kShiftMin, PvclockScale::kShiftMax + 1);
    KvmclockState kvmclock;
    kvmclock.line =
        PvclockLine{Count<GuestCounter>::from_raw(u64()), Instant<Kvmclock>::from_raw(u64()),
                    *PvclockScale::make(flag() ? mul : mul << 1 | 0x8000'0000U, shift)};
    kvmclock.origin = has_page && flag() ? KvmclockOrigin::kPage : KvmclockOrigin::kKernel;
    kvmclock.masterclock = flag();
    kvmclock.bound_ns = u64();
    kvmclock.kernel_minus_line = Nanos<Kvmclock>::from_raw(i64());
    return kvmclock;
}

inline Record record() {
    Record record;
    record.architecture = flag() ? Architecture::kX86_64 : Architecture::kArm64;
    record.source = identity();
    record.anchor = anchor<SourceCounter>();
    const int count = *rc::gen::inRange(1, 9);
    for (int i = 0; i < count; ++i)
        record.vcpus.push_back(vcpu(record.architecture));
    if (record.architecture == Architecture::kX86_64 && flag())
        record.kvmclock = kvmclock((record.vcpus.front().system_time_msr & 1) != 0);
    record.notice_sequence = u64();
    return record;
}

inline Destination destination() {
    Destination destination;
    destination.architecture = flag() ? Architecture::kX86_64 : Architecture::kArm64;
    destination.identity = identity();
    destination.anchor = anchor<HostCounter>();
    destination.same_boot = flag();
    if (destination.architecture == Architecture::kX86_64 && flag())
        destination.scaling_frac_bits = flag() ? 48 : 32;
    destination.vcpu_count = *rc::gen::inRange<std::uint32_t>(0, kVcpusMax + 1);
    destination.masterclock = flag();
    for (const Quirk quirk : kAllQuirks)
        if (flag()) destination.quirks |= static_cast<Quirks>(quirk);
    destination.by_value_bound_ns = u64();
    const int rounds = flag() ? *rc::gen::inRange(0, 4) : 0;
    for (int i = 0; i < rounds; ++i) {
        ExchangeRound round;
        round.asked = Count<HostCounter>::from_raw(u64());
        round.received = Count<SourceCounter>::from_raw(u64());
        round.answered =
            round.received + Ticks<SourceCounter>::from_raw(static_cast<std::int64_t>(u64() >> 1));
        round.heard =
            round.asked + Ticks<HostCounter>::from_raw(static_cast<std::int64_t>(u64() >> 1));
        destination.exchange.push_back(round);
    }
    return destination;
}

}  // namespace continuo::state::gen
