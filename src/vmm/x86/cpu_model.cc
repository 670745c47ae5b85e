#include "continuo/vmm/cpu_model.h"

#include <cstdio>

namespace continuo::vmm {

namespace {

using state::ErrorCode;
using state::Result;
using state::Status;

constexpr std::uint32_t kCpuid1EcxX2apic = 1u << 21;
constexpr std::uint32_t kCpuid1EcxTscDeadline = 1u << 24;
constexpr std::uint32_t kCpuid1EcxHypervisor = 1u << 31;
constexpr std::uint32_t kCpuidInvariantTsc = 1u << 8;

/// A register of CPUID whose bits are features that a guest may use once it has seen them.
struct FeatureRegister {
    std::uint32_t function;
    std::uint32_t index;
    std::uint32_t kvm::CpuidEntry::*bits;
    const char* name;
};
constexpr FeatureRegister kFeatures[] = {
    {0x1, 0, &kvm::CpuidEntry::ecx, "ECX"},        {0x1, 0, &kvm::CpuidEntry::edx, "EDX"},
    {0x7, 0, &kvm::CpuidEntry::ebx, "EBX"},        {0x7, 0, &kvm::CpuidEntry::ecx, "ECX"},
    {0x7, 0, &kvm::CpuidEntry::edx, "EDX"},        {0x7, 1, &kvm::CpuidEntry::eax, "EAX"},
    {0x7, 1, &kvm::CpuidEntry::edx, "EDX"},        {0xd, 0, &kvm::CpuidEntry::eax, "EAX"},
    {0xd, 0, &kvm::CpuidEntry::edx, "EDX"},        {0xd, 1, &kvm::CpuidEntry::eax, "EAX"},
    {0x40000001, 0, &kvm::CpuidEntry::eax, "EAX"}, {0x80000001, 0, &kvm::CpuidEntry::ecx, "ECX"},
    {0x80000001, 0, &kvm::CpuidEntry::edx, "EDX"}, {0x80000007, 0, &kvm::CpuidEntry::edx, "EDX"},
    {0x80000008, 0, &kvm::CpuidEntry::ebx, "EBX"},
};

}  // namespace

Result<CpuModel> host_cpu_model(const kvm::System& system, const VmConfig& config) {
    auto cpuid = system.supported_cpuid();
    if (!cpuid) return cpuid;
    const auto deadline = system.check_extension(KVM_CAP_TSC_DEADLINE_TIMER);
    if (!deadline) return tl::unexpected(deadline.error());
    if (kvm::CpuidEntry* features = kvm::find_cpuid(*cpuid, 1)) {
        features->ecx |= kCpuid1EcxX2apic | kCpuid1EcxHypervisor;
        if (*deadline > 0) features->ecx |= kCpuid1EcxTscDeadline;
    }
    if (kvm::CpuidEntry* power = kvm::find_cpuid(*cpuid, 0x80000007)) {
        if (!config.invariant_tsc) power->edx &= ~kCpuidInvariantTsc;
    }
    return cpuid;
}

Status check_cpu_model(const CpuModel& wanted, const CpuModel& offered) {
    for (const FeatureRegister& feature : kFeatures) {
        const kvm::CpuidEntry* guest = kvm::find_cpuid(wanted, feature.function, feature.index);
        const kvm::CpuidEntry* host = kvm::find_cpuid(offered, feature.function, feature.index);
        if (guest == nullptr) continue;
        const std::uint32_t lacking =
            guest->*feature.bits & ~(host != nullptr ? host->*feature.bits : 0);
        if (lacking == 0) continue;
        char where[48];
        char what[96];
        std::snprintf(where, sizeof where, "CPUID 0x%x.%u %s", feature.function, feature.index,
                      feature.name);
        std::snprintf(what, sizeof what, "the guest was given 0x%x, which this host cannot give",
                      lacking);
        return state::fail(ErrorCode::kUnsupported, where, what,
                           "the hosts' CPUs or kernels differ: choose another destination");
    }
    return {};
}

}  // namespace continuo::vmm
