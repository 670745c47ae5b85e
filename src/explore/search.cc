#include "continuo/explore/search.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "continuo/explore/state_store.h"

namespace continuo::explore {

namespace {

using state::ErrorCode;
using state::fail;
using state::Result;

constexpr std::uint32_t kNobody = UINT32_MAX;
constexpr std::uint32_t kReportEvery = 1 << 16;

constexpr std::array<std::pair<Violation::Kind, std::string_view>, 3> kKinds{
    {{Violation::Kind::kAssertion, "assertion"},
     {Violation::Kind::kDeadlock, "deadlock"},
     {Violation::Kind::kNoProgress, "no_progress"}}};

class Search {
  public:
    Search(const System& system, const SearchOptions& options)
        : system_{system},
          options_{options},
          agents_{system.agents()},
          store_{system.state_bytes()},
          next_{system.state_bytes()} {
        CONTINUO_CHECK(agents_ >= 1 && agents_ <= kAgentsMax);
        CONTINUO_CHECK(system.state_bytes() >= 1 && system.state_bytes() <= kStateBytesMax);
    }

    Result<Outcome> run();

  private:
    void expand(const std::uint8_t* state);
    bool follow_one(const std::uint8_t* state);
    bool every_step_advances(const std::uint8_t* state, unsigned agent) const;
    bool all_may_rest(const std::uint8_t* state) const;
    bool take(std::uint32_t from);
    void check_progress();
    std::vector<PathStep> path_to(std::uint32_t number);
    void violate(Violation::Kind kind, std::string what, std::uint32_t at);
    Result<void> within_limits() const;
    Outcome outcome(bool complete);

