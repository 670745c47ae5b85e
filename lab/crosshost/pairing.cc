#include "pairing.h"

#include <algorithm>
#include <limits>

#include "continuo/kvm/counter.h"

namespace continuo::crosshost {

namespace {

using std::chrono::steady_clock;

constexpr std::uint64_t kPingOver = std::numeric_limits<std::uint64_t>::max();
constexpr std::chrono::seconds kSilenceMax{30};
/// How often a spinning reader looks at the time.
constexpr std::uint32_t kSpins = 4096;

std::uint64_t counter() {
    return kvm::host_counter().raw();
}

/// Spins until `word` is not `old` any more; its new value, or kTimeout.
Result<std::uint64_t> await_change(const std::atomic<std::uint64_t>& word, std::uint64_t old) {
    const auto until = steady_clock::now() + kSilenceMax;
    for (;;) {
        for (std::uint32_t spin = 0; spin < kSpins; ++spin)
            if (const std::uint64_t now = word.load(std::memory_order_acquire); now != old)
                return now;
        if (steady_clock::now() > until)
            return state::fail(state::ErrorCode::kTimeout, "pairing", "the other host is silent");
    }
}

Status answer(PageLayout& words) {
    std::uint64_t round = 0;
    for (;;) {
        const auto next = await_change(words.ping, round);
        if (!next) return tl::unexpected(next.error());
        round = *next;
        if (round == kPingOver) return {};
        words.pong_counter.store(counter(), std::memory_order_relaxed);
        words.pong.store(round, std::memory_order_release);
    }
}

Result<Bracket> one_round(PageLayout& words, std::uint64_t round) {
    Bracket bracket;
    bracket.b_before = counter();
    words.ping.store(round, std::memory_order_release);
    const auto answered = await_change(words.pong, round - 1);
    if (!answered) return tl::unexpected(answered.error());
    bracket.a = words.pong_counter.load(std::memory_order_relaxed);
    bracket.b_after = counter();
    return bracket;
}

void take(Pairing& pairing, const Bracket& bracket) {
    const auto least = static_cast<std::int64_t>(bracket.b_before - bracket.a);
    const auto most = static_cast<std::int64_t>(bracket.b_after - bracket.a);
    const bool first = pairing.rounds++ == 0;
    if (first || bracket.width() < pairing.narrowest.width()) pairing.narrowest = bracket;
    pairing.difference_least = first ? least : std::max(pairing.difference_least, least);
    pairing.difference_most = first ? most : std::min(pairing.difference_most, most);
}

Result<Pairing> probe(PageLayout& words, const PairingOptions& options) {
    Pairing pairing;
    const auto began = steady_clock::now();
    for (;;) {
        const auto bracket = one_round(words, pairing.rounds + 1);
        if (!bracket) return tl::unexpected(bracket.error());
        take(pairing, *bracket);
        const auto spent = steady_clock::now() - began;
        const bool enough = pairing.rounds >= options.rounds_min && spent >= options.time_min;
        if (enough || spent >= options.time_max) return pairing;
    }
}

}  // namespace

Result<std::optional<Pairing>> pair_counters(SharedPage& page, const PairingOptions& options) {
    PageLayout& words = page.words();
    if (page.side() == Side::kA) {
        words.pong.store(0);
        if (auto met = page.meet(); !met) return tl::unexpected(std::move(met.error()));
        if (auto answered = answer(words); !answered)
            return tl::unexpected(std::move(answered.error()));
        if (auto met = page.meet(); !met) return tl::unexpected(std::move(met.error()));
        return std::nullopt;
    }
    words.ping.store(0);
    if (auto met = page.meet(); !met) return tl::unexpected(std::move(met.error()));
    auto pairing = probe(words, options);
    words.ping.store(kPingOver);
    if (!pairing) return tl::unexpected(std::move(pairing.error()));
    if (auto met = page.meet(); !met) return tl::unexpected(std::move(met.error()));
    return *pairing;
}

}  // namespace continuo::crosshost
