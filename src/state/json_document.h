// Strict JSON: text to a tree, and a tree to values, with the place of whatever is wrong. Private
// to state/.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "continuo/state/error.h"

namespace continuo::state {

/// Parses `text`. Refuses, with line and column, what is no JSON; with a JSON pointer, numbers that
/// have a fraction, an exponent or more than 64 bits, and keys that stand twice in one object; and
/// texts over kJsonBytesMax or kJsonDepthMax.
Result<nlohmann::json> parse_document(std::string_view text);

/// Reads the members of one object. The first thing that is wrong is kept in the Error that all
/// readers of a document share; from then on every answer is the fallback or zero, and the caller
/// looks once, at the end.
class ObjectReader {
  public:
    /// `problem` outlives the reader. Complains where `value` is no object.
    ObjectReader(const nlohmann::json& value, std::string pointer, std::optional<Error>& problem);

    /// Required where `fallback` is none.
    std::uint64_t u64(const char* key, std::optional<std::uint64_t> fallback = {});
    std::uint64_t u64_in(const char* key, std::uint64_t lo, std::uint64_t hi,
                         std::optional<std::uint64_t> fallback = {});
    std::int64_t i64_in(const char* key, std::int64_t lo, std::int64_t hi,
                        std::optional<std::int64_t> fallback = {});
    bool boolean(const char* key, std::optional<bool> fallback = {});
    /// Any string.
    std::string string(const char* key, std::optional<std::string> fallback = {});
    /// Index into `choices`.
    std::size_t choice(const char* key, std::initializer_list<std::string_view> choices,
                       std::optional<std::size_t> fallback = {});
    /// None where the member is missing or null.
    std::optional<std::uint64_t> optional_u64(const char* key);
    const nlohmann::json* optional_member(const char* key);

    /// A reader for an object in this one; the reader of an empty object after a complaint.
    ObjectReader object(const char* key);
    /// The elements of an array; empty after a complaint.
    const std::vector<nlohmann::json>& array(const char* key, bool required);

    /// "/vcpus/3/counter" for a member of the object at "/vcpus/3".
    std::string pointer_to(std::string_view key) const;
    void complain(std::string_view key, std::string what, std::string advice = {},
                  ErrorCode code = ErrorCode::kMalformed);
    /// Complains about every key that nobody asked for. Call it when all have been read.
    void finish();

  private:
    const nlohmann::json* member(const char* key, bool required);

    const nlohmann::json* object_;
    std::string pointer_;
    std::optional<Error>* problem_;
    std::vector<std::string_view> known_;
};

/// The value as an error message shows it: short, ASCII, without control characters.
std::string shown(const nlohmann::json& value);

}  // namespace continuo::state
