#include "steps.h"

#include <nlohmann/json.hpp>

namespace continuo::crosshost {

namespace {

using Json = nlohmann::json;
using state::ErrorCode;

/// Reads keys one by one; the first that is wrong stays.
class StepReader {
  public:
    StepReader(const Json& json, std::string where) : json_{json}, where_{std::move(where)} {}

    template <class T>
    void read(const char* key, T& into) {
        ++known_;
        const auto found = json_.find(key);
        if (found == json_.end()) return complain(key, "is missing");
        if (!fits<T>(*found)) return complain(key, "is of another type or out of range");
        into = found->template get<T>();
    }

    void read_policy(state::Policy& into) {
        std::string text;
        read("policy", text);
        const auto policy = state::policy_from_name(text);
        if (!policy) return complain("policy", "is not the name of a policy");
        into = *policy;
    }

    Status result() {
        if (json_.size() != known_) complain("it", "has a key that no step has");
        if (error_) return tl::unexpected(std::move(*error_));
        return {};
    }

  private:
    template <class T>
    static bool fits(const Json& value) {
        if constexpr (std::is_same_v<T, bool>) {
            return value.is_boolean();
        } else if constexpr (std::is_same_v<T, std::string>) {
            return value.is_string();
        } else {
            if (!value.is_number_integer()) return false;
            if (value.is_number_unsigned()) return std::in_range<T>(value.get<std::uint64_t>());
            return std::in_range<T>(value.get<std::int64_t>());
        }
    }

    void complain(const std::string& key, const std::string& what) {
        if (error_) return;
        error_ = state::Error{ErrorCode::kMalformed, where_, key + " " + what,
                              "lab/crosshost/README.md lists the keys", 0};
    }

    const Json& json_;
    std::string where_;
    std::size_t known_ = 0;
    std::optional<state::Error> error_;
};

Result<Step> parse_step(const Json& json, std::size_t number) {
    const std::string where = "step " + std::to_string(number);
    if (!json.is_object()) return state::fail(ErrorCode::kMalformed, where, "it is no object");
    Step step;
    StepReader reader{json, where};
    reader.read("name", step.name);
    reader.read("moves", step.moves);
    reader.read_policy(step.policy);
    reader.read("offset_ns", step.offset_ns);
    reader.read("exchange", step.exchange);
    reader.read("synchronised_a", step.ntp_a.synchronised);
    reader.read("synchronised_b", step.ntp_b.synchronised);
    reader.read("maxerror_us_a", step.ntp_a.maxerror_us);
    reader.read("maxerror_us_b", step.ntp_b.maxerror_us);
    reader.read("frequency_ppb_a", step.ntp_a.frequency_ppb);
    reader.read("frequency_ppb_b", step.ntp_b.frequency_ppb);
    reader.read("tai_offset_sec_a", step.ntp_a.tai_offset_sec);
    reader.read("tai_offset_sec_b", step.ntp_b.tai_offset_sec);
    if (auto good = reader.result(); !good) return tl::unexpected(std::move(good.error()));
    return step;
}

}  // namespace

Result<std::vector<Step>> parse_steps(std::string_view text) {
    const Json json = Json::parse(text, nullptr, false);
    if (!json.is_array() || json.empty())
        return state::fail(ErrorCode::kMalformed, "steps", "they are no JSON array of steps",
                           "lab/crosshost/README.md shows one");
    std::vector<Step> steps;
    for (const Json& each : json) {
        auto step = parse_step(each, steps.size());
        if (!step) return tl::unexpected(std::move(step.error()));
        steps.push_back(std::move(*step));
    }
    return steps;
}

}  // namespace continuo::crosshost
