// The witness's machine on x86-64: the vCPU's clock page, its timer, its exceptions. Watches from
// ring 3 or ring 0, without SSE.
#include "clocks.h"
#include "payload.h"

using namespace continuo::vmm::witness;

namespace {

constexpr std::uint32_t kMsrSystemTime = 0x4b564d01;
constexpr std::uint32_t kMsrTscAdjust = 0x3b;
constexpr std::uint32_t kMsrTscDeadline = 0x6e0;
constexpr std::uint32_t kMsrX2apicEoi = 0x80b;
constexpr std::uint32_t kMsrX2apicSpurious = 0x80f;
constexpr std::uint32_t kMsrX2apicTimer = 0x832;
constexpr std::uint32_t kMsrX2apicInitialCount = 0x838;
constexpr std::uint32_t kMsrX2apicDivide = 0x83e;

void write_msr(std::uint32_t msr, std::uint64_t value) {
    asm volatile("wrmsr" ::"c"(msr), "a"(static_cast<std::uint32_t>(value)),
                 "d"(static_cast<std::uint32_t>(value >> 32))
                 : "memory");
}

std::uint64_t read_msr(std::uint32_t msr) {
    std::uint32_t lo, hi;
    asm volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(msr) : "memory");
    return (static_cast<std::uint64_t>(hi) << 32) | lo;
}

void out8(std::uint16_t port, std::uint8_t value) {
    asm volatile("outb %0, %1" ::"a"(value), "d"(port));
}
void out32(std::uint16_t port, std::uint32_t value) {
    asm volatile("outl %0, %1" ::"a"(value), "d"(port) : "memory");
}

void print(const char* text) {
    for (; *text != 0; ++text)
        out8(kPortSerial, static_cast<std::uint8_t>(*text));
}

void arm_timer(Report& report, const Control& control) {
    if (control.timer_mode != TimerMode::kTscDeadline) return;
    report.tick_deadline = ordered_tsc() + control.timer_period;
    write_msr(kMsrTscDeadline, report.tick_deadline);
}

void start_timer(Report& report, const Control& control) {
    if (control.timer_mode == TimerMode::kNone) return;
    write_msr(kMsrX2apicSpurious, 0x100u | kSpuriousVector);
    if (control.timer_mode == TimerMode::kTscDeadline) {
        write_msr(kMsrX2apicTimer, (2u << 17) | kTimerVector);
        asm volatile("mfence" ::: "memory");
    } else {
        write_msr(kMsrX2apicDivide, 0xb);
        write_msr(kMsrX2apicTimer, (1u << 17) | kTimerVector);
        write_msr(kMsrX2apicInitialCount, control.timer_period);
    }
    arm_timer(report, control);
}

}  // namespace

/// Ring 0, once for each vCPU. Returns 1 where the host wants the watch in ring 3.
extern "C" int witness_setup(Report& report, Control& control) {
    write_msr(kMsrSystemTime, (kClockPages + kClockStride * report.vcpu) | 1);
    if (report.vcpu == 0) print("witness: watching\n");
    start_timer(report, control);
    return (control.flags & kFlagUserMode) != 0 ? 1 : 0;
}

extern "C" void witness_timer(Report& report) {
    Control& control = control_page();
    const std::uint64_t now = ordered_tsc();
    if (control.timer_mode == TimerMode::kTscDeadline) {
        const auto late = static_cast<std::int64_t>(now - report.tick_deadline);
        if (late > 0 && static_cast<std::uint64_t>(late) > report.tick_late_max)
            report.tick_late_max = static_cast<std::uint64_t>(late);
    }
    const std::uint64_t request = load(control.tsc_adjust_request);
    if ((control.flags & kFlagTscAdjust) != 0 && request != report.tsc_adjust_seen) {
        report.tsc_adjust = read_msr(kMsrTscAdjust);
        report.tsc_adjust_seen = request;
    }
    __atomic_store_n(&report.ticks, report.ticks + 1, __ATOMIC_RELEASE);
    write_msr(kMsrX2apicEoi, 0);
    arm_timer(report, control);
}

extern "C" [[noreturn]] void witness_fault(Report& report, std::uint64_t vector,
                                           std::uint64_t error, std::uint64_t rip) {
    report.fault_error = error;
    report.fault_rip = rip;
    report.fault_vector = vector + 1;
    for (;;)
        out32(kPortExit, kExitFault);
}
