#include "continuo/explore/counterexample.h"

#include <fmt/format.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>

namespace continuo::explore {

namespace {

using state::ErrorCode;
using state::fail;
using state::Json;
using state::Result;

constexpr std::size_t kStepsMax = 100'000;

std::vector<Change> changes(const Fields& before, const Fields& after) {
    std::vector<Change> out;
    for (std::size_t i = 0; i < before.size(); ++i)
        if (before[i].second != after[i].second)
            out.push_back({before[i].first, before[i].second, after[i].second});
    return out;
}

/// A system on its way along a path.
class Walk {
  public:
    explicit Walk(const System& system)
        : system_{system}, state_(system.state_bytes()), next_{system.state_bytes()} {
        system.initial(state_.data());
    }

    /// Takes the step, or nullopt where the agent has no such step here.
    std::optional<ToldStep> take(PathStep step) {
        next_.clear();
        system_.successors(state_.data(), step.agent, next_);
        for (std::size_t i = 0; i < next_.size(); ++i) {
            if (next_.choice(i) != step.choice) continue;
            ToldStep out{system_.agent_name(step.agent), step.choice,
                         system_.step_text(state_.data(), step.agent, step.choice),
                         changes(system_.fields(state_.data()), system_.fields(next_.state(i)))};
            failure_ = next_.failure(i);
            std::memcpy(state_.data(), next_.state(i), state_.size());
            return out;
        }
        return std::nullopt;
    }
    /// What the last step broke; nullptr: nothing.
    const char* failure() const { return failure_; }
    bool stands_still() {
        next_.clear();
        for (unsigned agent = 0; agent < system_.agents(); ++agent)
            system_.successors(state_.data(), agent, next_);
        return next_.size() == 0;
    }

