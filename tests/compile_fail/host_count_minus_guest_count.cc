// The difference of counters of two machines is the distance of nothing.
// expect: no match for .operator-.|invalid operands to binary expression
#include "continuo/time/point.h"
using namespace continuo::time;

int main() {
    const auto host = Count<HostCounter>::from_raw(5);
    [[maybe_unused]] const auto fine = host - Count<HostCounter>::from_raw(2);
    [[maybe_unused]] const auto guest = Count<GuestCounter>::from_raw(2);
#ifdef CONTINUO_OFFENCE
    [[maybe_unused]] const auto difference = host - guest;
#endif
}
