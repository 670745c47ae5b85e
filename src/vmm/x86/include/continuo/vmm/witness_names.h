// What the witness's two clocks are called on x86-64, in reports.
#pragma once

#include <string_view>

namespace continuo::vmm {

inline constexpr std::string_view kCounterName = "tsc";
inline constexpr std::string_view kClockName = "kvmclock";
inline constexpr std::string_view kCrossSkewUnit = "ns";
inline constexpr std::string_view kCrossSkewMeaning = "worst skew between vCPUs";

}  // namespace continuo::vmm
