// Nanos are of a timeline: a counter has ticks.
// expect: constraints not satisfied|template constraint failure
#include "continuo/time/point.h"
using namespace continuo::time;

int main() {
    [[maybe_unused]] const Nanos<Tai> fine{};
#ifdef CONTINUO_OFFENCE
    [[maybe_unused]] const Nanos<HostCounter> wrong{};
#endif
}
