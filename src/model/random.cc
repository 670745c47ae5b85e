#include "continuo/model/random.h"

#include <algorithm>

namespace continuo::model {

std::int64_t Random::between(std::int64_t lo, std::int64_t hi) {
    const std::uint64_t span = static_cast<std::uint64_t>(hi) - static_cast<std::uint64_t>(lo) + 1;
    return static_cast<std::int64_t>(static_cast<std::uint64_t>(lo) +
                                     (span == 0 ? next() : next() % span));
}

std::int64_t Random::of_any_size(std::int64_t hi) {
    const auto shift = static_cast<int>(next() % 40);
    return between(0, std::max<std::int64_t>(hi >> shift, 0));
}

}  // namespace continuo::model
