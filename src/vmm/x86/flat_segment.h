// Segments over the whole address space, as every boot protocol of x86 wants them.
#pragma once

#include <linux/kvm.h>

#include <cstdint>

namespace continuo::vmm {

enum class CodeWidth : std::uint8_t { k32, k64 };

inline kvm_segment flat_segment(std::uint16_t selector, std::uint8_t type) {
    kvm_segment out{};
    out.limit = 0xffffffff;
    out.selector = selector;
    out.type = type;
    out.present = 1;
    out.s = 1;
    out.g = 1;
    return out;
}

/// Execute and read, accessed.
inline kvm_segment flat_code(std::uint16_t selector, CodeWidth width) {
    kvm_segment out = flat_segment(selector, 11);
    out.l = width == CodeWidth::k64 ? 1 : 0;
    out.db = width == CodeWidth::k64 ? 0 : 1;
    return out;
}

/// Read and write, accessed.
inline kvm_segment flat_data(std::uint16_t selector) {
    kvm_segment out = flat_segment(selector, 3);
    out.db = 1;
    return out;
}

}  // namespace continuo::vmm
