#include "continuo/sim/strategy.h"

#include <algorithm>

#include "strategies/strategies.h"

namespace continuo::sim {

namespace {

std::array<const Strategy*, 13> list() {
    std::array<const Strategy*, 13> all{};
    auto to = all.begin();
    const auto by_value = by_value_strategies();
    const auto controls = kernel_control_strategies();
    const auto continuo = continuo_strategies();
    to = std::copy(by_value.begin(), by_value.end(), to);
    to = std::copy(controls.begin(), controls.end(), to);
    std::copy(continuo.begin(), continuo.end(), to);
    return all;
}

}  // namespace

std::span<const Strategy* const> all_strategies() {
    static const auto all = list();
    return all;
}

const Strategy* strategy_from_name(std::string_view name) {
    for (const Strategy* strategy : all_strategies())
        if (strategy->name() == name) return strategy;
    return nullptr;
}

}  // namespace continuo::sim
