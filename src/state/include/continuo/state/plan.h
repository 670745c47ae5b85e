// The planner: a pure function from a record, a destination and a policy to the lines that the
// guest must see there and the writes that make them, or to refusals that name the clock and the
// size of what would go wrong. It reads no clock and calls no kernel; every value it prescribes is
// exact at the stated instant, and everything that is not known exactly is a term of a bound.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <vector>

#include "continuo/state/exchange.h"
#include "continuo/state/policy.h"
#include "continuo/state/record.h"
#include "continuo/time/tsc_scale.h"

namespace continuo::state {

using time::TscMap;

/// What doctor found wrong or missing on a host; a set of bits.
enum class Quirk : std::uint32_t {
    kNoTscOffset = 1U << 0,       ///< no KVM_VCPU_TSC_OFFSET attribute: TSC goes by value
    kTscOffsetIgnored = 1U << 1,  ///< the attribute answers 0 and changes nothing
    kTscWriteIgnored = 1U << 2,   ///< host writes of IA32_TSC change nothing
    kTscSyncOnFirstWrite =
        1U << 3,  ///< before Linux 6.7: a first write by value within 1 s of creation is lost
    kNoTscAdjust = 1U << 4,     ///< IA32_TSC_ADJUST cannot be written
    kNoKvmclockCtrl = 1U << 5,  ///< no KVM_KVMCLOCK_CTRL
    kNoClockTriple = 1U << 6,   ///< KVM_GET_CLOCK gives no host_tsc: kvmclock cannot be trimmed
    kPhysicalCounterFixed =
        1U << 7,  ///< arm64: the guest's physical counter is the host's, and nothing moves it
};
using Quirks = std::uint32_t;
constexpr bool has(Quirks quirks, Quirk quirk) {
    return (quirks & static_cast<Quirks>(quirk)) != 0;
}
std::string_view name(Quirk quirk);
std::optional<Quirk> quirk_from_name(std::string_view name);
inline constexpr std::array kAllQuirks{Quirk::kNoTscOffset,     Quirk::kTscOffsetIgnored,
                                       Quirk::kTscWriteIgnored, Quirk::kTscSyncOnFirstWrite,
                                       Quirk::kNoTscAdjust,     Quirk::kNoKvmclockCtrl,
                                       Quirk::kNoClockTriple,   Quirk::kPhysicalCounterFixed};

/// The host where the guest is to go on.
struct Destination {
    Architecture architecture = Architecture::kX86_64;
    HostIdentity identity;
    Anchor<HostCounter> anchor;
    /// Elapsed time goes by the counter, unless the host was suspended in between, where it goes by
    /// TAI. Only with proof: equal boot identities, or, where one is unknown, a caller who vouches
    /// for it; two known identities that differ are refused.
    bool same_boot = false;
    /// 48 (VMX), 32 (SVM), or none: the host cannot scale a guest's TSC.
    std::optional<int> scaling_frac_bits;
    std::uint32_t vcpu_count = 0;
    bool masterclock = true;  ///< kvmclock has one line for all vCPUs there
    Quirks quirks = 0;
    /// Longest time that a TSC write by value takes to land, for the bound where the attribute is
    /// missing.
    std::uint64_t by_value_bound_ns = 1'000'000;
    /// What this host learned of the source's counter; elapsed time goes by it where it knows
    /// better than the two hosts' TAI. Of no use on one boot. Domain: check(exchange) holds.
    Exchange exchange;
};

inline constexpr std::uint64_t kGapLimitNsDefault = 30ULL * 86'400 * time::kNanosPerSecond;

struct PlanOptions {
    Policy policy = Policy::kAdvance;
    /// Longest believable gap; a longer one is refused, or clamped to this.
    std::uint64_t gap_limit_ns = kGapLimitNsDefault;
    /// Clamp a negative or absurd gap to [0, gap_limit_ns] and say so, instead of refusing.
    bool clamp_gap = false;
    /// The instant at which all vCPUs enter; the destination's anchor where none is given.
    std::optional<Count<HostCounter>> resume_at;
};

enum class ClockKind : std::uint8_t {
    kTsc,
    kTscAdjust,
    kKvmclock,
    kRealtime,
    kVirtualCounter,   ///< arm64: CNTVCT, the guest's counter as the TSC is on x86-64
    kPhysicalCounter,  ///< arm64: CNTPCT, of the same offset where that can be set
};
/// "tsc", "tsc_adjust", "kvmclock", "realtime", "cntvct", "cntpct"
std::string_view name(ClockKind clock);
/// The counter that a guest's clocks are lines of.
constexpr ClockKind guest_counter(Architecture architecture) {
    return architecture == Architecture::kArm64 ? ClockKind::kVirtualCounter : ClockKind::kTsc;
}

/// One reason why a prescribed value is not known better.
enum class BoundSource : std::uint8_t {
    kCaptureRead,     ///< reading the clock on the source
    kSourceTai,       ///< the source's TAI
    kDestinationTai,  ///< the destination's TAI
    kExchange,        ///< how long the exchange's questions and answers were under way
    kFrequency,       ///< what the hosts' counters may be off the rates that they were counted at
    kRounding,        ///< whole ticks and nanoseconds
    kByValueWrite,    ///< a TSC written by value lands when it lands
    kTrim,            ///< how close the closed loop brings kvmclock
    kReadBack,        ///< rounding of the kernel's answer
    kClamp,           ///< the gap was clamped, and is that far from what was measured
};
std::string_view name(BoundSource source);
std::string_view meaning(BoundSource source);

struct BoundTerm {
    BoundSource source{};
    std::uint64_t size = 0;
    friend bool operator==(const BoundTerm&, const BoundTerm&) = default;
};

/// A bound and the terms that it is the sum of, in the unit of its clock (ticks for counters, ns
/// for timelines).
class Bound {
  public:
    static constexpr std::size_t kTermsMax = 10;  ///< one for each source
    /// Adds to the term of this source; zero terms are kept out. Saturates.
    void add(BoundSource source, std::uint64_t size);
    std::uint64_t total() const;
    /// The term of this source; 0 where there is none.
    std::uint64_t of(BoundSource source) const;
    const BoundTerm* begin() const { return terms_.data(); }
    const BoundTerm* end() const { return terms_.data() + count_; }
    friend bool operator==(const Bound&, const Bound&) = default;

