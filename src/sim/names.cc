// The names of everything that a report, a scenario or a command line speaks of.
#include <algorithm>
#include <array>
#include <string_view>

#include "continuo/sim/bug.h"
#include "continuo/sim/oracle.h"
#include "continuo/sim/run.h"
#include "continuo/sim/scenario.h"
#include "continuo/sim/site.h"

namespace continuo::sim {

namespace {

constexpr std::array<std::string_view, kSites> kSiteNames{
    "stop_vcpu", "read_anchor",   "read_vcpu",      "read_tsc",       "read_page",
    "get_clock", "encode",        "decode",         "plan",           "create_vcpu",
    "write_msr", "set_tsc_khz",   "set_tsc_adjust", "set_tsc_offset", "write_tsc",
    "set_clock", "kvmclock_ctrl", "settle",         "publish_notice", "before_entry"};

constexpr std::array<std::string_view, kFaults> kFaultNames{
    "wire_flip",     "wire_truncate", "guest_page",  "clock_answer", "offset_ignored",
    "restore_twice", "publish_race",  "notice_late", "vcpu_moves"};

constexpr std::array<std::string_view, kProbes> kProbeNames{"preempted_between_reads",
                                                            "preempted_between_writes",
                                                            "preempted_before_entry",
                                                            "replanned",
                                                            "refused",
                                                            "masterclock_off",
                                                            "scaled",
                                                            "tolerated",
                                                            "exchange_used",
                                                            "tai_used",
                                                            "same_boot",
                                                            "unsynchronised",
                                                            "leap_in_gap",
                                                            "ntp_step_in_gap",
                                                            "notice_while_odd",
                                                            "read_blocked",
                                                            "timer_cancelled",
                                                            "torn_page",
                                                            "fallback_reader",
                                                            "wire_damage_caught",
                                                            "page_damage_caught",
                                                            "kernel_lie_caught",
                                                            "restored_twice",
                                                            "vcpu_plugged",
                                                            "quiesced",
                                                            "large_delta",
                                                            "clocksource_lost",
                                                            "host_suspended",
                                                            "write_snapped",
                                                            "agent_repaired",
                                                            "ntp_repaired",
                                                            "not_trimmed"};

struct InvariantText {
    std::string_view name;
    std::string_view number;
    std::string_view meaning;
};
constexpr std::array<InvariantText, kInvariants> kInvariantTexts{{
    {"counter_per_vcpu", "1", "no counter runs backwards on its vCPU"},
    {"counter_across_vcpus", "1",
     "of two ordered reads of a synchronised guest's counters on two vCPUs the later one is not "
     "less"},
    {"kvmclock_monotonic", "2", "kvmclock never runs backwards for any reader"},
    {"idempotent", "3", "a restore that is carried out twice, or late, changes nothing"},
    {"monotonic_frozen", "4", "MONOTONIC does not count the gap where the guest was frozen"},
    {"monotonic_no_step", "4", "MONOTONIC does not step backwards"},
    {"no_stale_realtime", "5", "once a notice stands no REALTIME read returns the stale value"},
    {"inside_bound", "6", "the true error of every clock is inside its certified bound"},
    {"nothing_trusted", "7", "what is damaged is refused, or does no harm"},
    {"no_double", "8", "no quantity of time is a floating-point number: checked of the sources"},
    {"ntp_thrown_out", "S1.7",
     "after a notice NTP's state is void until the daemon has built it "
     "anew"},
    {"timers_cancelled", "S1.8",
     "TFD_TIMER_CANCEL_ON_SET timers are cancelled where REALTIME is "
     "repaired"},
    {"promise_kept", "S2",
     "the counters are where the strategy says, as far as the hosts' clocks "
     "allow"},
    {"stopped_seen", "S1.1", "a GUEST_STOPPED that was asked for is in the page at the entry"},
}};

struct BugText {
    std::string_view name;
    std::string_view meaning;
};
constexpr std::array<BugText, kBugs> kBugTexts{{
    {"none", "no bug"},
    {"host_guest_tick_mix",
     "the kernel's published recipe: host ticks added to guest ticks under scaling"},
    {"sequential_capture", "each vCPU's counter read in turn and taken for one instant (S2)"},
    {"anchor_not_bracketed", "counter and clock read apart, and how far apart is not in the bound"},
    {"kvmclock_at_another_time", "kvmclock of one instant beside the counter of another (S3.7)"},
    {"page_trusted", "the guest's own page is believed whatever it says"},
    {"tsc_adjust_forgotten", "IA32_TSC_ADJUST is not carried (S3.6)"},
    {"stopped_flag_lost", "GUEST_STOPPED asked for at the pause is not in the snapshot (S1.1)"},
    {"truncated_decode_accepted", "what the stream lacks is taken as zero"},
    {"integrity_ignored", "the record's hash is not looked at"},
    {"utc_instead_of_tai", "the gap is measured on REALTIME, across a leap second"},
    {"suspend_forgotten",
     "a counter that stood still while the host was suspended measures the gap"},
    {"tai_offset_forgotten", "a host that was never told TAI - UTC is taken at its word"},
    {"unsync_ignored", "a host's STA_UNSYNC is not looked at"},
    {"rate_term_missing", "the bound lacks what the counters may be off their stated rates"},
    {"clock_read_error_missing", "the bound lacks the hosts' own maxerror"},
    {"negative_gap_accepted", "a destination whose clock is behind moves the guest back in time"},
    {"exchange_round_trip_ignored", "the exchange's messages are taken to arrive at once"},
    {"get_clock_handed_back",
     "KVM_GET_CLOCK's struct handed to KVM_SET_CLOCK as it is, which advances kvmclock"},
    {"no_settle_before_trim",
     "kvmclock is set while a masterclock update is pending, which then moves it"},
    {"offset_write_skips_vcpu", "the last vCPU's offset is not written"},
    {"offset_from_wrong_vcpu", "every vCPU gets vCPU 0's offset (a guest that moved its TSC)"},
    {"write_zero_tsc", "0 written to IA32_TSC as a value: KVM takes it for an order (S3.3)"},
    {"frequency_not_set", "KVM_SET_TSC_KHZ forgotten on a host of another frequency (S0.5)"},
    {"entry_before_apply", "a vCPU enters before the clocks are written (S3.8)"},
    {"readback_ignored", "what the kernel has after a write is not compared with what was written"},
    {"reader_without_retry", "pvclock read without looking at the version"},
    {"reader_without_fallback",
     "no global compare-and-exchange where the stable bit is off (S3.5)"},
    {"sched_clock_underflow", "the scheduler's clock subtracts unsigned without a guard (S4.3)"},
    {"notice_sequence_even", "the notice's sequence is not odd while it is pending (S1.3)"},
    {"second_notice_overwrites", "a second notice overwrites the delta of the first (S1.3)"},
    {"agent_forgets_unsync", "the agent leaves STA_UNSYNC and maxerror as they were (S1.7)"},
    {"agent_raises_first", "the sequence is raised before REALTIME is repaired (S1.3)"},
    {"timers_not_cancelled", "REALTIME is repaired without TFD_TIMER_CANCEL_ON_SET (S1.8)"},
    {"delta_without_lead", "the notice's delta ends at the plan, not at the resume instant"},
}};

constexpr std::array<std::string_view, 4> kEndings{"moved", "refused", "failed", "limit"};
constexpr std::array<std::string_view, 6> kEventNames{
    "ntp_step", "ntp_slew", "leap_second", "clocksource_lost", "tsc_unstable", "suspend"};
constexpr std::array<std::string_view, 3> kPhaseNames{"running", "blackout", "after"};

/// Every entry has a text: a short list would leave the last ones empty.
template <class Array>
constexpr bool complete(const Array& texts) {
    return std::none_of(texts.begin(), texts.end(),
                        [](std::string_view text) { return text.empty(); });
}
static_assert(complete(kSiteNames) && complete(kFaultNames) && complete(kProbeNames));
static_assert(!kBugTexts.back().name.empty() && !kInvariantTexts.back().name.empty());

template <class Enum, std::size_t N>
std::optional<Enum> find(const std::array<std::string_view, N>& names, std::string_view wanted) {
    const auto found = std::find(names.begin(), names.end(), wanted);
    if (found == names.end()) return std::nullopt;
    return static_cast<Enum>(found - names.begin());
}

}  // namespace

std::string_view name(Site site) {
    return kSiteNames[static_cast<std::size_t>(site)];
}
std::optional<Site> site_from_name(std::string_view wanted) {
    return find<Site>(kSiteNames, wanted);
}
std::string_view name(Fault fault) {
    return kFaultNames[static_cast<std::size_t>(fault)];
}
std::optional<Fault> fault_from_name(std::string_view wanted) {
    return find<Fault>(kFaultNames, wanted);
}
std::string_view name(Probe probe) {
    return kProbeNames[static_cast<std::size_t>(probe)];
}

std::string_view name(Invariant invariant) {
    return kInvariantTexts[static_cast<std::size_t>(invariant)].name;
}
std::string_view number(Invariant invariant) {
    return kInvariantTexts[static_cast<std::size_t>(invariant)].number;
}
std::string_view meaning(Invariant invariant) {
    return kInvariantTexts[static_cast<std::size_t>(invariant)].meaning;
}

std::string_view name(Bug bug) {
    return kBugTexts[static_cast<std::size_t>(bug)].name;
}
std::string_view meaning(Bug bug) {
    return kBugTexts[static_cast<std::size_t>(bug)].meaning;
}
std::optional<Invariant> invariant_from_name(std::string_view wanted) {
    for (std::size_t i = 0; i < kInvariants; ++i)
        if (name(static_cast<Invariant>(i)) == wanted) return static_cast<Invariant>(i);
    return std::nullopt;
}

std::optional<Bug> bug_from_name(std::string_view wanted) {
    for (std::size_t i = 0; i < kBugs; ++i)
        if (kBugTexts[i].name == wanted) return static_cast<Bug>(i);
    return std::nullopt;
}

std::string_view name(Ending ending) {
    return kEndings[static_cast<std::size_t>(ending)];
}
std::string_view name(EventKind kind) {
    return kEventNames[static_cast<std::size_t>(kind)];
}
std::string_view name(Phase phase) {
    return kPhaseNames[static_cast<std::size_t>(phase)];
}

}  // namespace continuo::sim
