// The memory that the witness guest and its host share: where everything lies in guest-physical
// memory, the control page that the host writes, and the report that each vCPU keeps. Compiled
// into the guest as well (freestanding), so it includes nothing but fixed-width integers and
// layouts. Every offset is asserted: the two sides are separate programs. What only one
// architecture has (tables, ports, gates) is in its own witness_machine.h.
//
// The guest has two clocks. `counter` is the one that it reads without help: TSC on x86-64, CNTVCT
// on arm64. `clock` is the second: on x86-64 kvmclock in ns, computed from that same counter value
// by the vCPU's own page; on arm64 CNTPCT in ticks, read right after the counter.
#pragma once

#include <cstddef>
#include <cstdint>

#include "continuo/abi/time_travel.h"

namespace continuo::vmm::witness {

inline constexpr std::uint32_t kMaxVcpus = 64;

// Guest-physical layout. Everything below kWorkload fits 2 MiB.
inline constexpr std::uint64_t kTables = 0x1000;  ///< the architecture's, up to the image
inline constexpr std::uint64_t kImage = 0x10000;  ///< the payload, at most 64 KiB
inline constexpr std::uint64_t kImageLimit = 0x10000;
inline constexpr std::uint64_t kControl = 0x20000;     ///< struct Control
inline constexpr std::uint64_t kClockPages = 0x21000;  ///< pvclock structures, one a vCPU (x86-64)
inline constexpr std::uint64_t kClockStride = 64;
inline constexpr std::uint64_t kReports = 0x30000;  ///< struct Report, one page a vCPU
inline constexpr std::uint64_t kReportStride = 0x1000;
inline constexpr std::uint64_t kStacks = 0x80000;  ///< 8 KiB a vCPU; the first word: its report
inline constexpr std::uint64_t kStackStride = 0x2000;
inline constexpr std::uint64_t kKernelStackBytes = 0x1000;  ///< upper half; the lower is ring 3's
inline constexpr std::uint64_t kWorkload = 0x200000;        ///< pages that the workload dirties
inline constexpr std::uint64_t kIdentityMapBytes = 1ull << 30;

inline constexpr std::uint32_t kExitFault = 0xdead;  ///< a vCPU took an exception: see its report

inline constexpr std::uint64_t kMagic = 0x53534e5449574f43;  ///< "COWITNSS"
inline constexpr std::uint32_t kVersion = 5;

/// The first bytes of the payload. On x86-64 more follows (x86/.../witness_machine.h).
struct ImageHeader {
    std::uint64_t magic;
    std::uint32_t version;
    std::uint32_t pad;
    std::uint64_t entry;  ///< every vCPU starts here, with its report and control as arguments
};
static_assert(sizeof(ImageHeader) == 24);

enum class TimerMode : std::uint32_t { kNone = 0, kTscDeadline = 1, kPeriodic = 2 };

inline constexpr std::uint32_t kFlagUserMode = 1u << 0;   ///< watch from ring 3 (x86-64)
inline constexpr std::uint32_t kFlagTscAdjust = 1u << 1;  ///< CPUID has TSC_ADJUST (x86-64)
/// CNTVCT and CNTPCT have one offset, so CNTPCT lies between two readings of CNTVCT (arm64).
inline constexpr std::uint32_t kFlagOneOffset = 1u << 2;

/// The notice page (docs/formats/time-travel.md), within the control page until there is a device
/// that has one of its own, and what the guest has taken note of. vCPU 0 answers.
struct Notice {
    abi::time_travel_page page;
    std::uint64_t answers;                 ///< written by the guest, as the next two
    std::uint64_t told_gap_ns;             ///< all gaps answered
    std::uint64_t told_delta_realtime_ns;  ///< the sum of what a guest would have stepped by
};
static_assert(offsetof(Notice, answers) == 128 && offsetof(Notice, told_gap_ns) == 136 &&
              offsetof(Notice, told_delta_realtime_ns) == 144 && sizeof(Notice) == 152);

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
    std::uint32_t cross_pages_a_loop;    ///< other vCPUs' clock pages to read in each loop (x86-64)
    std::uint32_t pad;
    std::uint64_t generation;  ///< live: another after each restore from a snapshot; 0: none yet
    std::uint8_t reserved0[48];
    std::uint64_t counter_last;  ///< the highest counter value that any vCPU has read
    std::uint8_t reserved1[56];
    std::uint64_t clock_last;  ///< the highest value of the second clock that any vCPU has read
    std::uint8_t reserved2[56];
    Notice notice;  ///< live
};
static_assert(offsetof(Control, flags) == 16 && offsetof(Control, timer_period) == 24 &&
              offsetof(Control, epoch) == 32 && offsetof(Control, dirty_pages_a_second) == 40 &&
              offsetof(Control, tsc_adjust_request) == 48 &&
              offsetof(Control, cross_pages_a_loop) == 56 && offsetof(Control, generation) == 64 &&
              offsetof(Control, counter_last) == 120 && offsetof(Control, clock_last) == 184 &&
              offsetof(Control, notice) == 248 && sizeof(Control) == 400);

/// One look at the two clocks.
struct Reading {
    std::uint64_t counter;
    std::uint64_t clock;
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
    Jump counter_back_own;    ///< below this vCPU's previous reading
    Jump counter_back_cross;  ///< below one that another vCPU published before
    Jump clock_back_own;
    Jump clock_back_cross;
    Jump counter_forward;  ///< largest forward step between two readings
    Jump clock_forward;
    /// x86-64: own page against another's at one TSC, before = own ns. arm64: CNTPCT outside the
    /// two readings of CNTVCT round it, in ticks, where they have one offset; before = CNTVCT.
    Jump cross_skew;
    std::uint64_t cross_skew_vcpu;
    std::uint64_t cross_checks;
    std::uint64_t page_retries;     ///< clock page changed under the reader
    std::uint64_t guest_stopped;    ///< GUEST_STOPPED flags seen and cleared
    std::uint64_t ticks;            ///< timer interrupts
    std::uint64_t tick_deadline;    ///< the armed timer's counter value
    std::uint64_t tick_late_max;    ///< counter ticks from deadline to handler, largest
    std::uint64_t tsc_adjust;       ///< IA32_TSC_ADJUST when last asked for
    std::uint64_t tsc_adjust_seen;  ///< the request that tsc_adjust answers
    std::uint64_t fault_vector;    ///< of an exception, plus 1; 0 = none; arm64: entry of the table
    std::uint64_t fault_error;     ///< error code; arm64: ESR_EL1
    std::uint64_t fault_rip;       ///< where it happened
    std::uint64_t workload_gpa;    ///< set by the host
    std::uint64_t workload_pages;  ///< set by the host
    std::uint64_t pages_written;   ///< page writes finished, in order round the slice
    std::uint64_t generation;      ///< as this vCPU found it when it last saw a new epoch
    EpochRecord epochs[kEpochSlots];  ///< slot = epoch % kEpochSlots
};
static_assert(offsetof(Report, loops) == 16 && offsetof(Report, last) == 24 &&
              offsetof(Report, counter_back_own) == 48 && offsetof(Report, cross_skew) == 240 &&
              offsetof(Report, cross_skew_vcpu) == 272 && offsetof(Report, ticks) == 304 &&
              offsetof(Report, pages_written) == 384 && offsetof(Report, epochs) == 400);
static_assert(sizeof(Report) == 400 + 112 * kEpochSlots && sizeof(Report) <= kReportStride);

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
