// A length on TAI becomes one of kvmclock by as_nanos_of(), in so many words.
// expect: no match for .operator\+.|invalid operands to binary expression
#include "continuo/time/point.h"
using namespace continuo::time;

int main() {
    const auto now = Instant<Kvmclock>::from_raw(1);
    const auto gap = Nanos<Tai>::from_raw(2);
    [[maybe_unused]] const auto fine = now + as_nanos_of<Kvmclock>(gap);
#ifdef CONTINUO_OFFENCE
    [[maybe_unused]] const auto wrong = now + gap;
#endif
}
