// How the guest's counters of a VM are going to be restored. On arm64 that is decided when the VM
// is created: once an offset was set, the kernel takes no value any more.
#pragma once

#include <cstdint>

namespace continuo::vmm {

enum class CounterControl : std::uint8_t {
    kExact,    ///< by offsets, where the kernel has them
    kByValue,  ///< as VMMs do today, to be measured beside it
};

}  // namespace continuo::vmm
