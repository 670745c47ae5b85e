#include "continuo/kvm/device.h"

#include <sys/ioctl.h>

#include <cerrno>
#include <cstdio>

#include "continuo/kvm/vm.h"

namespace continuo::kvm {

Result<Device> Device::create(const Vm& vm, std::uint32_t type) {
    kvm_create_device request{};
    request.type = type;
    const auto made = checked_ioctl(vm.fd(), KVM_CREATE_DEVICE, &request, "KVM_CREATE_DEVICE");
    if (made) return Device{Fd{static_cast<int>(request.fd)}};
    state::Error error = made.error();
    error.where += " (type " + std::to_string(type) + ")";
    if (error.sys_errno == ENODEV) error.code = state::ErrorCode::kUnsupported;
    return tl::unexpected(std::move(error));
}

bool Device::has_attribute(std::uint32_t group, std::uint64_t attribute) const {
    kvm_device_attr attr{};
    attr.group = group;
    attr.attr = attribute;
    return ::ioctl(fd(), KVM_HAS_DEVICE_ATTR, &attr) == 0;
}

Status Device::access(unsigned long request, std::uint32_t group, std::uint64_t attribute,
                      void* value, const char* name) const {
    kvm_device_attr attr{};
    attr.group = group;
    attr.attr = attribute;
    attr.addr = reinterpret_cast<std::uint64_t>(value);
    const auto done = checked_ioctl(fd(), request, &attr, name);
    if (done) return {};
    char which[64];
    std::snprintf(which, sizeof which, " (device group %u, attribute 0x%llx)", group,
                  static_cast<unsigned long long>(attribute));
    state::Error error = done.error();
    error.where += which;
    return tl::unexpected(std::move(error));
}

Result<std::uint32_t> Device::attribute_u32(std::uint32_t group, std::uint64_t attribute) const {
    std::uint32_t value = 0;
    return access(KVM_GET_DEVICE_ATTR, group, attribute, &value, "KVM_GET_DEVICE_ATTR").map([&] {
        return value;
    });
}

Status Device::set_attribute_u32(std::uint32_t group, std::uint64_t attribute,
                                 std::uint32_t value) {
    return access(KVM_SET_DEVICE_ATTR, group, attribute, &value, "KVM_SET_DEVICE_ATTR");
}

Result<std::uint64_t> Device::attribute_u64(std::uint32_t group, std::uint64_t attribute) const {
    std::uint64_t value = 0;
    return access(KVM_GET_DEVICE_ATTR, group, attribute, &value, "KVM_GET_DEVICE_ATTR").map([&] {
        return value;
    });
}

Status Device::set_attribute_u64(std::uint32_t group, std::uint64_t attribute,
                                 std::uint64_t value) {
    return access(KVM_SET_DEVICE_ATTR, group, attribute, &value, "KVM_SET_DEVICE_ATTR");
}

Status Device::command(std::uint32_t group, std::uint64_t attribute) {
    return access(KVM_SET_DEVICE_ATTR, group, attribute, nullptr, "KVM_SET_DEVICE_ATTR");
}

}  // namespace continuo::kvm
