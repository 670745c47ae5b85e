#include "cpu_topology.h"

#include <bit>

namespace continuo::vmm {

namespace {

// Intel SDM volume 2 (CPUID), AMD APM volume 3 appendix E.
constexpr std::uint32_t kManyLogical = 1u << 28;  // leaf 1 EDX: EBX's count is valid
constexpr std::uint32_t kLevelThread = 1u << 8;
constexpr std::uint32_t kLevelCore = 2u << 8;

/// Leaves 0xb and 0x1f: level 0 is one thread of a core, level 1 the cores of the package.
void set_levels(kvm::CpuidEntry& entry, std::uint32_t id, std::uint32_t vcpus) {
    const auto core_bits = static_cast<std::uint32_t>(std::bit_width(vcpus - 1));
    entry.eax = entry.index == 1 ? core_bits : 0;
    entry.ebx = entry.index == 0 ? 1 : entry.index == 1 ? vcpus : 0;
    entry.ecx = entry.index | (entry.index == 0 ? kLevelThread : entry.index == 1 ? kLevelCore : 0);
    entry.edx = id;
}

/// Leaf 4: bits 31:26 cores of the package less one, 25:14 logical CPUs that share the cache less
/// one. The last level is the package's, the others a core's own.
void set_cache_sharing(kvm::CpuidEntry& entry, std::uint32_t vcpus) {
    constexpr std::uint32_t kLastLevel = 3;
    const std::uint32_t shared = (entry.eax >> 5 & 7) == kLastLevel ? vcpus - 1 : 0;
    entry.eax = (entry.eax & 0x3fff) | shared << 14 | (vcpus - 1) << 26;
}

}  // namespace

void set_topology(kvm::CpuidEntries& cpuid, std::uint32_t id, std::uint32_t vcpus) {
    for (kvm::CpuidEntry& entry : cpuid) {
        switch (entry.function) {
            case 1:
                entry.ebx = (entry.ebx & 0xffff) | vcpus << 16 | id << 24;
                entry.edx = vcpus > 1 ? entry.edx | kManyLogical : entry.edx & ~kManyLogical;
                break;
            case 4:
                if ((entry.eax & 0x1f) != 0) set_cache_sharing(entry, vcpus);
                break;
            case 0xb:
            case 0x1f:
                set_levels(entry, id, vcpus);
                break;
            case 0x80000008:  // ECX: cores less one, and the bits of an APIC id that number them
                entry.ecx = (vcpus - 1) | static_cast<std::uint32_t>(std::bit_width(vcpus - 1))
                                              << 12;
                break;
            case 0x8000001e:  // APIC id; core id and threads of it less one; nodes
                entry.eax = id;
                entry.ebx = id;
                entry.ecx = 0;
                break;
            default:
                break;
        }
    }
}

}  // namespace continuo::vmm
