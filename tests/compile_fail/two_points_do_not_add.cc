// A point plus a point is nothing; a point plus a displacement is a point.
// expect: no match for .operator\+.|invalid operands to binary expression
#include "continuo/time/point.h"
using namespace continuo::time;

int main() {
    const auto a = Instant<Tai>::from_raw(1);
    [[maybe_unused]] const auto fine = a + Nanos<Tai>::from_raw(1);
#ifdef CONTINUO_OFFENCE
    [[maybe_unused]] const auto wrong = a + a;
#endif
}
