// A counter out of a record is a stranger until same_boot_counter() says that it is our own.
// expect: conversion from .* to non-scalar type|no viable conversion
#include "continuo/time/point.h"
using namespace continuo::time;

int main() {
    const auto source = Count<SourceCounter>::from_raw(1);
    [[maybe_unused]] const Count<HostCounter> fine = same_boot_counter(source);
#ifdef CONTINUO_OFFENCE
    [[maybe_unused]] const Count<HostCounter> wrong = source;
#endif
}
