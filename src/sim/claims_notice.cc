// Thread S1, 2022: which clock a migration wrecks, and what the guest is told of it.
#include <fmt/format.h>

#include <array>

#include "claim_trial.h"

namespace continuo::sim {

namespace {

constexpr std::int64_t kSecond = 1'000'000'000;
constexpr std::int64_t kMilli = 1'000'000;

constexpr const char* kUpton = "Oliver Upton, 2022";
constexpr const char* kFranke = "Daniel Franke, 2022";

Scenario with_blackout(std::int64_t ns) {
    Scenario scenario = plain_scenario();
    scenario.moves[0].blackout_ns = Draw::of(ns);
    return scenario;
}

/// REALTIME is left to the guest's NTP daemon, or to an agent that hears of the gap.
Ruling polled(const Comparison&) {
    Scenario soon = with_blackout(10 * kSecond);
    soon.guest.ntp_poll_ns = Draw::of(16 * kSecond);
    Scenario late = soon;
    late.guest.ntp_poll_ns = Draw::of(64 * kSecond);
    const Spread alone_soon = trial(soon, kForced).of(Quantity::kStaleRealtime);
    const Spread alone_late = trial(late, kForced).of(Quantity::kStaleRealtime);
    const Spread told_late = trial(late, kFreezeNotify).of(Quantity::kStaleRealtime);
    return ruling(
        alone_late.median() > 2 * alone_soon.median() &&
            told_late.max() < alone_soon.median() / 100,
        fmt::format("REALTIME stale for {} where the guest looks every 16 s, {} where every 64 s; "
                    "with a notice {}",
                    spread_text(alone_soon), spread_text(alone_late), spread_text(told_late)),
        "the time until the guest looks does not show in how long REALTIME stays stale");
}

Ruling advance_keeps_realtime(const Comparison&) {
    Scenario apart = plain_scenario();
    apart.hosts[1].tai_error_ns = Draw::of(500'000);
    const Tally agree = trial(plain_scenario(), kAdvance);
    const Tally differ = trial(apart, kAdvance);
    const auto worst = [](const Tally& tally) {
        return std::max(tally.of(Quantity::kLostTime).max(), tally.of(Quantity::kTimeAhead).max());
    };
    const std::uint64_t near = worst(agree);
    const std::uint64_t far = worst(differ);
    return ruling(
        agree.moved > 0 && near < 10'000 && far < 600'000 && far > near,
        fmt::format("after 100 ms: REALTIME off by at most {} where the hosts' clocks agree, "
                    "by {} where they are 500 us apart, and nobody told the guest",
                    in_units(near), in_units(far)),
        "REALTIME was further off than the hosts' clocks are");
}

Ruling advance_counts(const Comparison&) {
    const Spread fifth = trial(with_blackout(200 * kMilli), kAdvance).of(Quantity::kForwardJump);
    const Spread long_gap = trial(with_blackout(20 * kSecond), kAdvance).of(Quantity::kForwardJump);
    const bool counts = fifth.count() > 0 && fifth.min() >= 200 * kMilli && long_gap.count() > 0 &&
                        long_gap.min() >= 20 * kSecond;
    return ruling(
        counts,
        fmt::format("MONOTONIC jumped forward by at least {} across 200 ms, by at least {} "
                    "across 20 s",
                    in_units(fifth.min()), in_units(long_gap.min())),
        "MONOTONIC did not count the whole gap in every run");
}

Ruling no_illusion(const Comparison&) {
    const Tally repaired = trial(plain_scenario(), kFixMonotonic);
    const Tally frozen = trial(plain_scenario(), kFreezeNotify);
    return ruling(always_broken(repaired.of(Invariant::kMonotonicFrozen)) &&
                      always_kept(frozen.of(Invariant::kMonotonicFrozen)),
                  fmt::format("MONOTONIC stands still across the gap: where the guest mends it "
                              "afterwards {}; where the hypervisor freezes the counter {}",
                              tally_text(repaired.of(Invariant::kMonotonicFrozen)),
                              tally_text(frozen.of(Invariant::kMonotonicFrozen))),
                  "a repair inside the guest alone hid the gap from some reader");
}

Ruling window_either_way(const Comparison&) {
    const Scenario scenario = with_blackout(10 * kSecond);
    const Spread stale = trial(scenario, kForced).of(Quantity::kStaleRealtime);
    const InvariantTally counted = trial(scenario, kFixMonotonic).of(Invariant::kMonotonicFrozen);
    return ruling(stale.min() > 0 && always_broken(counted),
                  fmt::format("frozen and not told: REALTIME stale for {}; advanced and mended: "
                              "MONOTONIC {}",
                              spread_text(stale), tally_text(counted)),
                  "in some run neither clock could be read wrong");
}

Ruling frozen_monotonic(const Comparison& comparison) {
    const Tally own = trial(with_blackout(10 * kSecond), kFreezeNotify);
    const InvariantTally& frozen = own.of(Invariant::kMonotonicFrozen);
    const InvariantTally& stepless = own.of(Invariant::kMonotonicNoStep);
    const Tally all = everywhere(comparison, kFreezeNotify);
    const bool kept = always_kept(frozen) && always_kept(stepless) &&
                      all.of(Invariant::kMonotonicFrozen).broken == 0 &&
                      all.of(Invariant::kMonotonicNoStep).broken == 0;
    return ruling(kept,
                  fmt::format("across 10 s MONOTONIC not counting: {}, not stepping: {}; over all "
                              "scenarios {} and {}",
                              tally_text(frozen), tally_text(stepless),
                              tally_text(all.of(Invariant::kMonotonicFrozen)),
                              tally_text(all.of(Invariant::kMonotonicNoStep))),
                  "MONOTONIC counted or stepped in some run of freeze-and-notify");
}

Ruling two_invariants(const Comparison&) {
    const Tally fixed = trial(with_blackout(10 * kSecond), kFixMonotonic);
    const InvariantTally& counted = fixed.of(Invariant::kMonotonicFrozen);
    const InvariantTally& stepped = fixed.of(Invariant::kMonotonicNoStep);
    return ruling(always_broken(counted) && always_broken(stepped),
                  fmt::format("across 10 s MONOTONIC counted the gap: {}; stepped back: {}",
                              tally_text(counted), tally_text(stepped)),
                  "one of the two held in some run");
}

/// An agent that takes its time, and a gap that REALTIME must hear of.
Scenario slow_agent() {
    Scenario scenario = with_blackout(10 * kSecond);
    scenario.guest.agent_latency_ns = Draw{kMilli, 500 * kMilli, false};
    return scenario;
}

Ruling sequence_blocks(const Comparison&) {
    const InvariantTally gate = trial(slow_agent(), kFreezeNotify).of(Invariant::kNoStaleRealtime);
    const InvariantTally open = trial(slow_agent(), kFreezeNotify, Bug::kNoticeSequenceEven)
                                    .of(Invariant::kNoStaleRealtime);
    return ruling(always_kept(gate) && always_broken(open),
                  fmt::format("no stale REALTIME read with the odd sequence: {}; with the sequence "
                              "left even: {}",
                              tally_text(gate), tally_text(open)),
                  "a read got past the gate, or none would have been stale without it");
}

Ruling blocks_until_handled(const Comparison&) {
    const Tally soon = trial(plain_scenario(), kFreezeNotify);
    const Tally late = trial(slow_agent(), kFreezeNotify);
    const Spread& short_wait = soon.of(Quantity::kHeld);
    const Spread& long_wait = late.of(Quantity::kHeld);
    return ruling(
        short_wait.min() >= 200'000 && long_wait.median() > short_wait.max() &&
            always_kept(late.of(Invariant::kNoStaleRealtime)),
        fmt::format("reads of REALTIME held back: {} with an agent that answers in 200 us, {} "
                    "with one that needs 1 to 500 ms",
                    spread_text(short_wait), spread_text(long_wait)),
        "reads did not have to wait for the agent");
}

Ruling sequence_second_move(const Comparison&) {
    Scenario scenario = slow_agent();
    scenario.moves.push_back(scenario.moves[0]);
    scenario.moves[1].to = 0;
    scenario.moves[1].run_ns = Draw::of(100'000);
    scenario.moves[1].before_agent = true;
    const Tally both = trial(scenario, kFreezeNotify);
    const Tally overwritten = trial(scenario, kFreezeNotify, Bug::kSecondNoticeOverwrites);
    const bool odd = (both.probes & bit(Probe::kNoticeWhileOdd)) != 0;
    return ruling(
        odd && always_kept(both.of(Invariant::kNoStaleRealtime)) &&
            overwritten.of(Invariant::kNoStaleRealtime).broken > 0,
        fmt::format("a second move before the first notice was handled ({}): {}; where it "
                    "overwrites the first one's delta: {}",
                    odd ? "reached" : "not reached",
                    tally_text(both.of(Invariant::kNoStaleRealtime)),
                    tally_text(overwritten.of(Invariant::kNoStaleRealtime))),
        "a delta was lost, or no run got there");
}

Ruling ntp_book(const Comparison&) {
    const InvariantTally told = trial(plain_scenario(), kFreezeNotify).of(Invariant::kNtpThrownOut);
    const InvariantTally kept = trial(plain_scenario(), kFreezeNotify, Bug::kAgentForgetsUnsync)
                                    .of(Invariant::kNtpThrownOut);
    const InvariantTally advanced =
        trial(plain_scenario(), kAdvanceNotify).of(Invariant::kNtpThrownOut);
    return ruling(
        always_kept(told) && always_kept(advanced) && always_broken(kept),
        fmt::format("STA_UNSYNC and the errors at NTP_PHASE_LIMIT after a notice: frozen {}, "
                    "advanced {}; with an agent that forgets: {}",
                    tally_text(told), tally_text(advanced), tally_text(kept)),
        "adjtimex told a belief of before the gap");
}

Ruling ntp_alone(const Comparison&) {
    Scenario scenario = with_blackout(10 * kSecond);
    scenario.guest.ntp_poll_ns = Draw{kSecond, 64 * kSecond, false};
    const Spread alone = trial(scenario, kForced).of(Quantity::kStaleRealtime);
    const Spread told = trial(scenario, kFreezeNotify).of(Quantity::kStaleRealtime);
    return ruling(alone.min() > 0 && told.max() < alone.min(),
                  fmt::format("REALTIME wrong until NTP answers: {}; told how much to add: {}",
                              spread_text(alone), spread_text(told)),
                  "the reads before NTP's answer were right in some run");
}

Ruling timers(const Comparison&) {
    const InvariantTally told =
        trial(with_blackout(10 * kSecond), kFreezeNotify).of(Invariant::kTimersCancelled);
    const InvariantTally silent =
        trial(with_blackout(10 * kSecond), kFreezeNotify, Bug::kTimersNotCancelled)
            .of(Invariant::kTimersCancelled);
    return ruling(always_kept(told) && always_broken(silent),
                  fmt::format("TFD_TIMER_CANCEL_ON_SET fired at the repair: {}; with a repair that "
                              "goes past settimeofday: {}",
                              tally_text(told), tally_text(silent)),
                  "a timer did not hear of the step");
}

Ruling quiesced(const Comparison&) {
    const Scenario scenario = with_blackout(10 * kSecond);
    const Tally asleep = trial(scenario, kQuiesced);
    const Tally forced = trial(scenario, kForced);
    const Spread& calm = asleep.of(Quantity::kStaleRealtime);
    const Spread& rude = forced.of(Quantity::kStaleRealtime);
    return ruling(
        calm.count() > 0 && calm.max() < rude.min(),
        fmt::format("REALTIME stale after 10 s: suspended to idle first {}; without notice "
                    "{}",
                    spread_text(calm), spread_text(rude)),
        "a guest that was asleep read its clock wrong for as long as one that was not");
}

constexpr std::array kClaims{
    Claim{
        "s1-the-flag-is-polled", "S1.1", kUpton,
        "A flag in shared memory works only when the guest happens to look at it; an interrupt is "
        "answered in reasonable time.",
        "forced (nobody is told) with a daemon that looks every 16 s and every 64 s, against "
        "freeze-and-notify: how long REALTIME stays stale grows with the interval, and is 100 "
        "times shorter with the notice",
        &polled},
    Claim{"s1-advance-keeps-realtime", "S1.6", kFranke,
          "Moving the guest's TSC along keeps its idea of real time as accurate as the hypervisor "
          "can make it, without the guest's help.",
          "advance: REALTIME at the first read is off by less than 10 us where the hosts' clocks "
          "agree, and by about their distance where they do not",
          &advance_keeps_realtime},
    Claim{
        "s1-advance-counts-the-gap", "S1.5", kUpton,
        "Advancing the TSC by the elapsed time destroys CLOCK_MONOTONIC, which is not to count "
        "while the system is suspended.",
        "advance across 200 ms and across 20 s: MONOTONIC jumps forward by the whole gap in every "
        "run",
        &advance_counts},
    Claim{
        "s1-no-illusion-without-help", "S1.4", kUpton,
        "A guest cannot keep up the illusion that MONOTONIC stopped without the hypervisor's help.",
        "advance-and-fix-monotonic breaks `MONOTONIC does not count the gap` in every run, "
        "freeze-and-notify in none",
        &no_illusion},
    Claim{
        "s1-a-window-either-way", "S1.3", kUpton,
        "Whichever clock is wrecked, there is a window in which reads race with its repair and can "
        "be completely wrong.",
        "forced: REALTIME is stale for some time in every run; advance-and-fix-monotonic: "
        "MONOTONIC is "
        "wrong in every run",
        &window_either_way},
    Claim{"s1-frozen-monotonic-holds", "S1.4", kUpton,
          "Without advancing the TSC, MONOTONIC neither counts the gap nor steps.",
          "freeze-and-notify, in a trial across 10 s and in every scenario of the comparison: both "
          "kept in every run",
          &frozen_monotonic},
    Claim{
        "s1-two-invariants", "S1.5", kUpton,
        "Advancing the TSC and having the guest fix MONOTONIC is fundamentally wrong: it violates "
        "two invariants, for the clock counts during the migration and is stepped after it.",
        "advance-and-fix-monotonic across 10 s: both are broken in every run", &two_invariants},
    Claim{"s1-the-sequence-blocks", "S1.3", kUpton,
          "Racing reads of REALTIME can be held back by a migration sequence that is odd while an "
          "update is pending.",
          "freeze-and-notify with an agent that needs up to 500 ms: no stale read in any run, and "
          "stale reads in every run where the sequence is left even",
          &sequence_blocks},
    Claim{"s1-reads-block-until-handled", "S1.3", kUpton,
          "That blocks all reads of REALTIME until the interrupt has been handled.",
          "continuo-freeze-and-notify with a quick agent and a slow one: reads are held for at "
          "least as long "
          "as the agent needs, and what they return is right",
          &blocks_until_handled},
    Claim{"s1-a-second-move-while-odd", "S1.3", kUpton,
          "Host and guest each raise the sequence, so that a second migration before the first is "
          "accounted for is still told in full.",
          "freeze-and-notify with a second move 100 us after the first: no stale read in any run, "
          "and "
          "some where the second notice overwrites the first one's delta",
          &sequence_second_move},
    Claim{"s1-ntp-throws-out-the-book", "S1.7", kFranke,
          "A notice resets time_esterror and time_maxerror to NTP_PHASE_LIMIT and time_status to "
          "STA_UNSYNC, so that the daemon starts anew.",
          "both notifying policies keep it in every run; an agent that forgets breaks it in every "
          "run",
          &ntp_book},
    Claim{"s1-ntp-alone-is-late", "S1.2", kUpton,
          "With NTP as the sole source of truth, whatever is read before the network answers is "
          "wrong; the hypervisor knows the gap, and telling it is better.",
          "forced against freeze-and-notify, a daemon that polls within 1 to 64 s: the worst told "
          "run "
          "is better than the best untold one",
          &ntp_alone},
    Claim{"s1-timers-are-cancelled", "S1.8", kUpton,
          "The repair fires all existing mechanisms of a clock step; TFD_TIMER_CANCEL_ON_SET tells "
          "user space.",
          "freeze-and-notify: timers are cancelled in every run, and in none with the bug planted",
          &timers},
    Claim{"s1-quiescing-is-gentle", "S1.9", kUpton,
          "A guest that is suspended to idle before the move takes no harm; but hosts fail without "
          "time for that, so forced moves remain.",
          "quiesced against forced across 10 s: the worst quiesced run is better than the best "
          "forced "
          "one in how long REALTIME is stale",
          &quiesced},
};

}  // namespace

std::span<const Claim> notice_claims() {
    return kClaims;
}

}  // namespace continuo::sim
