#include "continuo/kvm/vcpu_core.h"

#include <sys/ioctl.h>
#include <sys/mman.h>

#include <cerrno>
#include <string>
#include <utility>

namespace continuo::kvm {

Status VcpuCore::create_vcpu(const VmCore& vm, std::uint32_t id) {
    const auto fd =
        checked_ioctl(vm.fd(), KVM_CREATE_VCPU, static_cast<unsigned long>(id), "KVM_CREATE_VCPU");
    if (!fd) return tl::unexpected(fd.error());
    fd_ = Fd{*fd};
    id_ = id;
    run_size_ = vm.vcpu_mmap_size();
    void* run = ::mmap(nullptr, run_size_, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
    if (run == MAP_FAILED) return kernel_failure("mmap of kvm_run", errno);
    run_ = static_cast<kvm_run*>(run);
    return {};
}

VcpuCore::VcpuCore(VcpuCore&& other) noexcept
    : fd_{std::move(other.fd_)},
      id_{other.id_},
      run_{std::exchange(other.run_, nullptr)},
      run_size_{other.run_size_} {}

VcpuCore& VcpuCore::operator=(VcpuCore&& other) noexcept {
    std::swap(fd_, other.fd_);
    std::swap(id_, other.id_);
    std::swap(run_, other.run_);
    std::swap(run_size_, other.run_size_);
    return *this;
}

VcpuCore::~VcpuCore() {
    if (run_ != nullptr) ::munmap(run_, run_size_);
}

tl::unexpected<state::Error> VcpuCore::refused(const char* name, int sys_errno) const {
    return kernel_failure("vCPU " + std::to_string(id_) + ": " + name, sys_errno);
}

Status VcpuCore::call(unsigned long request, void* arg, const char* name) const {
    int answer = 0;
    do {
        answer = ::ioctl(fd(), request, arg);
    } while (answer < 0 && errno == EINTR);
    if (answer < 0) return refused(name, errno);
    return {};
}

Result<RunEnd> VcpuCore::run() {
    if (::ioctl(fd(), KVM_RUN, 0UL) == 0) return RunEnd::kExit;
    // EAGAIN: the vCPU was waiting to be initialised and was woken; to the caller the same thing.
    if (errno == EINTR || errno == EAGAIN) return RunEnd::kInterrupted;
    return refused("KVM_RUN", errno);
}

Result<kvm_vcpu_events> VcpuCore::events() const {
    kvm_vcpu_events events{};
    return call(KVM_GET_VCPU_EVENTS, &events, "KVM_GET_VCPU_EVENTS").map([&] { return events; });
}

Status VcpuCore::set_events(const kvm_vcpu_events& events) {
    kvm_vcpu_events copy = events;
    return call(KVM_SET_VCPU_EVENTS, &copy, "KVM_SET_VCPU_EVENTS");
}

Result<kvm_mp_state> VcpuCore::mp_state() const {
    kvm_mp_state mp_state{};
    return call(KVM_GET_MP_STATE, &mp_state, "KVM_GET_MP_STATE").map([&] { return mp_state; });
}

Status VcpuCore::set_mp_state(const kvm_mp_state& mp_state) {
    kvm_mp_state copy = mp_state;
    return call(KVM_SET_MP_STATE, &copy, "KVM_SET_MP_STATE");
}

bool VcpuCore::has_attribute(std::uint32_t group, std::uint64_t attribute) const {
    kvm_device_attr attr{};
    attr.group = group;
    attr.attr = attribute;
    return ::ioctl(fd(), KVM_HAS_DEVICE_ATTR, &attr) == 0;
}

Result<std::uint64_t> VcpuCore::attribute(std::uint32_t group, std::uint64_t attribute) const {
    std::uint64_t value = 0;
    kvm_device_attr attr{};
    attr.group = group;
    attr.attr = attribute;
    attr.addr = reinterpret_cast<std::uint64_t>(&value);
    return call(KVM_GET_DEVICE_ATTR, &attr, "KVM_GET_DEVICE_ATTR").map([&] { return value; });
}

Status VcpuCore::set_attribute(std::uint32_t group, std::uint64_t attribute, std::uint64_t value) {
    kvm_device_attr attr{};
    attr.group = group;
    attr.attr = attribute;
    attr.addr = reinterpret_cast<std::uint64_t>(&value);
    return call(KVM_SET_DEVICE_ATTR, &attr, "KVM_SET_DEVICE_ATTR");
}

Status claim_vcpu(VcpuCore& vcpu) {
    const bool immediate_exit = vcpu.run_page().immediate_exit != 0;
    vcpu.set_immediate_exit(true);
    const auto end = vcpu.run();
    vcpu.set_immediate_exit(immediate_exit);
    if (!end) return tl::unexpected(end.error());
    return {};
}

}  // namespace continuo::kvm
