// A bare integer has no unit and comes in by from_raw() only.
// expect: no match for .operator\+.|invalid operands to binary expression
#include "continuo/time/point.h"
using namespace continuo::time;

int main() {
    const auto host = Count<HostCounter>::from_raw(1);
    [[maybe_unused]] const auto fine = host + Ticks<HostCounter>::from_raw(3);
#ifdef CONTINUO_OFFENCE
    [[maybe_unused]] const auto wrong = host + 3;
#endif
}
