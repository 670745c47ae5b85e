#include "campaign.h"

#include <chrono>

namespace continuo::differential {

namespace {

/// Where a mismatch needs an instant to fall so or so, one run does not show it.
constexpr int kRunsToShow = 3;

class Shrinker {
  public:
    Shrinker(const Sequence& failing, const std::function<bool(const Sequence&)>& fails,
             unsigned tries_max)
        : best_{failing}, fails_{fails}, tries_{tries_max} {}

    Sequence run() {
        bool smaller = true;
        while (smaller && tries_ > 0) {
            smaller = leave_out();
            smaller = fewer_vcpus() || smaller;
            smaller = plainer() || smaller;
        }
        return best_;
    }

  private:
    bool take(const Sequence& candidate) {
        if (tries_ == 0) return false;
        --tries_;
        if (!fails_(candidate)) return false;
        best_ = candidate;
        return true;
    }

    bool leave_out() {
        bool smaller = false;
        for (std::size_t size = best_.ops.size(); size > 0; size /= 2) {
            std::size_t at = 0;
            while (at + size <= best_.ops.size() && tries_ > 0) {
                Sequence candidate = best_;
                const auto first = candidate.ops.begin() + static_cast<std::ptrdiff_t>(at);
                candidate.ops.erase(first, first + static_cast<std::ptrdiff_t>(size));
                if (take(candidate))
                    smaller = true;
                else
                    at += size;
            }
        }
        return smaller;
    }

    bool fewer_vcpus() {
        bool smaller = false;
        while (best_.vcpus > 1) {
            Sequence candidate = best_;
            --candidate.vcpus;
            if (!take(candidate)) break;
            smaller = true;
        }
        return smaller;
    }

    bool plainer() {
        bool smaller = false;
        for (std::size_t i = 0; i < best_.ops.size(); ++i) {
            const auto change = [&](auto&& edit) {
                Sequence candidate = best_;
                edit(candidate.ops[i]);
                if (!(candidate.ops[i] == best_.ops[i])) smaller = take(candidate) || smaller;
            };
            change([&](Op& op) { op.vcpu = static_cast<std::uint8_t>(op.vcpu % best_.vcpus); });
            change([](Op& op) { op.vcpu = 0; });
            change([](Op& op) { op.amount = 0; });
            change([](Op& op) { op.old_msr = false; });
            change([](Op& op) { op.off = false; });
        }
        return smaller;
    }

    Sequence best_;
    const std::function<bool(const Sequence&)>& fails_;
    unsigned tries_;
};

class Campaign {
  public:
    Campaign(Subject& subject, const CampaignOptions& options)
        : subject_{subject}, options_{options} {}

    Result<Tally> run(const ToldProgress& progress) {
        const auto began = std::chrono::steady_clock::now();
        const std::chrono::seconds limit{options_.seconds_max};
        for (std::uint64_t i = 0; i < options_.sequences; ++i) {
            if (auto done = one(options_.seed + i); !done) return tl::unexpected(done.error());
            progress(tally_);
            if (tally_.findings.size() >= options_.mismatches_max) break;
            if (options_.seconds_max > 0 && std::chrono::steady_clock::now() - began > limit) break;
        }
        return std::move(tally_);
    }

  private:
    Status one(std::uint64_t seed) {
        const Sequence sequence = draw(seed, options_.abilities, options_.ops_max);
        const auto trace = differential::run(subject_, sequence);
        if (!trace) return tl::unexpected(trace.error());
        const Verdict verdict = judge(*trace, options_.rules, options_.host);
        ++tally_.sequences;
        tally_.ops += trace->steps.size();
        tally_.comparisons += verdict.comparisons;
        tally_.ambiguous += verdict.ambiguous;
        tally_.pinned += verdict.pinned;
        tally_.hidden += verdict.hidden;
        for (const Step& step : trace->steps)
            ++tally_.by_kind[step.act.kind];
        if (verdict.mismatch) tally_.findings.push_back(find(sequence, *trace));
        return {};
    }

    /// The sequence's last trace with a mismatch.
    std::optional<Trace> failing_trace(const Sequence& sequence) {
        for (int i = 0; i < kRunsToShow; ++i) {
            auto trace = differential::run(subject_, sequence);
            if (trace && judge(*trace, options_.rules, options_.host).mismatch)
                return std::move(*trace);
        }
        return std::nullopt;
    }

    Finding find(const Sequence& drawn, const Trace& first) {
        Finding found;
        found.drawn = drawn;
        Trace shown = first;
        found.seen_again = failing_trace(drawn).has_value();
        found.smallest = drawn;
        if (found.seen_again) {
            found.smallest = shrink(drawn, [&](const Sequence& candidate) {
                auto trace = failing_trace(candidate);
                if (trace) shown = std::move(*trace);
                return trace.has_value();
            });
        }
        found.mismatch = *judge(shown, options_.rules, options_.host, &found.story).mismatch;
        return found;
    }

    Subject& subject_;
    const CampaignOptions& options_;
    Tally tally_;
};

}  // namespace

Result<Tally> run_campaign(Subject& subject, const CampaignOptions& options,
                           const ToldProgress& progress) {
    return Campaign{subject, options}.run(progress);
}

Sequence shrink(const Sequence& failing, const std::function<bool(const Sequence&)>& fails,
                unsigned tries_max) {
    return Shrinker{failing, fails, tries_max}.run();
}

}  // namespace continuo::differential
