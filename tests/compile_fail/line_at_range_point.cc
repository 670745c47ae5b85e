// A line from host to guest is asked at a host count: its range does not go in.
// expect: no matching function for call to .*at\(|cannot convert|no viable conversion
#include "continuo/time/line.h"
using namespace continuo::time;

int main() {
    const Line<HostCounter, GuestCounter> line{Count<HostCounter>{}, Count<GuestCounter>{},
                                               ExactRatio{}};
    [[maybe_unused]] const auto fine = line.at(Count<HostCounter>{});
    [[maybe_unused]] const Count<GuestCounter> guest{};
#ifdef CONTINUO_OFFENCE
    [[maybe_unused]] const auto wrong = line.at(guest);
#endif
}
