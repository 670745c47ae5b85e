#include "json_document.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "continuo/state/json.h"

namespace continuo::state {

namespace {

using Tree = nlohmann::json;

constexpr std::size_t kShownMax = 48;

/// Foreign text for a message: clipped, and nothing in it that a terminal would obey.
std::string printable(std::string_view text) {
    std::string clean{text.substr(0, kShownMax)};
    std::replace_if(
        clean.begin(), clean.end(), [](char c) { return c < 0x20 || c > 0x7e; }, '?');
    if (text.size() > kShownMax) clean += "...";
    return clean;
}

/// RFC 6901: '~' and '/' inside a key are written "~0" and "~1".
std::string pointer_token(std::string_view key) {
    std::string token;
    for (const char c : printable(key)) {
        if (c == '~')
            token += "~0";
        else if (c == '/')
            token += "~1";
        else
            token += c;
    }
    return token;
}

std::string where_of(const std::string& pointer) {
    return pointer.empty() ? "the whole document" : pointer;
}

std::string line_and_column(std::string_view text, std::size_t position) {
    const std::string_view before = text.substr(0, position);
    const auto lines = std::count(before.begin(), before.end(), '\n');
    const std::size_t newline = before.rfind('\n');
    const std::size_t column =
        newline == std::string_view::npos ? before.size() : before.size() - newline - 1;
    return "line " + std::to_string(lines + 1) + ", column " +
           std::to_string(std::max<std::size_t>(column, 1));
}

/// Builds the tree from the parser's events; nothing throws on this way.
class Builder {
  public:
    explicit Builder(std::string_view text) : text_{text} {}

    bool null() { return put(nullptr); }
    bool boolean(bool value) { return put(value); }
    bool number_integer(std::int64_t value) { return put(value); }
    bool number_unsigned(std::uint64_t value) { return put(value); }
    bool number_float(double /*value*/, const std::string& text) {
        return stop("expected an integer of at most 64 bits, found " + printable(text),
                    "Numbers have no fraction and no exponent here");
    }
    bool string(std::string& value) { return put(std::move(value)); }
    bool binary(Tree::binary_t& /*value*/) { return stop("binary data"); }
    bool start_object(std::size_t /*elements*/) { return open(Tree::object()); }
    bool start_array(std::size_t /*elements*/) { return open(Tree::array()); }
    bool end_object() { return close(); }
    bool end_array() { return close(); }
    bool key(std::string& value) {
        open_.back().key = value;
        if (open_.back().node->contains(value)) return stop("the key stands here twice");
        return true;
    }
    bool parse_error(std::size_t position, const std::string& /*last_token*/,
                     const nlohmann::detail::exception& /*unused*/) {
        // The parser counts the end of the text as one more character.
        const bool at_end = position > text_.size();
        error_ = Error{ErrorCode::kMalformed, line_and_column(text_, position),
                       at_end ? "no JSON: the text ends too early"
                              : "no JSON after " + shown(Tree(text_before(position))),
                       "Check the text with jq", 0};
        return false;
    }

    Tree take() { return std::move(root_); }
    const Error& error() const { return error_; }

  private:
    struct Open {
        Tree* node;
        std::string key;  ///< of the member that comes next, in an object
    };

    Tree* add(Tree&& value) {
        if (open_.empty()) {
            root_ = std::move(value);
            return &root_;
        }
        Tree& parent = *open_.back().node;
        if (parent.is_object()) return &(parent[open_.back().key] = std::move(value));
        parent.push_back(std::move(value));
        return &parent.back();
    }
    bool put(Tree&& value) {
        add(std::move(value));
        return true;
    }
    bool open(Tree&& value) {
        if (open_.size() == kJsonDepthMax)
            return stop("nested deeper than " + std::to_string(kJsonDepthMax), {},
                        ErrorCode::kTooLarge);
        open_.push_back({add(std::move(value)), {}});
        return true;
    }
    bool close() {
        open_.pop_back();
        return true;
    }
    bool stop(std::string what, std::string advice = {}, ErrorCode code = ErrorCode::kMalformed) {
        error_ = Error{code, where_of(pointer()), std::move(what), std::move(advice), 0};
        return false;
    }
    std::string pointer() const {
        std::string path;
        for (const Open& level : open_) {
            const bool object = level.node->is_object();
            const bool inner = &level != &open_.back();
            // An array's open element is in it already, and the one that comes next is not.
            const std::size_t index = level.node->size() - (!object && inner ? 1 : 0);
            path += "/" + (object ? pointer_token(level.key) : std::to_string(index));
        }
        return path;
    }

    /// The last characters that were read, for people to find the place by.
    std::string_view text_before(std::size_t position) const {
        constexpr std::size_t length = 16;
        const std::size_t from = position > length ? position - length : 0;
        return text_.substr(from, position - from);
    }

