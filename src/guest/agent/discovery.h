// Where this guest's notice page lies and what wakes a program with each notice, as sysfs tells of
// the ACPI device CTNO0001 (docs/formats/time-travel.md): its _UID is the page's address, and the
// serial port below it becomes readable. No privilege is needed to look.
#pragma once

#include <cstdint>

#include "system.h"
#include "text.h"

namespace continuo::guest {

struct FoundNotice {
    bool device = false;  ///< there is one
    std::uint64_t page = 0;
};
/// kNoPage where the device is there and does not say where its page is.
FoundNotice find_notice(System& system);
inline constexpr std::uint64_t kNoPage = UINT64_MAX;

using DevicePath = Text<32>;
/// The serial port that belongs to the device; empty where the kernel has none.
DevicePath find_wake(System& system);

}  // namespace continuo::guest
