// How Linux packs an ioctl number, computed here instead of taken from <linux/ioctl.h>: the
// kernel's macros measure structures with sizeof, and of some of KVM's the C++ size is wrong
// (kvm_x86.h says which). Source: include/uapi/asm-generic/ioctl.h, the encoding of x86-64 and
// arm64.
#pragma once

#include <cstddef>
#include <cstdint>

namespace continuo::abi {

/// The ioctl type of all of KVM.
inline constexpr std::uint32_t kKVMIO = 0xae;

enum class IocDirection : std::uint32_t { none = 0, write = 1, read = 2, read_write = 3 };

/// direction:2, size:14, type:8, nr:8, from the top. Domain: nr and type < 256, size < 16384.
///
/// Example: write, 0xae, 0x7b, 48 bytes is 0x4030ae7b, KVM_SET_CLOCK.
constexpr std::uint32_t ioc(IocDirection direction, std::uint32_t type, std::uint32_t nr,
                            std::size_t size) {
    return static_cast<std::uint32_t>(direction) << 30 | static_cast<std::uint32_t>(size) << 16 |
           type << 8 | nr;
}

/// KVM's _IO, _IOW, _IOR and _IOWR; write is what user space gives to the kernel.
constexpr std::uint32_t kvm_io(std::uint32_t nr) {
    return ioc(IocDirection::none, kKVMIO, nr, 0);
}
template <class T>
constexpr std::uint32_t kvm_iow(std::uint32_t nr) {
    return ioc(IocDirection::write, kKVMIO, nr, sizeof(T));
}
template <class T>
constexpr std::uint32_t kvm_ior(std::uint32_t nr) {
    return ioc(IocDirection::read, kKVMIO, nr, sizeof(T));
}
template <class T>
constexpr std::uint32_t kvm_iowr(std::uint32_t nr) {
    return ioc(IocDirection::read_write, kKVMIO, nr, sizeof(T));
}

}  // namespace continuo::abi
