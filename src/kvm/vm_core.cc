#include "continuo/kvm/vm_core.h"

#include <sys/ioctl.h>

namespace continuo::kvm {

Status VmCore::create_vm(const SystemCore& system, unsigned long type) {
    const auto fd = checked_ioctl(system.fd(), KVM_CREATE_VM, type, "KVM_CREATE_VM");
    if (!fd) return tl::unexpected(fd.error());
    fd_ = Fd{*fd};
    vcpu_mmap_size_ = system.vcpu_mmap_size();
    return {};
}

Status VmCore::call(unsigned long request, void* arg, const char* name) const {
    return checked_ioctl(fd(), request, arg, name).map([](int) {});
}

Status VmCore::call(unsigned long request, unsigned long arg, const char* name) const {
    return checked_ioctl(fd(), request, arg, name).map([](int) {});
}

Result<int> VmCore::check_extension(int capability) const {
    return checked_ioctl(fd(), KVM_CHECK_EXTENSION, static_cast<unsigned long>(capability),
                         "KVM_CHECK_EXTENSION (VM)");
}

Status VmCore::enable_capability(std::uint32_t capability, std::uint64_t arg0) {
    kvm_enable_cap cap{};
    cap.cap = capability;
    cap.args[0] = arg0;
    return call(KVM_ENABLE_CAP, &cap, "KVM_ENABLE_CAP (VM)");
}

Status VmCore::set_memory(std::uint32_t slot, const GuestMemory& memory, bool log_dirty) {
    const std::byte* host = memory.host();
    for (const AddressRange& range : memory.ranges()) {
        kvm_userspace_memory_region region{};
        region.slot = slot++;
        region.flags = log_dirty ? KVM_MEM_LOG_DIRTY_PAGES : 0;
        region.guest_phys_addr = range.begin;
        region.memory_size = range.bytes;
        region.userspace_addr = reinterpret_cast<std::uint64_t>(host);
        auto set = call(KVM_SET_USER_MEMORY_REGION, &region, "KVM_SET_USER_MEMORY_REGION");
        if (!set) return set;
        host += range.bytes;
    }
    return {};
}

Status VmCore::get_dirty_log(std::uint32_t slot, const GuestMemory& memory,
                             std::span<std::uint64_t> bitmap) const {
    std::uint64_t* at = bitmap.data();
    for (const AddressRange& range : memory.ranges()) {
        kvm_dirty_log log{};
        log.slot = slot++;
        log.dirty_bitmap = at;
        auto got = call(KVM_GET_DIRTY_LOG, &log, "KVM_GET_DIRTY_LOG");
        if (!got) return got;
        at += range.bytes / kPageSize / 64;
    }
    return {};
}

bool VmCore::has_attribute(std::uint32_t group, std::uint64_t attribute) const {
    kvm_device_attr attr{};
    attr.group = group;
    attr.attr = attribute;
    return ::ioctl(fd(), KVM_HAS_DEVICE_ATTR, &attr) == 0;
}

}  // namespace continuo::kvm
