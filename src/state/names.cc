// The names of the enumerations, as the command line, JSON and certificates spell them: one table
// each.
#include <algorithm>
#include <array>

#include "continuo/state/certificate.h"
#include "continuo/state/error.h"
#include "continuo/state/plan.h"
#include "continuo/state/policy.h"

namespace continuo::state {

namespace {

template <class E>
struct Named {
    E value;
    std::string_view name;
    std::string_view meaning;
};
template <class E>
Named(E, std::string_view, std::string_view) -> Named<E>;

template <class Table, class E>
const auto& row(const Table& table, E value) {
    const auto it = std::find_if(table.begin(), table.end(),
                                 [&](const auto& entry) { return entry.value == value; });
    CONTINUO_CHECK(it != table.end());
    return *it;
}

template <class E, class Table>
std::optional<E> value_of(const Table& table, std::string_view wanted) {
    for (const auto& entry : table)
        if (entry.name == wanted) return entry.value;
    return std::nullopt;
}

constexpr std::array kPolicies{
    Named{Policy::kFreeze, "freeze",
          "every clock goes on from its value at the stop; the guest is told nothing, and its "
          "REALTIME is behind by the gap until NTP steps it"},
    Named{Policy::kAdvance, "advance",
          "every clock goes on as if the guest had never stopped; it is told nothing, and its "
          "MONOTONIC counts the gap"},
    Named{Policy::kFreezeAndNotify, "freeze-and-notify",
          "every clock goes on from its value at the stop; the guest is told the exact gap and "
          "holds REALTIME reads until it has stepped REALTIME"},
    Named{Policy::kAdvanceAndNotify, "advance-and-notify",
          "every clock goes on as if never stopped, as well as the hosts' clocks "
          "allow; the guest "
          "is told that a gap happened and throws its NTP state away"},
};

constexpr std::array kQuirks{
    Named{Quirk::kNoTscOffset, "no_tsc_offset", ""},
    Named{Quirk::kTscOffsetIgnored, "tsc_offset_ignored", ""},
    Named{Quirk::kTscWriteIgnored, "tsc_write_ignored", ""},
    Named{Quirk::kTscSyncOnFirstWrite, "tsc_sync_on_first_write", ""},
    Named{Quirk::kNoTscAdjust, "no_tsc_adjust", ""},
    Named{Quirk::kNoKvmclockCtrl, "no_kvmclock_ctrl", ""},
    Named{Quirk::kNoClockTriple, "no_clock_triple", ""},
    Named{Quirk::kPhysicalCounterFixed, "physical_counter_fixed", ""},
};

constexpr std::array kBoundSources{
    Named{BoundSource::kCaptureRead, "capture_read", "reading the clock on the source"},
    Named{BoundSource::kSourceTai, "source_tai", "how well the source knew TAI"},
    Named{BoundSource::kDestinationTai, "destination_tai", "how well the destination knows TAI"},
    Named{BoundSource::kExchange, "exchange",
          "how long the questions and answers between the hosts were under way"},
    Named{BoundSource::kFrequency, "frequency",
          "how far the hosts' counters may be off the frequencies that the gap was counted with"},
    Named{BoundSource::kRounding, "rounding", "whole ticks and whole nanoseconds"},
    Named{BoundSource::kByValueWrite, "by_value_write",
          "a counter written by value takes effect at an unknown moment of the write"},
    Named{BoundSource::kTrim, "trim", "how close the closed loop brings kvmclock"},
    Named{BoundSource::kReadBack, "read_back", "rounding of the kernel's answer"},
    Named{BoundSource::kClamp, "clamp",
          "the gap was clamped as asked, and is that far from what was measured"},
};

constexpr std::array kWrites{
    Named{WriteKind::kVcpuTscKhz, "vcpu_tsc_khz", "KVM_GET_TSC_KHZ of the vCPU answers this value"},
    Named{WriteKind::kTscAdjust, "tsc_adjust",
          "IA32_TSC_ADJUST reads this value; the guest's TSC is as before"},
    Named{WriteKind::kTscOffset, "tsc_offset",
          "KVM_VCPU_TSC_OFFSET reads this value; the vCPU's line is the prescribed one, seam 0"},
    Named{WriteKind::kTscByValue, "tsc_by_value",
          "IA32_TSC, read between two host counter readings, is on the prescribed "
          "line within the "
          "brackets of the write and the read"},
    Named{WriteKind::kKvmclock, "kvmclock",
          "KVM_GET_CLOCK is on the prescribed line at its host_tsc, within the trim target"},
    Named{WriteKind::kGuestStopped, "guest_stopped",
          "the vCPU's pvclock page has GUEST_STOPPED at the first guest entry"},
    Named{WriteKind::kNotice, "notice",
          "the guest's notice holds the gap and an odd sequence before the first guest entry"},
};

}  // namespace

std::string_view name(Policy policy) {
    return row(kPolicies, policy).name;
}
std::string_view meaning(Policy policy) {
    return row(kPolicies, policy).meaning;
}
std::optional<Policy> policy_from_name(std::string_view wanted) {
    return value_of<Policy>(kPolicies, wanted);
}

std::string_view name(Quirk quirk) {
    return row(kQuirks, quirk).name;
}
std::optional<Quirk> quirk_from_name(std::string_view wanted) {
    return value_of<Quirk>(kQuirks, wanted);
}

std::string_view name(BoundSource source) {
    return row(kBoundSources, source).name;
}
std::string_view meaning(BoundSource source) {
    return row(kBoundSources, source).meaning;
}

std::string_view name(WriteKind kind) {
    return row(kWrites, kind).name;
}
std::string_view postcondition(WriteKind kind) {
    return row(kWrites, kind).meaning;
}

std::string_view name(ClockKind clock) {
    switch (clock) {
        case ClockKind::kTsc:
            return "tsc";
        case ClockKind::kTscAdjust:
            return "tsc_adjust";
        case ClockKind::kKvmclock:
            return "kvmclock";
        case ClockKind::kRealtime:
            return "realtime";
        case ClockKind::kVirtualCounter:
            return "cntvct";
        case ClockKind::kPhysicalCounter:
            return "cntpct";
    }
    return "unknown";
}

std::string_view name(RefusalReason reason) {
    switch (reason) {
        case RefusalReason::kArchitecture:
            return "architecture";
        case RefusalReason::kVcpus:
            return "vcpus";
        case RefusalReason::kNoMasterclock:
            return "no_masterclock";
        case RefusalReason::kFrequency:
            return "frequency";
        case RefusalReason::kNegativeGap:
            return "negative_gap";
        case RefusalReason::kAbsurdGap:
            return "absurd_gap";
        case RefusalReason::kTscUncontrolled:
            return "tsc_uncontrolled";
        case RefusalReason::kKvmclockUncontrolled:
            return "kvmclock_uncontrolled";
        case RefusalReason::kUnsynchronised:
            return "unsynchronised";
        case RefusalReason::kExchange:
            return "exchange";
    }
    return "unknown";
}

std::string_view name(ElapsedBy elapsed_by) {
    switch (elapsed_by) {
        case ElapsedBy::kHostCounter:
            return "host_counter";
        case ElapsedBy::kTai:
            return "tai";
        case ElapsedBy::kExchange:
            return "exchange";
    }
    return "unknown";
}

std::string_view name(RateChoice choice) {
    switch (choice) {
        case RateChoice::kEqual:
            return "equal";
        case RateChoice::kTolerated:
            return "tolerated";
        case RateChoice::kScaled:
            return "scaled";
    }
    return "unknown";
}

}  // namespace continuo::state
