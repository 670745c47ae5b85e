// Ticks become nanoseconds by a rate, never by assignment.
// expect: conversion from .* to non-scalar type|no viable conversion
#include "continuo/time/point.h"
using namespace continuo::time;

int main() {
    const auto ticks = Ticks<GuestCounter>::from_raw(1);
    [[maybe_unused]] const Nanos<Kvmclock> fine = Nanos<Kvmclock>::from_raw(ticks.raw());
#ifdef CONTINUO_OFFENCE
    [[maybe_unused]] const Nanos<Kvmclock> wrong = ticks;
#endif
}
