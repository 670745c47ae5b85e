#include "signal_mask.h"

#include <array>
#include <cstring>

#include "continuo/abi/kvm_x86.h"

namespace continuo::kvm {

namespace {

/// struct kvm_signal_mask with its 8 bytes of mask right behind it.
constexpr std::size_t kMaskBytes = 8;
using SignalMask = std::array<std::byte, sizeof(abi::kvm_signal_mask) + kMaskBytes>;

Status set_mask(VcpuCore& vcpu, void* mask) {
    return checked_ioctl(vcpu.fd(), abi::kKVM_SET_SIGNAL_MASK, mask, "KVM_SET_SIGNAL_MASK")
        .map([](int) {});
}

}  // namespace

sigset_t signal_set(int signal) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signal);
    return set;
}

Status let_in_only(VcpuCore& vcpu, int signal) {
    SignalMask mask{};
    const abi::kvm_signal_mask head{kMaskBytes};
    const std::uint64_t blocked = ~(std::uint64_t{1} << (signal - 1));
    std::memcpy(mask.data(), &head, sizeof head);
    std::memcpy(mask.data() + sizeof head, &blocked, kMaskBytes);
    return set_mask(vcpu, mask.data());
}

Status let_in_as_outside(VcpuCore& vcpu) {
    return set_mask(vcpu, nullptr);
}

}  // namespace continuo::kvm
