#include "host_clock.h"

#include <sys/timex.h>

#include <cerrno>
#include <cstdlib>
#include <ctime>

#include "continuo/kvm/counter.h"
#include "continuo/kvm/host.h"
#include "continuo/time/rate.h"
#include "continuo/time/wide.h"
#include "pairing.h"

namespace continuo::crosshost {

namespace {

using state::ErrorCode;
using time::i128;
using time::kNanosPerSecond;

/// A counter value and REALTIME at one instant, as well as one bracket can say.
struct ClockReading {
    std::uint64_t counter = 0;
    std::uint64_t realtime_ns = 0;
    std::uint64_t width = 0;
};

ClockReading read_once() {
    timespec now{};
    const std::uint64_t before = kvm::host_counter().raw();
    ::clock_gettime(CLOCK_REALTIME, &now);
    const std::uint64_t width = kvm::host_counter().raw() - before;
    return {before + width / 2,
            static_cast<std::uint64_t>(now.tv_sec) * kNanosPerSecond +
                static_cast<std::uint64_t>(now.tv_nsec),
            width};
}

ClockReading read_clock() {
    ClockReading best = read_once();
    for (int i = 0; i < 32; ++i)
        if (const ClockReading next = read_once(); next.width < best.width) best = next;
    return best;
}

Result<std::uint64_t> counter_khz() {
    const auto system = kvm::System::open();
    if (!system) return tl::unexpected(system.error());
    const auto host = kvm::examine_host(*system);
    if (!host) return tl::unexpected(host.error());
    return host->tsc_khz();
}

Status publish_clock(PageLayout& words) {
    const auto khz = counter_khz();
    if (!khz) return tl::unexpected(khz.error());
    const ClockReading reading = read_clock();
    words.clock_khz.store(*khz);
    words.clock_realtime_ns.store(reading.realtime_ns);
    words.clock_counter.store(reading.counter);
    return {};
}

/// b's REALTIME less a's at one instant, by a's published reading continued to it.
std::int64_t realtime_difference(const PageLayout& words, const Pairing& pairing) {
    const ClockReading here = read_clock();
    const std::uint64_t a_counter = here.counter - pairing.narrowest.b_before -
                                    pairing.narrowest.width() / 2 + pairing.narrowest.a;
    const auto ticks = static_cast<std::int64_t>(a_counter - words.clock_counter.load());
    const i128 since = static_cast<i128>(ticks) * 1'000'000 / words.clock_khz.load();
    const i128 a_realtime = static_cast<i128>(words.clock_realtime_ns.load()) + since;
    return static_cast<std::int64_t>(static_cast<i128>(here.realtime_ns) - a_realtime);
}

Status step_realtime(std::int64_t by_ns) {
    constexpr auto kSecond = static_cast<std::int64_t>(kNanosPerSecond);
    const std::int64_t below = (by_ns % kSecond + kSecond) % kSecond;
    timex step{};
    step.modes = ADJ_SETOFFSET | ADJ_NANO;
    step.time.tv_sec = (by_ns - below) / kSecond;
    step.time.tv_usec = below;
    if (::adjtimex(&step) >= 0) return {};
    return state::fail(ErrorCode::kKernel, "adjtimex(ADJ_SETOFFSET)", "the clock was not stepped",
                       "Run as root", errno);
}

}  // namespace

Status set_ntp_state(const NtpState& ntp) {
    timex wanted{};
    wanted.modes = ADJ_STATUS | ADJ_MAXERROR | ADJ_ESTERROR | ADJ_FREQUENCY;
    wanted.freq = static_cast<long>(std::int64_t{ntp.frequency_ppb} * 65'536 / 1'000);
    wanted.status = ntp.synchronised ? 0 : STA_UNSYNC;
    wanted.maxerror = wanted.esterror = static_cast<long>(ntp.maxerror_us);
    timex tai{};
    tai.modes = ADJ_TAI;
    tai.constant = ntp.tai_offset_sec;
    if (::adjtimex(&wanted) < 0 || ::adjtimex(&tai) < 0)
        return state::fail(ErrorCode::kKernel, "adjtimex", "the state was not taken", "Run as root",
                           errno);
    timex found{};
    const bool read = ::adjtimex(&found) >= 0;
    const bool same = ((found.status & STA_UNSYNC) == 0) == ntp.synchronised &&
                      found.maxerror >= wanted.maxerror && found.tai == ntp.tai_offset_sec &&
                      std::abs(found.freq - wanted.freq) <= 1;
    if (read && same) return {};
    return state::fail(ErrorCode::kKernel, "adjtimex", "it reads back other than written",
                       "maxerror is at most 16000000 us, a frequency 500 ppm");
}

Result<std::optional<std::int64_t>> set_realtime_offset(SharedPage& page, std::int64_t offset_ns) {
    if (page.side() == Side::kA)
        if (auto published = publish_clock(page.words()); !published)
            return tl::unexpected(std::move(published.error()));
    const auto pairing = pair_counters(page);
    if (!pairing) return tl::unexpected(pairing.error());
    std::optional<std::int64_t> found;
    if (*pairing) {
        const std::int64_t now = realtime_difference(page.words(), **pairing);
        if (auto done = step_realtime(offset_ns - now); !done)
            return tl::unexpected(std::move(done.error()));
        found = realtime_difference(page.words(), **pairing);
    }
    if (auto met = page.meet(); !met) return tl::unexpected(std::move(met.error()));
    return found;
}

}  // namespace continuo::crosshost
