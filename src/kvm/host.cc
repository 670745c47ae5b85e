#include "continuo/kvm/host.h"

#include <sys/timex.h>
#include <sys/utsname.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <ctime>
#include <fstream>

#include "continuo/kvm/counter.h"
#include "continuo/state/codec.h"

namespace continuo::kvm {

namespace {

using time::Count;
using time::HostCounter;
using time::Instant;
using time::Tai;

std::string first_line(const char* path) {
    std::ifstream file{path};
    std::string line;
    std::getline(file, line);
    return line;
}

std::optional<std::uint8_t> hex_digit(char c) {
    if (c >= '0' && c <= '9') return static_cast<std::uint8_t>(c - '0');
    if (c >= 'a' && c <= 'f') return static_cast<std::uint8_t>(c - 'a' + 10);
    if (c >= 'A' && c <= 'F') return static_cast<std::uint8_t>(c - 'A' + 10);
    return std::nullopt;
}

std::string kernel_name() {
    utsname names{};
    if (::uname(&names) != 0) return "unknown kernel";
    return std::string{names.sysname} + " " + names.release + " " + names.machine;
}

std::uint64_t nanos_of(const timespec& at) {
    return static_cast<std::uint64_t>(at.tv_sec) * time::kNanosPerSecond +
           static_cast<std::uint64_t>(at.tv_nsec);
}

struct TaiBracket {
    Count<HostCounter> before;
    Instant<Tai> tai;
    Count<HostCounter> after;
    std::uint64_t width() const { return (after - before).magnitude(); }
};

Result<TaiBracket> read_tai() {
    TaiBracket bracket;
    timespec now{};
    bracket.before = host_counter();
    const int failed = ::clock_gettime(CLOCK_TAI, &now);
    bracket.after = host_counter();
    if (failed != 0) return kernel_failure("clock_gettime(CLOCK_TAI)", errno);
    bracket.tai = Instant<Tai>::from_raw(nanos_of(now));
    return bracket;
}

/// BOOTTIME - MONOTONIC, less what lay between the two readings: tens of ns, at most kNarrowNs.
/// None where the thread was away each time.
std::optional<std::uint64_t> suspended_ns() {
    constexpr std::uint64_t kNarrowNs = 20'000;
    for (int tries = 0; tries < 100; ++tries) {
        timespec before{};
        timespec boot{};
        timespec after{};
        if (::clock_gettime(CLOCK_MONOTONIC, &before) != 0 ||
            ::clock_gettime(CLOCK_BOOTTIME, &boot) != 0 ||
            ::clock_gettime(CLOCK_MONOTONIC, &after) != 0)
            return std::nullopt;
        if (nanos_of(after) - nanos_of(before) > kNarrowNs) continue;
        const std::uint64_t apart = nanos_of(boot) - nanos_of(after);
        // Never suspended: BOOTTIME was MONOTONIC, read a moment before. A time namespace may put
        // BOOTTIME far behind MONOTONIC; modulo 2^64 that does for comparisons.
        return apart > ~kNarrowNs ? 0 : apart;
    }
    return std::nullopt;
}

std::uint64_t ceil_ns(std::uint64_t ticks, time::Hz frequency) {
    const time::u128 product = static_cast<time::u128>(ticks) * time::kNanosPerSecond;
    return static_cast<std::uint64_t>((product + frequency.hz() - 1) / frequency.hz());
}

}  // namespace

std::optional<std::array<std::uint8_t, 16>> parse_boot_id(std::string_view text) {
    if (text.size() != 36) return std::nullopt;
    std::array<std::uint8_t, 16> id{};
    std::size_t digits = 0;
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (i == 8 || i == 13 || i == 18 || i == 23) {
            if (text[i] != '-') return std::nullopt;
            continue;
        }
        const auto digit = hex_digit(text[i]);
        if (!digit) return std::nullopt;
        std::uint8_t& byte = id[digits++ / 2];
        byte = static_cast<std::uint8_t>(byte << 4 | *digit);
    }
    return id;
}

state::HostIdentity host_identity() {
    state::HostIdentity identity;
    identity.boot_id = parse_boot_id(first_line("/proc/sys/kernel/random/boot_id"))
                           .value_or(std::array<std::uint8_t, 16>{});
    identity.kernel = kernel_name();
    return identity;
}

std::string host_clocksource() {
    return first_line("/sys/devices/system/clocksource/clocksource0/current_clocksource");
}

std::int64_t rate_correction_ppb(long freq, long tick) {
    constexpr std::int64_t kNominalTick = 10'000;
    constexpr std::int64_t kPpbATickUnit = 100'000;
    // freq is in 2^-16 ppm; what daemons correct beyond its 500 ppm they put into tick.
    return std::int64_t{freq} * 1000 / 65'536 + (std::int64_t{tick} - kNominalTick) * kPpbATickUnit;
}

std::uint32_t rate_bound_ppb(bool synchronised, long freq, long tick) {
    constexpr std::int64_t kPhiPpb = 15'000;
    if (!synchronised) return state::kRateBoundUnknownPpb;
    const std::int64_t bound = std::abs(rate_correction_ppb(freq, tick)) + 1 + kPhiPpb;
    return static_cast<std::uint32_t>(std::min<std::int64_t>(bound, state::kRateBoundPpbMax));
}

Result<state::Anchor<HostCounter>> tai_anchor(time::Hz frequency, int brackets) {
    timex kernel_clock{};
    const int status = ::adjtimex(&kernel_clock);
    if (status < 0) return kernel_failure("adjtimex", errno);
    constexpr auto kSlack = static_cast<std::uint64_t>(state::kSuspendedSlackNs);
    const auto suspended = suspended_ns();
    // The first reading faults pages and fills caches; it counts only where it is the only one.
    auto best = read_tai();
    for (int i = 0; best && i < brackets; ++i) {
        auto next = read_tai();
        if (next && next->width() < best->width()) best = std::move(next);
    }
    if (!best) return tl::unexpected(best.error());

    state::Anchor<HostCounter> anchor;
    const std::uint64_t half = best->width() / 2;
    anchor.counter =
        best->before + time::Ticks<HostCounter>::from_raw(static_cast<std::int64_t>(half));
    anchor.tai = best->tai;
    const auto admitted_us = static_cast<std::uint64_t>(std::max(kernel_clock.maxerror, 0L));
    anchor.tai_bound_ns = ceil_ns(best->width() - half, frequency) + 1 + admitted_us * 1000;
    anchor.tai_offset_sec = kernel_clock.tai;
    anchor.synchronised = (kernel_clock.status & STA_UNSYNC) == 0 && status != TIME_ERROR;
    anchor.frequency = frequency;
    anchor.rate_bound_ppb =
        rate_bound_ppb(anchor.synchronised, kernel_clock.freq, kernel_clock.tick);
    // A suspend between these readings leaves it unknown which side of it the anchor is on.
    const auto still = suspended_ns();
    if (suspended && still && *still - *suspended + kSlack <= 2 * kSlack)
        anchor.suspended_ns = suspended;
    return anchor;
}

Result<DisciplinedAnchor> disciplined_tai_anchor(time::Hz frequency) {
    auto anchor = tai_anchor(frequency);
    if (!anchor) return tl::unexpected(std::move(anchor.error()));
    timex kernel_clock{};
    if (::adjtimex(&kernel_clock) < 0) return kernel_failure("adjtimex", errno);
    return DisciplinedAnchor{*anchor, rate_correction_ppb(kernel_clock.freq, kernel_clock.tick)};
}

}  // namespace continuo::kvm