  private:
    std::array<BoundTerm, kTermsMax> terms_{};
    std::size_t count_ = 0;
};

enum class RefusalReason : std::uint8_t {
    kArchitecture,   ///< the destination runs other machine code
    kVcpus,          ///< fewer vCPUs than the record, or none
    kNoMasterclock,  ///< the guest relied on one kvmclock line, and there are several
    kFrequency,      ///< beyond 250 ppm and no scaling, or a ratio that the hardware does not take
    kNegativeGap,    ///< the destination's clock is before the source's
    kAbsurdGap,      ///< over the limit
    kTscUncontrolled,  ///< no control of the TSC that works, and the policy needs one
    kKvmclockUncontrolled,
    kUnsynchronised,  ///< nothing common to measure the gap with
    kExchange,        ///< the rounds of the exchange contradict each other
};
std::string_view name(RefusalReason reason);

/// Why a clock cannot be honoured, and by how much it would go wrong.
struct Refusal {
    ClockKind clock{};
    std::optional<std::uint32_t> vcpu;  ///< none: the whole VM
    RefusalReason reason{};
    std::uint64_t size = 0;
    std::string_view unit;  ///< "ns", "ticks", "ppb", "vcpus"
    std::string message;    ///< one sentence with the numbers
    std::string advice;     ///< what to do next
};

enum class ElapsedBy : std::uint8_t { kHostCounter, kTai, kExchange };
std::string_view name(ElapsedBy elapsed_by);

/// The gap as one way of measuring has it: the true one is within bound_ns of it. Both saturate.
struct GapMeasure {
    Nanos<Tai> gap;
    std::uint64_t bound_ns = 0;
    friend bool operator==(const GapMeasure&, const GapMeasure&) = default;
};

/// As the exchange has it.
struct ExchangeMeasure : GapMeasure {
    std::size_t rounds = 0;
    /// How far the resume instant is known on the source's counter: by the time that the rounds
    /// took to and fro, and by what the two counters may have drifted apart since. bound_ns is the
    /// sum of both and of what the source's counter may be off true time over the gap.
    std::uint64_t bracket_ns = 0;
    std::uint64_t drift_ns = 0;
    friend bool operator==(const ExchangeMeasure&, const ExchangeMeasure&) = default;
};

/// Every way that there was to measure the gap between two hosts, the chosen one among them;
/// neither on one boot, except TAI where that boot was suspended in between.
struct GapMeasures {
    std::optional<GapMeasure> by_tai;
    std::optional<ExchangeMeasure> by_exchange;
    /// How far the destination's anchor is ahead of the source's in TAI, as the exchange has it:
    /// the error of the one clock less the error of the other, the two anchors' brackets included.
    std::optional<GapMeasure> clock_offset;
};

enum class RateChoice : std::uint8_t {
    kEqual,      ///< one frequency, in whole kHz
    kTolerated,  ///< within 250 ppm: KVM runs it unscaled, and it is off by rate_error
    kScaled,
};
std::string_view name(RateChoice choice);

/// The line that one vCPU must see.
struct PrescribedTsc {
    std::uint32_t vcpu = 0;
    TscMap map{0};                  ///< host counter -> guest counter, with the offset to write
    Count<GuestCounter> at_anchor;  ///< map.at(destination.anchor.counter)
    Count<GuestCounter> at_resume;  ///< map.at(resume_at)
    Ticks<GuestCounter>
        advanced;  ///< at_resume less the recorded value: 0 under the freezing policies
    Bound bound;   ///< ticks
};

/// The line of kvmclock that all vCPUs must see, in vCPU 0's counter.
struct PrescribedKvmclock {
    PvclockLine line;
    Instant<Kvmclock> at_anchor;
    Instant<Kvmclock> at_resume;
    Nanos<Kvmclock> advanced;
    RateError rate_error;  ///< of this scale on this host against the guest's nominal frequency
    Bound bound;           ///< ns
};

enum class WriteKind : std::uint8_t {
    kVcpuTscKhz,    ///< value = kHz
    kTscAdjust,     ///< value = IA32_TSC_ADJUST
    kTscOffset,     ///< value = KVM_VCPU_TSC_OFFSET
    kTscByValue,    ///< the guest counter of the prescribed line at the moment of writing
    kKvmclock,      ///< the prescribed line, in a closed loop
    kGuestStopped,  ///< KVM_KVMCLOCK_CTRL
    kNotice,        ///< value = the gap in ns
};
std::string_view name(WriteKind kind);
/// What must be read back after it.
std::string_view postcondition(WriteKind kind);

struct Write {
    WriteKind kind{};
    std::uint32_t vcpu = 0;  ///< meaningless for kKvmclock and kNotice
    std::uint64_t value = 0;
};

/// What is told to the guest under the notifying policies.
struct Notice {
    Nanos<Tai> delta_realtime;  ///< how far the guest's REALTIME lags until it is repaired; 0 where
                                ///< clocks advanced
    Nanos<Tai> gap;
    std::uint64_t sequence = 0;  ///< odd: pending
};

struct Plan {
    Architecture architecture = Architecture::kX86_64;
    Policy policy{};
    ElapsedBy elapsed_by{};
    Count<HostCounter> resume_at;
    /// Real time from the record's anchor to resume_at, what lies within gap_bound_ns of it, and
    /// whether it was clamped.
    Nanos<Tai> gap;
    std::uint64_t gap_bound_ns = 0;
    bool gap_clamped = false;
    GapMeasures measures;
    RateChoice rate{};
    RateError
        tsc_rate_error;  ///< of the guest's counter on this host against its nominal frequency
    Hz guest_frequency = *Hz::from_hz(time::kNanosPerSecond);
    std::vector<PrescribedTsc> tsc;
    std::optional<PrescribedKvmclock> kvmclock;
    std::optional<Notice> notice;
    std::vector<Write> writes;       ///< in the order in which they must happen
    std::vector<std::string> notes;  ///< what the operator should know, most important first
};

/// All reasons at once, never empty.
using Refusals = std::vector<Refusal>;
using PlanResult = tl::expected<Plan, Refusals>;

/// Decides for every clock of the guest. Pure; cost is linear in vCPUs and allocates a fixed number
/// of blocks. Domain: any record and destination that their decoders let through.
PlanResult plan(const Record& record, const Destination& destination, const PlanOptions& options);

}  // namespace continuo::state
