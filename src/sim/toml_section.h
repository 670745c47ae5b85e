// Reading a table of a TOML file strictly: every key is asked for by name, with its domain; what
// stands there besides is an error. The first error is kept, with line, column, key, what was found
// and what was expected; what is read after it does not matter. Integers and strings only: a
// quantity of time is no floating-point number.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#define TOML_EXCEPTIONS 0  // a parse error is a value; this is the only place that includes toml++
#include <toml++/toml.h>

#include "continuo/sim/draw.h"
#include "continuo/state/error.h"

namespace continuo::sim {

/// What all sections of a file share: its name and the first error.
class TomlFile {
  public:
    explicit TomlFile(std::string_view name) : name_{name} {}
    void fail(const toml::source_region& at, std::string_view key, std::string what,
              std::string expected);
    bool failed() const { return error_.has_value(); }
    const state::Error& error() const { return *error_; }

  private:
    std::string name_;
    std::optional<state::Error> error_;
};

/// Bounds of a number, both included.
struct Domain {
    std::int64_t lo = INT64_MIN;
    std::int64_t hi = INT64_MAX;
};

class Section {
  public:
    Section(TomlFile& file, const toml::table& table, std::string path)
        : file_{file}, table_{table}, path_{std::move(path)} {}
    Section(const Section&) = delete;
    Section& operator=(const Section&) = delete;
    /// Whatever was not asked for is unknown.
    ~Section() { refuse_unknown(); }

    template <class Integer>
    void number(std::string_view key, Integer& out, Domain domain) {
        if (const toml::node* node = find(key))
            if (const auto value = integer(*node, key, domain)) out = static_cast<Integer>(*value);
    }
    void draw(std::string_view key, Draw& out, Domain domain);
    void ppm(std::string_view key, Ppm& out);
    void flag(std::string_view key, bool& out);
    void text(std::string_view key, std::string& out);
    /// An array of strings.
    void words(std::string_view key, std::vector<std::string>& out);
    /// The index of the word that stands there.
    std::optional<std::size_t> choice(std::string_view key,
                                      std::span<const std::string_view> words);
    bool has(std::string_view key) { return find(key) != nullptr; }
    /// The table of this name; nullptr where there is none.
    const toml::table* table(std::string_view key);
    /// The tables of this name; none where there are none.
    std::vector<const toml::table*> tables(std::string_view key);

    void fail(std::string_view key, std::string what, std::string expected);
    const std::string& path() const { return path_; }
    std::string path_of(std::string_view key) const;

  private:
    const toml::node* find(std::string_view key);
    std::optional<std::int64_t> integer(const toml::node& node, std::string_view key,
                                        Domain domain);
    void wrong(const toml::node& node, std::string_view key, std::string expected);
    void range(const toml::array& ends, std::string_view key, Draw& out, Domain domain);
    void any_size(const toml::table& table, std::string_view key, Draw& out, Domain domain);
    void refuse_unknown();

    TomlFile& file_;
    const toml::table& table_;
    std::string path_;
    std::vector<std::string> asked_;
};

}  // namespace continuo::sim
