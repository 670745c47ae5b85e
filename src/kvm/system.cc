#include "continuo/kvm/system.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>

namespace continuo::kvm {

namespace {

constexpr int kApiVersion = 12;
/// More than any kernel answers; E2BIG would say otherwise.
constexpr std::size_t kMsrIndicesMax = 4096;

}  // namespace

const CpuidEntry* find_cpuid(const CpuidEntries& entries, std::uint32_t function,
                             std::uint32_t index) {
    for (const CpuidEntry& entry : entries) {
        const bool indexed = (entry.flags & abi::kKVM_CPUID_FLAG_SIGNIFCANT_INDEX) != 0;
        if (entry.function == function && (!indexed || entry.index == index)) return &entry;
    }
    return nullptr;
}

CpuidEntry* find_cpuid(CpuidEntries& entries, std::uint32_t function, std::uint32_t index) {
    return const_cast<CpuidEntry*>(
        find_cpuid(static_cast<const CpuidEntries&>(entries), function, index));
}

Result<System> System::open(const std::string& path) {
    System system;
    system.path_ = path;
    system.fd_ = Fd{::open(path.c_str(), O_RDWR | O_CLOEXEC)};
    if (!system.fd_) {
        const int sys_errno = errno;
        if (sys_errno == ENOENT || sys_errno == ENODEV || sys_errno == ENXIO) {
            return state::fail(state::ErrorCode::kUnsupported, "open " + path,
                               "this computer has no KVM",
                               "load kvm_intel or kvm_amd, or use an emulated host", sys_errno);
        }
        return kernel_failure("open " + path, sys_errno,
                              "run as root or as a member of the group kvm");
    }
    const auto version =
        checked_ioctl(system.fd_.get(), KVM_GET_API_VERSION, 0UL, "KVM_GET_API_VERSION");
    if (!version) return tl::unexpected(version.error());
    if (*version != kApiVersion) {
        return state::fail(state::ErrorCode::kVersion, "KVM_GET_API_VERSION",
                           "the kernel speaks KVM API " + std::to_string(*version) + ", not 12");
    }
    const auto size =
        checked_ioctl(system.fd_.get(), KVM_GET_VCPU_MMAP_SIZE, 0UL, "KVM_GET_VCPU_MMAP_SIZE");
    if (!size) return tl::unexpected(size.error());
    if (static_cast<std::size_t>(*size) < sizeof(kvm_run)) {
        return state::fail(state::ErrorCode::kKernel, "KVM_GET_VCPU_MMAP_SIZE",
                           "the answer is smaller than struct kvm_run");
    }
    system.vcpu_mmap_size_ = static_cast<std::size_t>(*size);
    return system;
}

Result<int> System::check_extension(int capability) const {
    return checked_ioctl(fd_.get(), KVM_CHECK_EXTENSION, static_cast<unsigned long>(capability),
                         "KVM_CHECK_EXTENSION");
}

Result<CpuidEntries> System::supported_cpuid() const {
    abi::KvmCpuid2<kCpuidEntriesMax> answer;
    const auto done =
        checked_ioctl(fd_.get(), abi::kKVM_GET_SUPPORTED_CPUID, &answer, "KVM_GET_SUPPORTED_CPUID");
    if (!done) return tl::unexpected(done.error());
    const std::size_t count = std::min<std::size_t>(answer.head.nent, kCpuidEntriesMax);
    return CpuidEntries{answer.entries.data(), answer.entries.data() + count};
}

Result<std::vector<std::uint32_t>> System::msr_index_list() const {
    abi::KvmMsrList<kMsrIndicesMax> answer;
    const auto done =
        checked_ioctl(fd_.get(), abi::kKVM_GET_MSR_INDEX_LIST, &answer, "KVM_GET_MSR_INDEX_LIST");
    if (!done) return tl::unexpected(done.error());
    const std::size_t count = std::min<std::size_t>(answer.head.nmsrs, kMsrIndicesMax);
    return std::vector<std::uint32_t>{answer.indices.data(), answer.indices.data() + count};
}

}  // namespace continuo::kvm