  private:
    const System& system_;
    std::vector<std::uint8_t> state_;
    Successors next_;
    const char* failure_ = nullptr;
};

std::optional<unsigned> agent_number(const System& system, std::string_view name) {
    for (unsigned agent = 0; agent < system.agents(); ++agent)
        if (system.agent_name(agent) == name) return agent;
    return std::nullopt;
}

Result<void> misfit(std::size_t step, std::string what) {
    return fail(ErrorCode::kMalformed, fmt::format("/steps/{}", step), std::move(what),
                "The file is of another build, or was changed: search again with `continuo "
                "explore`");
}

std::string brief(const ToldStep& step) {
    std::string out = step.text;
    for (const Change& change : step.changes)
        out += fmt::format("; {}: {} -> {}", change.field, change.before, change.after);
    return out;
}

Result<void> fits_end(const Counterexample& file, Walk& walk) {
    const std::size_t last = file.steps.size() - 1;
    if (file.kind == Violation::Kind::kAssertion) {
        if (walk.failure() == nullptr) return misfit(last, "the last step breaks nothing");
        if (walk.failure() != file.what)
            return misfit(last, fmt::format("the last step breaks \"{}\", not \"{}\"",
                                            walk.failure(), file.what));
    }
    if (file.kind == Violation::Kind::kDeadlock && !walk.stands_still())
        return misfit(last, "somebody can still take a step after the last one");
    return {};
}

// -- reading --

Result<void> wrong(std::string where, std::string what) {
    return fail(ErrorCode::kMalformed, std::move(where), std::move(what),
                "See docs/formats/counterexample.md");
}

/// An object with these members and no others; the first complaint is the Error.
Result<void> has_members(const Json& json, const std::string& where,
                         std::initializer_list<const char*> members) {
    if (!json.is_object()) return wrong(where, "this is no object");
    for (const char* member : members)
        if (!json.contains(member)) return wrong(where, fmt::format("\"{}\" is missing", member));
    for (const auto& item : json.items()) {
        bool known = false;
        for (const char* member : members)
            known = known || item.key() == member;
        if (!known) return wrong(where, fmt::format("there is no member \"{}\"", item.key()));
    }
    return {};
}

Result<std::string> text_member(const Json& json, const std::string& where, const char* member) {
    if (!json.at(member).is_string())
        return tl::unexpected(wrong(where + "/" + member, "this is no string").error());
    return json.at(member).get<std::string>();
}

Result<ToldStep> read_step(const Json& json, const std::string& where) {
    if (const auto ok = has_members(json, where, {"agent", "choice", "text", "changes"}); !ok)
        return tl::unexpected(ok.error());
    const auto agent = text_member(json, where, "agent");
    if (!agent) return tl::unexpected(agent.error());
    const auto text = text_member(json, where, "text");
    if (!text) return tl::unexpected(text.error());
    const Json& choice = json.at("choice");
    if (!choice.is_number_unsigned() || choice.get<std::uint64_t>() > UINT16_MAX)
        return tl::unexpected(wrong(where + "/choice", "this is no number below 65536").error());
    ToldStep out{*agent, choice.get<unsigned>(), *text, {}};
    if (!json.at("changes").is_array())
        return tl::unexpected(wrong(where + "/changes", "this is no array").error());
    for (const Json& change : json.at("changes")) {
        const std::string place = fmt::format("{}/changes/{}", where, out.changes.size());
        if (const auto ok = has_members(change, place, {"field", "before", "after"}); !ok)
            return tl::unexpected(ok.error());
        Change read;
        for (const auto& [member, into] :
             {std::pair{"field", &read.field}, {"before", &read.before}, {"after", &read.after}}) {
            const auto value = text_member(change, place, member);
            if (!value) return tl::unexpected(value.error());
            *into = *value;
        }
        out.changes.push_back(std::move(read));
    }
    return out;
}

Result<Counterexample> read_document(const Json& json) {
    if (!json.is_object() || !json.contains("schema") || !json.at("schema").is_string())
        return tl::unexpected(wrong("", "this is no object with a \"schema\"").error());
    if (json.at("schema") != kCounterexampleSchema)
        return fail(ErrorCode::kVersion, "/schema",
                    fmt::format("this is no {}", kCounterexampleSchema),
                    "Give a file that `continuo explore --counterexample FILE` wrote");
    if (const auto ok =
            has_members(json, "", {"schema", "protocol", "variant", "violation", "steps"});
        !ok)
        return tl::unexpected(ok.error());
    const Json& violation = json.at("violation");
    if (const auto ok = has_members(violation, "/violation", {"kind", "what"}); !ok)
        return tl::unexpected(ok.error());
    Counterexample out;
    std::string kind;
    for (const auto& [object, where, member, into] :
         {std::tuple{&json, "", "protocol", &out.protocol},
          std::tuple{&json, "", "variant", &out.variant},
          std::tuple{&violation, "/violation", "kind", &kind},
          std::tuple{&violation, "/violation", "what", &out.what}}) {
        const auto value = text_member(*object, where, member);
        if (!value) return tl::unexpected(value.error());
        *into = *value;
    }
    const auto known = violation_kind(kind);
    if (!known)
        return tl::unexpected(
            wrong("/violation/kind", "there are assertion, deadlock and no_progress").error());
    out.kind = *known;
    const Json& steps = json.at("steps");
    if (!steps.is_array() || steps.empty() || steps.size() > kStepsMax)
        return tl::unexpected(
            wrong("/steps", fmt::format("this is no array of 1 to {} steps", kStepsMax)).error());
    for (const Json& step : steps) {
        auto read = read_step(step, fmt::format("/steps/{}", out.steps.size()));
        if (!read) return tl::unexpected(read.error());
        out.steps.push_back(std::move(*read));
    }
    return out;
}

}  // namespace

Counterexample told(const Protocol& protocol, const Variant& variant, const Violation& violation) {
    const auto system = variant.make();
    Walk walk{*system};
    Counterexample out{protocol.name, variant.name, violation.kind, violation.what, {}};
    for (const PathStep step : violation.path) {
        auto taken = walk.take(step);
        CONTINUO_CHECK(taken);
        out.steps.push_back(std::move(*taken));
    }
    return out;
}

Json counterexample_to_json(const Counterexample& counterexample) {
    Json json;
    json["schema"] = kCounterexampleSchema;
    json["protocol"] = counterexample.protocol;
    json["variant"] = counterexample.variant;
    json["violation"] = {{"kind", name(counterexample.kind)}, {"what", counterexample.what}};
    json["steps"] = Json::array();
    for (const ToldStep& step : counterexample.steps) {
        Json changes = Json::array();
        for (const Change& change : step.changes)
            changes.push_back(
                {{"field", change.field}, {"before", change.before}, {"after", change.after}});
        json["steps"].push_back({{"agent", step.agent},
                                 {"choice", step.choice},
                                 {"text", step.text},
                                 {"changes", std::move(changes)}});
    }
    return json;
}

Result<Counterexample> counterexample_from_json(std::string_view text) {
    if (text.size() > state::kJsonBytesMax)
        return fail(ErrorCode::kTooLarge, "counterexample",
                    fmt::format("{} bytes are more than {}", text.size(), state::kJsonBytesMax),
                    "Give a file that `continuo explore --counterexample FILE` wrote");
    const Json json = Json::parse(text, nullptr, false);
    if (json.is_discarded()) return tl::unexpected(wrong("", "this is no JSON").error());
    return read_document(json);
}

Result<Counterexample> replay(const Counterexample& counterexample) {
    const auto protocol = find_protocol(counterexample.protocol);
    if (!protocol) return tl::unexpected(protocol.error());
    const auto variant = find_variant(**protocol, counterexample.variant);
    if (!variant) return tl::unexpected(variant.error());
    const auto system = (*variant)->make();
    Walk walk{*system};
    Counterexample out = counterexample;
    for (std::size_t i = 0; i < counterexample.steps.size(); ++i) {
        const ToldStep& file = counterexample.steps[i];
        const auto agent = agent_number(*system, file.agent);
        if (!agent)
            return tl::unexpected(
                misfit(i, fmt::format("there is no agent \"{}\"", file.agent)).error());
        const auto taken = walk.take({*agent, file.choice});
        if (!taken)
            return tl::unexpected(
                misfit(i, fmt::format("{} cannot take step {} here", file.agent, file.choice))
                    .error());
        if (!(*taken == file))
            return tl::unexpected(misfit(i, fmt::format("{} does \"{}\" here, and the file says "
                                                        "\"{}\"",
                                                        file.agent, brief(*taken), brief(file)))
                                      .error());
        if (walk.failure() != nullptr && i + 1 < counterexample.steps.size())
            return tl::unexpected(
                misfit(i, fmt::format("this step breaks \"{}\" already", walk.failure())).error());
        out.steps[i] = *taken;
    }
    if (const auto fits = fits_end(counterexample, walk); !fits)
        return tl::unexpected(fits.error());
    return out;
}

}  // namespace continuo::explore
