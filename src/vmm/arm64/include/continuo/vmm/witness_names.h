// What the witness's two clocks are called on arm64, in reports.
#pragma once

#include <string_view>

namespace continuo::vmm {

inline constexpr std::string_view kCounterName = "cntvct";
inline constexpr std::string_view kClockName = "cntpct";
inline constexpr std::string_view kCrossSkewUnit = "ticks";
inline constexpr std::string_view kCrossSkewMeaning = "worst skew of CNTPCT from CNTVCT";

}  // namespace continuo::vmm
