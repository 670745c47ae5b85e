#include "continuo/kvm/host.h"

#include "continuo/abi/kvm_x86.h"
#include "continuo/kvm/vcpu.h"
#include "continuo/time/tsc_scale.h"

namespace continuo::kvm {

namespace {

/// The multiplier's format goes with the virtualisation that the processor has.
std::optional<int> frac_bits(const CpuidEntries& cpuid) {
    const CpuidEntry* vendor = find_cpuid(cpuid, 0);
    if (vendor == nullptr) return std::nullopt;
    constexpr std::uint32_t kEbxOfIntel = 0x756e6547;    // "Genu"
    constexpr std::uint32_t kEbxOfZhaoxin = 0x6f656743;  // "Cent", VMX too
    const bool vmx = vendor->ebx == kEbxOfIntel || vendor->ebx == kEbxOfZhaoxin;
    return vmx ? time::kVmxFracBits : time::kSvmFracBits;
}

}  // namespace

Result<HostClock> examine_host(const System& system) {
    HostClock host;
    host.identity = host_identity();
    host.clocksource = host_clocksource();
    const auto vm = Vm::create(system);
    if (!vm) return tl::unexpected(vm.error());
    const auto vcpu = Vcpu::create(*vm, 0);
    if (!vcpu) return tl::unexpected(vcpu.error());
    const auto khz = vcpu->tsc_khz();
    if (!khz) return tl::unexpected(khz.error());
    if (*khz == 0)
        return state::fail(state::ErrorCode::kKernel, "KVM_GET_TSC_KHZ",
                           "the kernel knows no frequency of this host's TSC");
    host.counter_frequency = *time::Hz::from_khz(*khz);
    const auto scales = system.check_extension(abi::kKVM_CAP_TSC_CONTROL);
    if (!scales) return tl::unexpected(scales.error());
    if (*scales == 0) return host;
    const auto cpuid = system.supported_cpuid();
    if (!cpuid) return tl::unexpected(cpuid.error());
    host.scaling_frac_bits = frac_bits(*cpuid);
    return host;
}

}  // namespace continuo::kvm
