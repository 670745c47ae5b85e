// Guest ticks do not move a host counter: the published KVM recipe adds them under scaling.
// expect: no match for .operator\+.|invalid operands to binary expression
#include "continuo/time/axis.h"
#include "continuo/time/point.h"
using namespace continuo::time;

int main() {
    const auto host = Count<HostCounter>::from_raw(5);
    [[maybe_unused]] const auto fine = host + Ticks<HostCounter>::from_raw(2);
    [[maybe_unused]] const auto guest_ticks = Ticks<GuestCounter>::from_raw(2);
#ifdef CONTINUO_OFFENCE
    [[maybe_unused]] const auto sum = host + guest_ticks;
#endif
}
