// An inverse runs the other way: it does not pass for the line itself.
// expect: conversion from .* to non-scalar type|no viable conversion
#include "continuo/time/line.h"
using namespace continuo::time;

int main() {
    const Line<HostCounter, GuestCounter> line{Count<HostCounter>{}, Count<GuestCounter>{},
                                               ExactRatio{}};
    [[maybe_unused]] const Line<GuestCounter, HostCounter> fine = *line.invert();
#ifdef CONTINUO_OFFENCE
    [[maybe_unused]] const Line<HostCounter, GuestCounter> wrong = *line.invert();
#endif
}
