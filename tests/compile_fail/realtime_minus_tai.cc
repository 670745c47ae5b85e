// REALTIME and TAI are 37 s apart and both are nanoseconds since 1970.
// expect: no match for .operator-.|invalid operands to binary expression
#include "continuo/time/point.h"
using namespace continuo::time;

int main() {
    const auto tai = Instant<Tai>::from_raw(2);
    [[maybe_unused]] const auto fine = tai - Instant<Tai>::from_raw(1);
    [[maybe_unused]] const auto realtime = Instant<Realtime>::from_raw(1);
#ifdef CONTINUO_OFFENCE
    [[maybe_unused]] const auto wrong = tai - realtime;
#endif
}
