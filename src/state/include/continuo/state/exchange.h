// The four-timestamp exchange: what two hosts learn of each other's counters from questions and
// answers over the channel between them. No clock is trusted, only that an answer comes after its
// question and that counters count: RFC 5905's on-wire protocol with counters in place of wall
// clocks. docs/decisions/0005-the-exchange.md has the reasoning.
#pragma once

#include <cstddef>
#include <vector>

#include "continuo/state/error.h"
#include "continuo/state/record.h"

namespace continuo::state {

/// One question and its answer. The destination asked before the source received, and heard after
/// the source answered: so the source's counter was not yet `received` when this host's was
/// `asked`, and was past `answered` when this host's was `heard`. How long the source held the
/// question drops out.
struct ExchangeRound {
    Count<HostCounter> asked;       ///< read just before the question was sent
    Count<SourceCounter> received;  ///< read once it was there
    Count<SourceCounter> answered;  ///< read just before the answer was sent
    Count<HostCounter> heard;       ///< read once that was there
    friend bool operator==(const ExchangeRound&, const ExchangeRound&) = default;
};

/// Rounds in any order, from one migration. Every round bounds the gap, so the gap is in the
/// intersection of what they say; more rounds never make it wider. Empty: there was no exchange.
using Exchange = std::vector<ExchangeRound>;

inline constexpr std::size_t kExchangeRoundsMax = 1024;

/// What must hold of any exchange, whoever made it: at most kExchangeRoundsMax rounds (kTooLarge),
/// and none of which heard is before asked or answered before received (kMalformed). `where` is the
/// JSON pointer of the culprit.
Status check(const Exchange& exchange);

}  // namespace continuo::state
