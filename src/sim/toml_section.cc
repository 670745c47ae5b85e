#include "toml_section.h"

#include <fmt/format.h>

#include <algorithm>

namespace continuo::sim {

namespace {

std::string between(Domain domain) {
    if (domain.lo == INT64_MIN && domain.hi == INT64_MAX) return "an integer";
    if (domain.hi == INT64_MAX) return fmt::format("an integer of at least {}", domain.lo);
    return fmt::format("an integer from {} to {}", domain.lo, domain.hi);
}

/// What a person wrote there, as far as it fits a line.
std::string shown(const toml::node& node) {
    if (const auto value = node.value<std::int64_t>(); value && node.is_integer())
        return std::to_string(*value);
    if (const auto value = node.value<std::string>()) return fmt::format("\"{}\"", *value);
    switch (node.type()) {
        case toml::node_type::floating_point:
            return "a floating-point number";
        case toml::node_type::boolean:
            return *node.value<bool>() ? "true" : "false";
        case toml::node_type::array:
            return "an array";
        case toml::node_type::table:
            return "a table";
        default:
            return "a date or time";
    }
}

}  // namespace

void TomlFile::fail(const toml::source_region& at, std::string_view key, std::string what,
                    std::string expected) {
    if (error_) return;
    const auto line = at.begin.line;
    const auto column = at.begin.column;
    error_ =
        state::Error{state::ErrorCode::kMalformed,
                     fmt::format("{}:{}:{}{}{}", name_, line, column, key.empty() ? "" : ": ", key),
                     std::move(what), std::move(expected)};
}

std::string Section::path_of(std::string_view key) const {
    return path_.empty() ? std::string{key} : fmt::format("{}.{}", path_, key);
}

void Section::fail(std::string_view key, std::string what, std::string expected) {
    const toml::node* node = table_.get(key);
    file_.fail(node != nullptr ? node->source() : table_.source(), path_of(key), std::move(what),
               std::move(expected));
}

const toml::node* Section::find(std::string_view key) {
    if (std::find(asked_.begin(), asked_.end(), key) == asked_.end()) asked_.emplace_back(key);
    return table_.get(key);
}

void Section::wrong(const toml::node& node, std::string_view key, std::string expected) {
    file_.fail(node.source(), path_of(key), fmt::format("{} stands there", shown(node)),
               fmt::format("Expected {}", expected));
}

std::optional<std::int64_t> Section::integer(const toml::node& node, std::string_view key,
                                             Domain domain) {
    const auto value = node.is_integer() ? node.value<std::int64_t>() : std::nullopt;
    if (value && domain.lo <= *value && *value <= domain.hi) return value;
    wrong(node, key, between(domain));
    return std::nullopt;
}

void Section::draw(std::string_view key, Draw& out, Domain domain) {
    const toml::node* node = find(key);
    if (node == nullptr) return;
    if (const auto* ends = node->as_array()) return range(*ends, key, out, domain);
    if (const auto* table = node->as_table()) return any_size(*table, key, out, domain);
    if (const auto value = integer(*node, key, domain)) out = Draw::of(*value);
}

void Section::range(const toml::array& ends, std::string_view key, Draw& out, Domain domain) {
    if (ends.size() != 2)
        return wrong(ends, key, "two ends, [lowest, highest], or one number, or {up_to = highest}");
    const auto lo = integer(*ends.get(0), key, domain);
    const auto hi = integer(*ends.get(1), key, domain);
    if (!lo || !hi) return;
    if (*lo > *hi)
        return file_.fail(ends.source(), path_of(key), fmt::format("[{}, {}] is empty", *lo, *hi),
                          "Expected the lower end first");
    out = Draw{*lo, *hi, false};
}

void Section::any_size(const toml::table& table, std::string_view key, Draw& out, Domain domain) {
    Section inner{file_, table, path_of(key)};
    std::int64_t up_to = 0;
    if (!inner.has("up_to"))
        return wrong(table, key, "{up_to = highest}, or a number, or [lowest, highest]");
    inner.number("up_to", up_to, {std::max<std::int64_t>(domain.lo, 0), domain.hi});
    out = Draw{0, up_to, true};
}

void Section::ppm(std::string_view key, Ppm& out) {
    number(key, out.value, {0, 1'000'000});
}

void Section::flag(std::string_view key, bool& out) {
    const toml::node* node = find(key);
    if (node == nullptr) return;
    if (const auto* value = node->as_boolean())
        out = value->get();
    else
        wrong(*node, key, "true or false");
}

void Section::text(std::string_view key, std::string& out) {
    const toml::node* node = find(key);
    if (node == nullptr) return;
    if (const auto* value = node->as_string())
        out = value->get();
    else
        wrong(*node, key, "a string");
}

void Section::words(std::string_view key, std::vector<std::string>& out) {
    const toml::node* node = find(key);
    if (node == nullptr) return;
    const toml::array* array = node->as_array();
    if (array == nullptr) return wrong(*node, key, "an array of strings");
    for (const toml::node& item : *array) {
        if (!item.is_string()) return wrong(item, key, "a string in double quotes");
        out.push_back(**item.as_string());
    }
}

std::optional<std::size_t> Section::choice(std::string_view key,
                                           std::span<const std::string_view> words) {
    const toml::node* node = find(key);
    if (node == nullptr) return std::nullopt;
    if (const auto* value = node->as_string()) {
        const auto found = std::find(words.begin(), words.end(), value->get());
        if (found != words.end()) return static_cast<std::size_t>(found - words.begin());
    }
    wrong(*node, key, fmt::format("one of \"{}\"", fmt::join(words, "\", \"")));
    return std::nullopt;
}

const toml::table* Section::table(std::string_view key) {
    const toml::node* node = find(key);
    if (node == nullptr) return nullptr;
    if (const auto* found = node->as_table()) return found;
    wrong(*node, key, fmt::format("a table, [{}]", path_of(key)));
    return nullptr;
}

std::vector<const toml::table*> Section::tables(std::string_view key) {
    std::vector<const toml::table*> out;
    const toml::node* node = find(key);
    if (node == nullptr) return out;
    const auto* array = node->as_array();
    if (array == nullptr || !array->is_homogeneous<toml::table>()) {
        wrong(*node, key, fmt::format("tables, each beginning with [[{}]]", path_of(key)));
        return out;
    }
    for (const toml::node& element : *array)
        out.push_back(element.as_table());
    return out;
}

void Section::refuse_unknown() {
    for (const auto& [key, node] : table_) {
        if (std::find(asked_.begin(), asked_.end(), key.str()) != asked_.end()) continue;
        file_.fail(key.source(), path_of(key.str()), "an unknown key",
                   fmt::format("Expected one of {}", fmt::join(asked_, ", ")));
        return;
    }
}

}  // namespace continuo::sim
