// A certificate for people: a table, and a plot of what is left of each clock's error.
#pragma once

#include <optional>
#include <string>

#include "continuo/state/certificate.h"

namespace continuo::cli {

/// The verdict, and a row for each clock: prescribed, realised, seam, bounds.
std::string certificate_table(const state::Certificate& certificate);

/// What the guest saw, a row for each vCPU; empty where nobody looked.
std::string observed_table(const state::Certificate& certificate);

/// |seam| of each clock on a logarithmic scale of time, with its bound, and beside it the seam of
/// `by_value`: the same plan restored the way VMMs do it today. Rows that are alike are one.
/// `counter` turns ticks into time.
std::string seam_plot(const state::Certificate& certificate,
                      const std::optional<state::Certificate>& by_value, time::Hz counter);

}  // namespace continuo::cli
