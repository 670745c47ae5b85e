// No processor has a TSC multiplier of 40 fractional bits.
// expect: constraints not satisfied|template constraint failure
#include "continuo/time/pvclock_scale.h"
#include "continuo/time/tsc_scale.h"
using namespace continuo::time;

int main() {
    [[maybe_unused]] const TscScale<48> fine{};
#ifdef CONTINUO_OFFENCE
    [[maybe_unused]] const TscScale<40> wrong{};
#endif
}
