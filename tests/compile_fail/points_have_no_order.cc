// Later means nothing modulo 2^64: points are subtracted, and displacements have the order.
// expect: no match for .operator<.|invalid operands to binary expression
#include "continuo/time/point.h"
using namespace continuo::time;

int main() {
    const auto a = Count<HostCounter>::from_raw(1);
    const auto b = Count<HostCounter>::from_raw(2);
    [[maybe_unused]] const bool fine = b - a > Ticks<HostCounter>{};
#ifdef CONTINUO_OFFENCE
    [[maybe_unused]] const bool wrong = a < b;
#endif
}
