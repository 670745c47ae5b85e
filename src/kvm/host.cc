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
    bracket.tai =
        Instant<Tai>::from_raw(static_cast<std::uint64_t>(now.tv_sec) * time::kNanosPerSecond +
                               static_cast<std::uint64_t>(now.tv_nsec));
    return bracket;
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

std::uint32_t rate_bound_ppb(bool synchronised, long freq, long tick) {
    constexpr std::int64_t kPhiPpb = 15'000;
    constexpr std::int64_t kNominalTick = 10'000;
    constexpr std::int64_t kPpbATickUnit = 100'000;
    if (!synchronised) return state::kRateBoundUnknownPpb;
    // freq is in 2^-16 ppm; what daemons correct beyond its 500 ppm they put into tick.
    const std::int64_t corrected =
        std::int64_t{freq} * 1000 / 65'536 + (std::int64_t{tick} - kNominalTick) * kPpbATickUnit;
    const std::int64_t bound = std::abs(corrected) + 1 + kPhiPpb;
    return static_cast<std::uint32_t>(std::min<std::int64_t>(bound, state::kRateBoundPpbMax));
}

Result<state::Anchor<HostCounter>> tai_anchor(time::Hz frequency, int brackets) {
    timex kernel_clock{};
    const int status = ::adjtimex(&kernel_clock);
    if (status < 0) return kernel_failure("adjtimex", errno);
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
    return anchor;
}

}  // namespace continuo::kvm
