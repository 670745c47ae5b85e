#include "continuo/state/exchange.h"

#include <string>

namespace continuo::state {

Status check(const Exchange& exchange) {
    if (exchange.size() > kExchangeRoundsMax)
        return fail(ErrorCode::kTooLarge, "/exchange",
                    std::to_string(exchange.size()) + " rounds, over the limit of " +
                        std::to_string(kExchangeRoundsMax));
    for (std::size_t i = 0; i < exchange.size(); ++i) {
        const ExchangeRound& round = exchange[i];
        const std::string where = "/exchange/" + std::to_string(i);
        if (round.answered - round.received < Ticks<SourceCounter>{})
            return fail(ErrorCode::kMalformed, where + "/answered",
                        "the source answered before it was asked",
                        "Do the exchange again; a source that insists cannot be trusted");
        if (round.heard - round.asked < Ticks<HostCounter>{})
            return fail(ErrorCode::kMalformed, where + "/heard",
                        "the answer was heard before the question was asked",
                        "Read both stamps on one host whose counters are synchronous");
    }
    return {};
}

}  // namespace continuo::state
