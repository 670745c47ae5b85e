// A page that changes under its reader: the writer's stores are recorded once, and the readers'
// hook (page_access.h) lets them happen between the reader's accesses, in every way that there is.
// A test includes this before any reader.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

namespace continuo::guest::test {

/// Called before every access of a reader to a page, and before it reads the counter.
inline std::function<void()> on_access;  // NOLINT(*-avoid-non-const-global-variables): the hook's
inline std::uint64_t counter_now = 0;    // NOLINT(*-avoid-non-const-global-variables): the reader's

inline void access_hook() {
    if (on_access) on_access();
}
inline std::uint64_t hooked_counter() {
    access_hook();
    return counter_now;
}

using Stores = std::vector<std::function<void()>>;

/// Lets stores happen at chosen accesses of one run of a reader: store i before access at[i] (from
/// 0, in rising order); what would come after the last access comes with it.
class Interleaving {
  public:
    Interleaving(const Stores& stores, const std::vector<std::size_t>& at)
        : stores_{stores}, at_{at} {
        on_access = [this] { step(); };
    }
    Interleaving(const Interleaving&) = delete;
    Interleaving& operator=(const Interleaving&) = delete;
    ~Interleaving() { on_access = nullptr; }

    std::size_t accesses() const { return accesses_; }
    std::size_t done() const { return done_; }

  private:
    void step() {
        while (done_ < stores_.size() && at_[done_] <= accesses_)
            stores_[done_++]();
        ++accesses_;
    }

    const Stores& stores_;
    const std::vector<std::size_t>& at_;
    std::size_t accesses_ = 0;
    std::size_t done_ = 0;
};

/// Calls `visit` with every rising sequence of `count` numbers in [0, limit].
inline void for_each_placement(std::size_t count, std::size_t limit,
                               const std::function<void(const std::vector<std::size_t>&)>& visit) {
    std::vector<std::size_t> at(count, 0);
    for (;;) {
        visit(at);
        std::size_t i = count;
        while (i > 0 && at[i - 1] == limit)
            --i;
        if (i == 0) return;
        const std::size_t next = at[i - 1] + 1;
        for (std::size_t j = i - 1; j < count; ++j)
            at[j] = next;
    }
}

}  // namespace continuo::guest::test

#define CONTINUO_PAGE_HOOK() continuo::guest::test::access_hook()
#define CONTINUO_READ_COUNTER() continuo::guest::test::hooked_counter()
