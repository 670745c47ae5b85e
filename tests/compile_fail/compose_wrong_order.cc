// compose(first, second) runs in the order of travel: the middle axes must be one.
// expect: no matching function for call to .compose.
#include "continuo/time/line.h"
using namespace continuo::time;

int main() {
    const Line<HostCounter, GuestCounter> counter{Count<HostCounter>{}, Count<GuestCounter>{},
                                                  ExactRatio{}};
    const Line<GuestCounter, Kvmclock> clock{Count<GuestCounter>{}, Instant<Kvmclock>{},
                                             ExactRatio{}};
    [[maybe_unused]] const auto fine = compose(counter, clock);
#ifdef CONTINUO_OFFENCE
    [[maybe_unused]] const auto wrong = compose(clock, counter);
#endif
}
