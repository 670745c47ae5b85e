// Repairs REALTIME and the kernel's NTP state after the guest has travelled in time, in one pass: a
// journal of what is about to be done, the step, the NTP state, the daemon, the answer. Exactly
// once for each notice, whatever comes between: a second migration, or the death of this process.
#pragma once

#include <cstdint>

#include "continuo/guest/time_travel_page.h"
#include "counters.h"
#include "ntp_daemon.h"
#include "system.h"

namespace continuo::guest {

struct Policy {
    /// Kernel's NTP state after a repair: unknown (STA_UNSYNC, both errors at NTP_PHASE_LIMIT);
    /// else as it was, plus the bound of the repair.
    bool void_ntp = true;
    /// Steps although somebody may have repaired REALTIME before (see Repair::notices()).
    bool step_late = false;
    Daemon daemon = Daemon::kAuto;
    const char* chrony_socket = "/run/chrony/chronyd.sock";
};

/// NTP_PHASE_LIMIT in us: what the kernel takes for "no idea" (include/linux/timex.h).
inline constexpr std::int64_t kNtpPhaseLimitUs = 16'000'000;
/// A notice that asks for a longer step is not believed.
inline constexpr std::int64_t kStepLimitNs = std::int64_t{366} * 86'400 * 1'000'000'000;
/// Two looks at REALTIME - BOOTTIME differ by less than this unless somebody set REALTIME.
inline constexpr std::int64_t kOffsetNoiseNs = 1'000'000;

class Repair {
  public:
    Repair(System& system, const Policy& policy, Counters& counters)
        : system_{system},
          policy_{policy},
          counters_{counters},
          daemon_{system, policy.daemon, policy.chrony_socket} {}

    /// Finishes the book-keeping of a repair that an earlier process died over. To be called once,
    /// before notices().
    void resume(continuo_time_travel_page& page);

    /// Repairs and answers all open notices. A notice whose readers were released already is
    /// stepped by only if REALTIME is known not to have been set since before it (this process has
    /// watched it), or by policy; else it is left to NTP, for a second repair is worse than a late
    /// one. Returns whether none is left open by a failure.
    bool notices(continuo_time_travel_page& page);

    /// Repairs what another source than the notice page has measured: steps by delta_ns where that
    /// is not 0, voids NTP's state, asks the daemon. `source`: for the journal.
    bool measured(const char* source, std::int64_t delta_ns, std::uint64_t bound_ns);

    /// Takes REALTIME as it stands for known. Returns by how much somebody else has moved it since
    /// the last time; 0 where that is not known.
    std::int64_t settle();

    /// When what is being repaired was heard of: the pass is timed from here.
    void begin();

  private:
    struct Offset {
        bool known;
        std::int64_t ns;  ///< REALTIME - BOOTTIME
    };
    /// What happened to REALTIME in a pass.
    enum class Outcome : std::uint8_t { kStepped, kLeftToNtp, kFailed };

    Offset offset();
    bool untouched(Offset now) const;
    void mend(continuo_time_travel_page& page, continuo_travel& travel);
    Outcome step_for(continuo_time_travel_page& page, const continuo_travel& travel);
    bool step(std::int64_t delta_ns);
    void remember_ntp_state();
    void set_ntp_state(std::uint64_t bound_ns);
    void finish_daemon();
    bool failed(const char* call, int error);
    void log_answer(const continuo_travel& travel, Outcome outcome, bool answered);

    System& system_;
    const Policy& policy_;
    Counters& counters_;
    NtpDaemon daemon_;
    Offset settled_{false, 0};
    std::int64_t begun_ns_ = 0;
    timex before_{};  ///< NTP state before the step
    bool before_known_ = false;
    bool accounted_known_ = false;
    std::uint64_t accounted_ns_ = 0;          ///< of the page, at the last answer
    std::uint64_t repaired_maxerror_ns_ = 0;  ///< of the page, at the last repair
};

}  // namespace continuo::guest
