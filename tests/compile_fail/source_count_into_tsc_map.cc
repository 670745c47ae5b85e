// A multiplier and offset of this host do not apply to the counter of another.
// expect: no matching function for call to .*at\(|cannot convert|no viable conversion
#include "continuo/time/pvclock_scale.h"
#include "continuo/time/tsc_scale.h"
using namespace continuo::time;

int main() {
    const TscMap map{std::uint64_t{7}};
    [[maybe_unused]] const auto fine = map.at(Count<HostCounter>{});
    [[maybe_unused]] const Count<SourceCounter> source{};
#ifdef CONTINUO_OFFENCE
    [[maybe_unused]] const auto wrong = map.at(source);
#endif
}
