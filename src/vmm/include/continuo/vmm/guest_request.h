// What a guest asks of its machine through a device, beside text: to end, in one of three ways.
#pragma once

#include <cstdint>

namespace continuo::vmm {

enum class GuestRequest : std::uint8_t {
    kNone,      ///< the access is dealt with
    kExit,      ///< an exit port was written: a payload has ended, with a code
    kPowerOff,  ///< the machine is to be switched off
    kReset,     ///< the machine is to start again
};

/// An access of the guest to a device, dealt with.
struct DeviceAccess {
    GuestRequest request = GuestRequest::kNone;
    std::uint32_t code = 0;  ///< of kExit
};

}  // namespace continuo::vmm