    const System& system_;
    const SearchOptions& options_;
    unsigned agents_;
    StateStore store_;
    Successors next_;
    Outcome out_;
};

// Agents in their order, so that the same system gives the same search.
bool Search::follow_one(const std::uint8_t* state) {
    std::array<Footprint, kAgentsMax> future;
    for (unsigned agent = 0; agent < agents_; ++agent)
        future[agent] = system_.future(state, agent);
    for (unsigned agent = 0; agent < agents_; ++agent) {
        const Footprint step = system_.step(state, agent);
        bool alone = true;
        for (unsigned other = 0; other < agents_ && alone; ++other)
            alone = other == agent || !conflict(step, future[other]);
        if (!alone) continue;
        next_.clear();
        system_.successors(state, agent, next_);
        if (next_.size() > 0 && every_step_advances(state, agent)) return true;
    }
    return false;
}

bool Search::every_step_advances(const std::uint8_t* state, unsigned agent) const {
    if (!system_.ranked(agent)) return true;
    const unsigned rank = system_.rank(state, agent);
    for (std::size_t i = 0; i < next_.size(); ++i)
        if (system_.rank(next_.state(i), agent) <= rank) return false;
    return true;
}

void Search::expand(const std::uint8_t* state) {
    if (options_.reduction && follow_one(state)) return;
    next_.clear();
    for (unsigned agent = 0; agent < agents_; ++agent)
        system_.successors(state, agent, next_);
}

bool Search::all_may_rest(const std::uint8_t* state) const {
    for (unsigned agent = 0; agent < agents_; ++agent)
        if (!system_.may_rest(state, agent)) return false;
    return true;
}

std::vector<PathStep> Search::path_to(std::uint32_t number) {
    std::vector<std::uint32_t> numbers;
    for (std::uint32_t at = number; at != kNobody; at = store_.parent(at))
        numbers.push_back(at);
    std::vector<PathStep> path;
    for (std::size_t i = numbers.size() - 1; i > 0; --i) {
        expand(store_.state(numbers[i]));
        std::size_t which = 0;
        while (std::memcmp(next_.state(which), store_.state(numbers[i - 1]),
                           system_.state_bytes()) != 0)
            ++which;
        path.push_back({next_.agent(which), next_.choice(which)});
    }
    return path;
}

void Search::violate(Violation::Kind kind, std::string what, std::uint32_t at) {
    out_.violation = Violation{kind, std::move(what), path_to(at)};
}

// The successors of state `from`, which are in next_. False where the search ends here.
bool Search::take(std::uint32_t from) {
    out_.transitions += next_.size();
    for (std::size_t i = 0; i < next_.size(); ++i) {
        if (next_.failure(i) != nullptr) {
            const PathStep last{next_.agent(i), next_.choice(i)};
            violate(Violation::Kind::kAssertion, next_.failure(i), from);
            out_.violation->path.push_back(last);
            return false;
        }
        store_.insert(next_.state(i), from);
    }
    if (next_.size() > 0) return true;
    ++out_.ends;
    if (all_may_rest(store_.state(from))) return true;
    violate(Violation::Kind::kDeadlock, "nobody can take a step, and not everybody is done", from);
    return false;
}

Result<void> Search::within_limits() const {
    if (store_.size() > options_.states_max)
        return fail(ErrorCode::kTooLarge, "search",
                    fmt::format("there are more than {} states", options_.states_max),
                    "Raise --limit, or choose a smaller variant");
    if (store_.bytes() + system_.own_bytes() > options_.bytes_max)
        return fail(
            ErrorCode::kTooLarge, "search",
            fmt::format("{} states need more than {} MiB", store_.size(), options_.bytes_max >> 20),
            "Raise --memory, or choose a smaller variant");
    return {};
}

// Backwards from every state in which all may rest: what is not met cannot come to an end. The
// edges are computed again, which takes the time of a second search and no memory during the first.
void Search::check_progress() {
    const std::uint32_t states = store_.size();
    std::vector<std::pair<std::uint32_t, std::uint32_t>> edges;  // (to, from)
    edges.reserve(out_.transitions);
    std::vector<std::uint32_t> reached;
    std::vector<bool> can_end(states, false);
    for (std::uint32_t from = 0; from < states; ++from) {
        expand(store_.state(from));
        for (std::size_t i = 0; i < next_.size(); ++i)
            edges.emplace_back(store_.find(next_.state(i)), from);
        if (!all_may_rest(store_.state(from))) continue;
        can_end[from] = true;
        reached.push_back(from);
    }
    std::sort(edges.begin(), edges.end());
    while (!reached.empty()) {
        const std::uint32_t to = reached.back();
        reached.pop_back();
        auto edge = std::lower_bound(edges.begin(), edges.end(), std::pair{to, std::uint32_t{0}});
        for (; edge != edges.end() && edge->first == to; ++edge) {
            if (can_end[edge->second]) continue;
            can_end[edge->second] = true;
            reached.push_back(edge->second);
        }
    }
    const auto stuck = std::find(can_end.begin(), can_end.end(), false);
    if (stuck == can_end.end()) return;
    violate(Violation::Kind::kNoProgress, "from here no end can be reached any more",
            static_cast<std::uint32_t>(stuck - can_end.begin()));
}

Outcome Search::outcome(bool complete) {
    out_.states = store_.size();
    out_.state_bytes = system_.state_bytes();
    out_.bytes = store_.bytes() + system_.own_bytes();
    out_.complete = complete && !out_.violation;
    return std::move(out_);
}

Result<Outcome> Search::run() {
    std::vector<std::uint8_t> initial(system_.state_bytes());
    system_.initial(initial.data());
    store_.insert(initial.data(), kNobody);
    std::uint32_t level_end = 1;
    for (std::uint32_t at = 0; at < store_.size(); ++at) {
        if (at == level_end) {
            ++out_.depth;
            level_end = store_.size();
        }
        expand(store_.state(at));
        if (!take(at)) return outcome(false);
        if (at % kReportEvery != 0 && store_.size() <= options_.states_max) continue;
        if (const auto within = within_limits(); !within) return tl::unexpected(within.error());
        if (options_.report) options_.report(store_.size(), at);
    }
    if (options_.progress) check_progress();
    return outcome(true);
}

}  // namespace

std::string_view name(Violation::Kind kind) {
    for (const auto& [value, text] : kKinds)
        if (value == kind) return text;
    return "";
}

std::optional<Violation::Kind> violation_kind(std::string_view name) {
    for (const auto& [value, text] : kKinds)
        if (text == name) return value;
    return std::nullopt;
}

Result<Outcome> search(const System& system, const SearchOptions& options) {
    return Search{system, options}.run();
}

}  // namespace continuo::explore
