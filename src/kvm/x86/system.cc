#include "continuo/kvm/system.h"

#include <algorithm>

namespace continuo::kvm {

namespace {

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
    if (auto opened =
            system.open_device(path, "load kvm_intel or kvm_amd, or use an emulated host");
        !opened)
        return tl::unexpected(opened.error());
    return system;
}

Result<CpuidEntries> System::supported_cpuid() const {
    abi::KvmCpuid2<kCpuidEntriesMax> answer;
    const auto done =
        checked_ioctl(fd(), abi::kKVM_GET_SUPPORTED_CPUID, &answer, "KVM_GET_SUPPORTED_CPUID");
    if (!done) return tl::unexpected(done.error());
    const std::size_t count = std::min<std::size_t>(answer.head.nent, kCpuidEntriesMax);
    return CpuidEntries{answer.entries.data(), answer.entries.data() + count};
}

Result<std::vector<std::uint32_t>> System::msr_index_list() const {
    abi::KvmMsrList<kMsrIndicesMax> answer;
    const auto done =
        checked_ioctl(fd(), abi::kKVM_GET_MSR_INDEX_LIST, &answer, "KVM_GET_MSR_INDEX_LIST");
    if (!done) return tl::unexpected(done.error());
    const std::size_t count = std::min<std::size_t>(answer.head.nmsrs, kMsrIndicesMax);
    return std::vector<std::uint32_t>{answer.indices.data(), answer.indices.data() + count};
}

}  // namespace continuo::kvm
