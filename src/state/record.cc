#include "continuo/state/record.h"

#include <algorithm>
#include <tuple>

#include "continuo/state/certificate.h"

namespace continuo::state {

bool operator==(const KvmclockState& a, const KvmclockState& b) {
    const auto key = [](const KvmclockState& s) {
        return std::tuple{s.line.tsc_timestamp().raw(),
                          s.line.system_time().raw(),
                          s.line.scale().mul(),
                          s.line.scale().shift(),
                          s.origin,
                          s.masterclock,
                          s.bound_ns,
                          s.kernel_minus_line};
    };
    return key(a) == key(b);
}

bool Certificate::holds() const {
    return std::all_of(clocks.begin(), clocks.end(),
                       [](const auto& clock) { return clock.holds(); }) &&
           std::all_of(observed.begin(), observed.end(),
                       [](const auto& seen) { return seen.backward_steps == 0; });
}

}  // namespace continuo::state
