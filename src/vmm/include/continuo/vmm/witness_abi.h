// The memory that the witness guest and its host share: where everything lies in guest-physical
// memory, the control page that the host writes, and the report that each vCPU keeps. Compiled
// into the guest as well (freestanding), so it includes nothing but fixed-width integers. Every
// offset is asserted: the two sides are separate programs.
#pragma once

#include <cstddef>
#include <cstdint>

namespace continuo::vmm::witness {

inline constexpr std::uint32_t kMaxVcpus = 64;

// Guest-physical layout. Everything below kWorkload fits 2 MiB.
inline constexpr std::uint64_t kGdt = 0x1000;   ///< null, code, data, user data, user code, TSS
inline constexpr std::uint64_t kIdt = 0x2000;   ///< 256 gates, built by the host
inline constexpr std::uint64_t kPml4 = 0x3000;  ///< identity map of the first GiB
inline constexpr std::uint64_t kPdpt = 0x4000;
inline constexpr std::uint64_t kPageDirectory = 0x5000;
inline constexpr std::uint64_t kTaskStates = 0x6000;  ///< one TSS a vCPU, stride 128, two pages
inline constexpr std::uint64_t kImage = 0x10000;      ///< the payload, at most 64 KiB
inline constexpr std::uint64_t kImageLimit = 0x10000;
inline constexpr std::uint64_t kControl = 0x20000;     ///< struct Control
inline constexpr std::uint64_t kClockPages = 0x21000;  ///< pvclock structures, one a vCPU
inline constexpr std::uint64_t kClockStride = 64;
inline constexpr std::uint64_t kReports = 0x30000;  ///< struct Report, one page a vCPU
inline constexpr std::uint64_t kReportStride = 0x1000;
inline constexpr std::uint64_t kStacks = 0x80000;  ///< 8 KiB a vCPU; the first word: its report
inline constexpr std::uint64_t kStackStride = 0x2000;
inline constexpr std::uint64_t kKernelStackBytes = 0x1000;  ///< upper half; the lower is ring 3's
inline constexpr std::uint64_t kTaskStateStride = 128;
inline constexpr std::uint64_t kWorkload = 0x200000;  ///< pages that the workload dirties
inline constexpr std::uint64_t kIdentityMapBytes = 1ull << 30;

inline constexpr std::uint16_t kPortSerial = 0x3f8;  ///< one byte of text
inline constexpr std::uint16_t kPortExit = 0xf4;     ///< 32 bits: the guest's exit code
inline constexpr std::uint32_t kExitFault = 0xdead;  ///< a vCPU took an exception: see its report
inline constexpr std::uint8_t kTimerVector = 0x40;
inline constexpr std::uint8_t kSpuriousVector = 0xff;

inline constexpr std::uint64_t kMagic = 0x53534e5449574f43;  ///< "COWITNSS"
inline constexpr std::uint32_t kVersion = 2;

/// The first bytes of the payload.
struct ImageHeader {
    std::uint64_t magic;
    std::uint32_t version;
    std::uint32_t pad;
    std::uint64_t entry;  ///< every vCPU starts here: RDI = its report, RSI = control
    std::uint64_t timer_gate;
    std::uint64_t spurious_gate;
    std::uint64_t fault_gates;  ///< 32 entries of kFaultGateStride bytes
};
inline constexpr std::uint64_t kFaultGateStride = 16;
static_assert(sizeof(ImageHeader) == 48);

enum class TimerMode : std::uint32_t { kNone = 0, kTscDeadline = 1, kPeriodic = 2 };

inline constexpr std::uint32_t kFlagUserMode = 1u << 0;   ///< watch from ring 3
inline constexpr std::uint32_t kFlagTscAdjust = 1u << 1;  ///< CPUID has TSC_ADJUST

/// What the host tells the guest of gaps, and what the guest has taken note of. A stand-in for the
/// device that tells a real guest. `sequence` is odd while the guest has not answered; whichever
/// vCPU moves it to even with one compare-and-exchange has taken exactly the sums that stood there.
/// A host that publishes into a pending notice adds to its sums and raises `sequence` by two, so
/// that no gap is lost and no vCPU answers sums that it has not read.
struct Notice {
    std::uint64_t sequence;
    std::uint64_t gap_ns;             ///< since the last answer
    std::uint64_t delta_realtime_ns;  ///< since the last answer
    std::uint64_t answers;            ///< written by the guest, as the next two
    std::uint64_t told_gap_ns;        ///< all gaps answered
    std::uint64_t told_delta_realtime_ns;
};
static_assert(offsetof(Notice, gap_ns) == 8 && offsetof(Notice, delta_realtime_ns) == 16 &&
              offsetof(Notice, answers) == 24 && offsetof(Notice, told_gap_ns) == 32 &&
              offsetof(Notice, told_delta_realtime_ns) == 40 && sizeof(Notice) == 48);

/// What the host tells the guest. The host may change the words marked "live" at any time.
struct Control {
    std::uint64_t magic;
    std::uint32_t version;
    std::uint32_t vcpu_count;
    std::uint32_t flags;
    TimerMode timer_mode;
    std::uint64_t timer_period;          ///< TSC ticks (deadline) or ns (periodic)
    std::uint64_t epoch;                 ///< live: raised by the host before each resume
    std::uint64_t dirty_pages_a_second;  ///< live: for each vCPU
    std::uint64_t tsc_adjust_request;    ///< live: raised to have TSC_ADJUST read at the next tick
    std::uint32_t cross_pages_a_loop;    ///< other vCPUs' clock pages to read in each loop
    std::uint32_t pad;
    std::uint8_t reserved0[56];
    std::uint64_t tsc_last;  ///< the highest TSC that any vCPU has read
    std::uint8_t reserved1[56];
    std::uint64_t kvmclock_last;  ///< the highest kvmclock that any vCPU has read
    std::uint8_t reserved2[56];
    Notice notice;  ///< live
};
static_assert(offsetof(Control, flags) == 16 && offsetof(Control, timer_period) == 24 &&
              offsetof(Control, epoch) == 32 && offsetof(Control, dirty_pages_a_second) == 40 &&
              offsetof(Control, tsc_adjust_request) == 48 &&
              offsetof(Control, cross_pages_a_loop) == 56 && offsetof(Control, tsc_last) == 120 &&
              offsetof(Control, kvmclock_last) == 184 && offsetof(Control, notice) == 248 &&
              sizeof(Control) == 296);

/// One look at the clocks: TSC, and kvmclock computed from that same TSC by the vCPU's own page.
struct Reading {
    std::uint64_t tsc;
    std::uint64_t kvmclock_ns;
    std::uint64_t ticks;  ///< timer interrupts handled before it
};
static_assert(sizeof(Reading) == 24);

/// The worst of a kind, and how often it was seen.
struct Jump {
    std::uint64_t count;
    std::uint64_t largest;  ///< size of the largest, in the clock's unit
    std::uint64_t before;   ///< the two values of the largest
    std::uint64_t after;
};
static_assert(sizeof(Jump) == 32);

inline constexpr std::uint32_t kEpochSlots = 16;
inline constexpr std::uint64_t kHasStraddle = 1;   ///< `straddle` is filled
inline constexpr std::uint64_t kHasNext = 2;       ///< `next` is filled: the record is complete
inline constexpr std::uint64_t kGuestStopped = 4;  ///< GUEST_STOPPED stood in `after` or `next`

/// The readings round one stop. A reading is before the stop for certain where the epoch was still
/// old after it, and after the resume for certain where the epoch was new before it. One that
/// began with the old epoch and ended with the new one may be either: `straddle`.
struct EpochRecord {
    std::uint64_t epoch;
    std::uint64_t flags;
    Reading before;
    Reading straddle;
    Reading after;
    Reading next;
};
static_assert(sizeof(EpochRecord) == 112);

/// What one vCPU has seen. Written by that vCPU alone.
struct Report {
    std::uint64_t magic;  ///< kMagic once the vCPU runs
    std::uint32_t vcpu;
    std::uint32_t pad;
    std::uint64_t loops;
    Reading last;
    Jump tsc_back_own;    ///< TSC below this vCPU's previous reading
    Jump tsc_back_cross;  ///< TSC below one that another vCPU published before
    Jump kvmclock_back_own;
    Jump kvmclock_back_cross;
    Jump tsc_forward;  ///< largest forward step between two readings
    Jump kvmclock_forward;
    Jump cross_skew;  ///< own page against another's at one TSC; before = own ns
    std::uint64_t cross_skew_vcpu;
    std::uint64_t cross_checks;
    std::uint64_t page_retries;     ///< clock page changed under the reader
    std::uint64_t guest_stopped;    ///< GUEST_STOPPED flags seen and cleared
    std::uint64_t ticks;            ///< timer interrupts
    std::uint64_t tick_deadline;    ///< the armed TSC deadline
    std::uint64_t tick_late_max;    ///< TSC ticks from deadline to handler, largest
    std::uint64_t tsc_adjust;       ///< IA32_TSC_ADJUST when last asked for
    std::uint64_t tsc_adjust_seen;  ///< the request that tsc_adjust answers
    std::uint64_t fault_vector;     ///< of an exception, plus 1; 0 = none
    std::uint64_t fault_error;
    std::uint64_t fault_rip;
    std::uint64_t workload_gpa;       ///< set by the host
    std::uint64_t workload_pages;     ///< set by the host
    std::uint64_t pages_written;      ///< page writes finished, in order round the slice
    EpochRecord epochs[kEpochSlots];  ///< slot = epoch % kEpochSlots
};
static_assert(offsetof(Report, loops) == 16 && offsetof(Report, last) == 24 &&
              offsetof(Report, tsc_back_own) == 48 && offsetof(Report, cross_skew) == 240 &&
              offsetof(Report, cross_skew_vcpu) == 272 && offsetof(Report, ticks) == 304 &&
              offsetof(Report, pages_written) == 384 && offsetof(Report, epochs) == 392);
static_assert(sizeof(Report) == 392 + 112 * kEpochSlots && sizeof(Report) <= kReportStride);

inline constexpr std::uint32_t kWordsAPage = 8;  ///< words of a page that the workload writes
inline constexpr std::uint64_t kWordStride = 4096 / kWordsAPage;

/// The word that the workload leaves in word `word` of page `page` of a vCPU's slice when it has
/// written that page `generation` times (generation >= 1; a page never written holds zeroes).
constexpr std::uint64_t workload_word(std::uint32_t vcpu, std::uint64_t page,
                                      std::uint64_t generation, std::uint32_t word) {
    std::uint64_t x =
        (page << 32) ^ (generation * 0x9e3779b97f4a7c15) ^ (std::uint64_t{vcpu} << 8) ^ word;
    x = (x ^ (x >> 31)) * 0xbf58476d1ce4e5b9;
    return (x ^ (x >> 29)) | 1;
}

}  // namespace continuo::vmm::witness