    std::string_view text_;
    Tree root_;
    std::vector<Open> open_;
    Error error_;
};

std::string range(const std::string& lo, const std::string& hi) {
    return "expected an integer from " + lo + " to " + hi;
}

std::string quoted_list(std::initializer_list<std::string_view> choices) {
    std::string list;
    for (const std::string_view choice : choices)
        list += (list.empty() ? "\"" : " or \"") + std::string{choice} + "\"";
    return list;
}

/// "-0" is an integer too, and it is 0.
std::optional<std::uint64_t> as_u64(const Tree& value) {
    if (value.is_number_unsigned()) return value.get<std::uint64_t>();
    if (value.is_number_integer() && value.get<std::int64_t>() == 0) return 0;
    return std::nullopt;
}

std::optional<std::int64_t> as_i64(const Tree& value) {
    if (!value.is_number_integer()) return std::nullopt;
    constexpr auto max = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    if (value.is_number_unsigned() && value.get<std::uint64_t>() > max) return std::nullopt;
    return value.get<std::int64_t>();
}

const Tree& empty_object() {
    static const Tree object = Tree::object();
    return object;
}

const std::vector<Tree>& empty_array() {
    static const std::vector<Tree> array;
    return array;
}

}  // namespace

std::string shown(const Tree& value) {
    if (value.is_object()) return "an object";
    if (value.is_array()) return "an array";
    return printable(value.dump(-1, ' ', true, Tree::error_handler_t::replace));
}

Result<Tree> parse_document(std::string_view text) {
    if (text.size() > kJsonBytesMax)
        return fail(ErrorCode::kTooLarge, "the whole document",
                    std::to_string(text.size()) + " bytes, over the limit of " +
                        std::to_string(kJsonBytesMax));
    Builder builder{text};
    if (Tree::sax_parse(text, &builder)) return builder.take();
    return tl::unexpected(builder.error());
}

ObjectReader::ObjectReader(const Tree& value, std::string pointer, std::optional<Error>& problem)
    : object_{&value}, pointer_{std::move(pointer)}, problem_{&problem} {
    if (value.is_object()) return;
    if (!problem)
        problem = Error{ErrorCode::kMalformed,
                        where_of(pointer_),
                        "expected an object, found " + shown(value),
                        {},
                        0};
    object_ = &empty_object();
}

std::string ObjectReader::pointer_to(std::string_view key) const {
    return pointer_ + "/" + pointer_token(key);
}

void ObjectReader::complain(std::string_view key, std::string what, std::string advice,
                            ErrorCode code) {
    if (*problem_) return;
    *problem_ = Error{code, pointer_to(key), std::move(what), std::move(advice), 0};
}

const Tree* ObjectReader::member(const char* key, bool required) {
    known_.push_back(key);
    const auto found = object_->find(key);
    if (found != object_->end()) return &*found;
    if (required) complain(key, "missing");
    return nullptr;
}

const Tree* ObjectReader::optional_member(const char* key) {
    const Tree* value = member(key, false);
    return value == nullptr || value->is_null() ? nullptr : value;
}

std::uint64_t ObjectReader::u64(const char* key, std::optional<std::uint64_t> fallback) {
    return u64_in(key, 0, std::numeric_limits<std::uint64_t>::max(), fallback);
}

std::uint64_t ObjectReader::u64_in(const char* key, std::uint64_t lo, std::uint64_t hi,
                                   std::optional<std::uint64_t> fallback) {
    const Tree* value = member(key, !fallback);
    if (value == nullptr) return fallback.value_or(0);
    const auto number = as_u64(*value);
    if (number && *number >= lo && *number <= hi) return *number;
    const bool whole = lo == 0 && hi == std::numeric_limits<std::uint64_t>::max();
    complain(key, (whole ? std::string{"expected an unsigned integer below 2^64"}
                         : range(std::to_string(lo), std::to_string(hi))) +
                      ", found " + shown(*value));
    return fallback.value_or(0);
}

std::int64_t ObjectReader::i64_in(const char* key, std::int64_t lo, std::int64_t hi,
                                  std::optional<std::int64_t> fallback) {
    const Tree* value = member(key, !fallback);
    if (value == nullptr) return fallback.value_or(0);
    const auto number = as_i64(*value);
    if (number && *number >= lo && *number <= hi) return *number;
    complain(key, range(std::to_string(lo), std::to_string(hi)) + ", found " + shown(*value));
    return fallback.value_or(0);
}

bool ObjectReader::boolean(const char* key, std::optional<bool> fallback) {
    const Tree* value = member(key, !fallback);
    if (value == nullptr) return fallback.value_or(false);
    if (value->is_boolean()) return value->get<bool>();
    complain(key, "expected true or false, found " + shown(*value));
    return false;
}

std::string ObjectReader::string(const char* key, std::optional<std::string> fallback) {
    const Tree* value = member(key, !fallback);
    if (value == nullptr) return std::move(fallback).value_or("");
    if (value->is_string()) return value->get<std::string>();
    complain(key, "expected a string, found " + shown(*value));
    return {};
}

std::size_t ObjectReader::choice(const char* key, std::initializer_list<std::string_view> choices,
                                 std::optional<std::size_t> fallback) {
    const Tree* value = member(key, !fallback);
    if (value == nullptr) return fallback.value_or(0);
    if (value->is_string()) {
        const auto* found = std::find(choices.begin(), choices.end(),
                                      std::string_view{value->get_ref<const std::string&>()});
        if (found != choices.end()) return static_cast<std::size_t>(found - choices.begin());
    }
    complain(key, "expected " + quoted_list(choices) + ", found " + shown(*value));
    return 0;
}

std::optional<std::uint64_t> ObjectReader::optional_u64(const char* key) {
    if (optional_member(key) == nullptr) return std::nullopt;
    return u64(key);
}

ObjectReader ObjectReader::object(const char* key) {
    const Tree* value = member(key, true);
    return {value == nullptr ? empty_object() : *value, pointer_to(key), *problem_};
}

const std::vector<Tree>& ObjectReader::array(const char* key, bool required) {
    const Tree* value = member(key, required);
    if (value == nullptr) return empty_array();
    if (value->is_array()) return value->get_ref<const Tree::array_t&>();
    complain(key, "expected an array, found " + shown(*value));
    return empty_array();
}

void ObjectReader::finish() {
    for (const auto& [key, value] : object_->items()) {
        if (std::find(known_.begin(), known_.end(), key) != known_.end()) continue;
        std::string list;
        for (const std::string_view name : known_)
            list += (list.empty() ? "" : ", ") + std::string{name};
        complain(key, "unknown key", "The keys here are " + list);
        return;
    }
}

}  // namespace continuo::state
