// Error bounds in ticks and in ns do not add.
// expect: no match for .operator\+.|invalid operands to binary expression
#include "continuo/time/interval.h"
using namespace continuo::time;

int main() {
    const auto ns = Interval<Kvmclock>::around_zero(1);
    [[maybe_unused]] const auto fine = ns + ns;
    [[maybe_unused]] const auto ticks = Interval<GuestCounter>::around_zero(1);
#ifdef CONTINUO_OFFENCE
    [[maybe_unused]] const auto wrong = ns + ticks;
#endif
}
