// A pvclock page is read at the guest TSC: at a host TSC it gives nonsense that looks like time.
// expect: no matching function for call to .*at\(|cannot convert|no viable conversion
#include "continuo/time/pvclock_scale.h"
#include "continuo/time/tsc_scale.h"
using namespace continuo::time;

int main() {
    const PvclockLine line{Count<GuestCounter>{}, Instant<Kvmclock>{}, *PvclockScale::make(1, 0)};
    [[maybe_unused]] const auto fine = line.at(Count<GuestCounter>{});
    [[maybe_unused]] const Count<HostCounter> host{};
#ifdef CONTINUO_OFFENCE
    [[maybe_unused]] const auto wrong = line.at(host);
#endif
}
