// A scenario: hosts, a guest, how a VMM's threads are scheduled, moves, events and faults, as read
// from a TOML file (docs/formats/scenario.md). Everything is an integer; a scenario and a seed are
// a run.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "continuo/sim/draw.h"
#include "continuo/sim/site.h"
#include "continuo/state/error.h"

namespace continuo::sim {

using state::Result;

inline constexpr std::size_t kVcpusMax = 8;
inline constexpr std::size_t kHostsMax = 4;
inline constexpr std::size_t kMovesMax = 8;

/// What a clock of Linux is driven by.
enum class Clocksource : std::uint8_t { kTsc, kKvmclock, kHpet };

/// One host: its oscillator, its kernel, and what its kernel believes of its clocks.
struct HostSpec {
    std::string name;
    unsigned kernel_major = 6;
    unsigned kernel_minor = 12;
    Draw tsc_khz = Draw::of(2'000'000);                ///< what the kernel states
    Draw tsc_sub_khz_hz;                               ///< what the truncated kHz leave out
    Draw drift_ppb;                                    ///< of the true frequency from that
    Draw wander_ppb;                                   ///< each step of the random walk
    std::int64_t wander_step_ns = 0;                   ///< 0: no wander
    std::int64_t wander_max_ppb = 0;                   ///< the walk is reflected there
    Draw counter_start = Draw::of(1'000'000'000'000);  ///< at the beginning, modulo 2^64
    Draw cpu_skew_ticks;                               ///< of each CPU's counter but CPU 0's
    bool tsc_clocksource = true;                       ///< else hpet: no masterclock
    bool tsc_unstable = false;        ///< KVM then moves offsets by itself, and exact is nothing
    std::optional<int> scaling_bits;  ///< 48 (VMX), 32 (SVM), none
    std::uint32_t rate_bound_ppb = 500'000;  ///< as the host states it
    Draw tai_error_ns;                       ///< of its clock, at the beginning
    Draw tai_rate_ppb;                       ///< at which that grows
    std::uint64_t tai_bound_ns = 1'000'000;  ///< as adjtimex states it (maxerror)
    bool synchronised = true;
    bool lies = false;                 ///< its statements need not be true
    std::int32_t tai_offset_sec = 37;  ///< 0: its kernel was never told
};

/// The guest: its kernel's timekeeping, its NTP, its agent.
struct GuestSpec {
    unsigned vcpus = 4;
    std::uint32_t tsc_khz = 0;  ///< 0: the first host's
    Clocksource clocksource = Clocksource::kTsc;
    Draw uptime_ns = Draw::of(0);     ///< kvmclock and counter at the beginning
    Draw tsc_adjust;                  ///< of each vCPU but the first: the guest moved its TSC
    bool old_msrs = false;            ///< MSR_KVM_SYSTEM_TIME by its old number
    bool clamps_large_deltas = true;  ///< a timekeeper that survives a large delta (S3.7)
    bool has_agent = true;
    bool agent_dies = false;                      ///< the agent never answers
    Draw agent_latency_ns = Draw::of(200'000);    ///< from the entry to its repair
    Draw realtime_error_ns;                       ///< of REALTIME before the stop
    std::int64_t tick_ns = 4'000'000;             ///< the timekeeper accumulates this often
    Draw ntp_poll_ns = Draw::of(64'000'000'000);  ///< until the daemon's next sample
    std::int64_t ntp_step_ns = 128'000'000;  ///< it steps what is off by more, and slews the rest
    std::int64_t ntp_slew_ppm = 500;
    Draw ntp_accuracy_ns = Draw{-100'000, 100'000, false};
    bool plugs_vcpu = false;          ///< vCPU 0 is unplugged and plugged again after a move
    bool starts_sched_clock = false;  ///< it starts its scheduler's clock after a move (S4.3)
};

/// How long a step takes, and how often and for how long its thread loses the processor there.
struct SiteSpec {
    Draw cost_ns;    ///< drawn once a run: one machine's system call takes what it takes
    Draw jitter_ns;  ///< drawn each time, on the way to where the kernel acts
    Ppm preempt;
    Draw preempt_ns;
};

struct VmmSpec {
    std::array<SiteSpec, kSites> sites;
    Draw exit_skew_ns = Draw{0, 20'000, false};  ///< of each vCPU after the first
    Draw entry_skew_ns = Draw{0, 20'000, false};
    std::int64_t resume_lead_ns = 2'000'000;  ///< how far ahead the resume instant is planned
    bool ctrl_at_stop = false;  ///< KVM_KVMCLOCK_CTRL on every vCPU at the stop, as many VMMs do
};

/// Questions and answers between the hosts before the stop.
struct ChannelSpec {
    unsigned rounds = 0;
    Draw there_ns = Draw{20'000, 80'000, false};
    Draw back_ns = Draw{20'000, 80'000, false};
};

struct MoveSpec {
    unsigned to = 1;                        ///< index of the host
    bool in_place = false;                  ///< the same VM goes on: a pause, no restore elsewhere
    Draw run_ns = Draw::of(1'000'000'000);  ///< the guest runs so long before
    Draw blackout_ns =
        Draw::of(100'000'000);  ///< from the last read of its clocks to the first write
    bool before_agent = false;  ///< the stop comes before the agent has answered
};

enum class EventKind : std::uint8_t {
    kNtpStep,          ///< size_ns: the host's clock jumps
    kNtpSlew,          ///< size_ppb: its rate changes
    kLeapSecond,       ///< size_s: +1 or -1, on all hosts
    kClocksourceLost,  ///< tsc to hpet
    kTscUnstable,      ///< size_ticks: the counter of CPU 1 and up jumps
    kSuspend,          ///< size_ns: the host sleeps so long, its counter stands still
};
std::string_view name(EventKind kind);

enum class Phase : std::uint8_t { kRunning, kBlackout, kAfter };
std::string_view name(Phase phase);

struct EventSpec {
    EventKind kind{};
    unsigned host = 0;
    unsigned move = 0;  ///< index of the move that it belongs to
    Phase phase = Phase::kBlackout;
    std::uint32_t at_ppm = 500'000;  ///< where in the phase, in millionths of it
    Draw size;
};

class Strategy;
enum class Invariant : std::uint8_t;

/// What must not be broken in this scenario, by whom: the rest may be, as what a design costs.
struct KeepSpec {
    std::vector<std::string> strategies;  ///< none: every strategy
    std::uint32_t invariants = 0;         ///< bit by Invariant
};

/// What a run may cost before it is given up.
struct Limits {
    std::uint32_t steps = 100'000;
    std::int64_t true_time_ns = 16LL * 365 * 86'400 * 1'000'000'000;
};

struct Scenario {
    std::string name;
    std::string about;
    std::uint64_t epoch_tai_ns = 1'750'000'000'000'000'000;  ///< TAI at true time 0
    std::vector<HostSpec> hosts;
    GuestSpec guest;
    VmmSpec vmm;
    ChannelSpec channel;
    std::vector<MoveSpec> moves;
    std::vector<EventSpec> events;
    std::array<Ppm, kFaults> faults{};
    std::int64_t observe_ns =
        1'000'000'000;                  ///< clocks are looked at again so long after the entry
    std::int64_t ordered_read_ns = 20;  ///< two reads on two CPUs that are ordered lie so far apart
    Limits limits;
    std::vector<KeepSpec> must_keeps;

    /// The scenario says that this strategy must keep this invariant.
    bool must_keep(const Strategy& strategy, Invariant invariant) const;
    Ppm fault(Fault which) const { return faults[static_cast<std::size_t>(which)]; }
    const SiteSpec& site(Site which) const { return vmm.sites[static_cast<std::size_t>(which)]; }
};

/// Reads a scenario. `file` is named in errors only. Fails with kMalformed; `where` is
/// "file:line:column: key", `what` says what stands there, `advice` what was expected.
Result<Scenario> parse_scenario(std::string_view toml, std::string_view file);
/// The same from a file; kIo where it cannot be read.
Result<Scenario> load_scenario(const std::string& path);

}  // namespace continuo::sim
