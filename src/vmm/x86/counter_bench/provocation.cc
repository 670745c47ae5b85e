// The reads of x86-64. KVM never intercepts RDTSC for a guest like this one by itself (svm.c,
// vmx.c: no RDTSC exiting), so an intercepted one is provoked by forced emulation; RDMSR of
// IA32_TSC and WRMSR of the system time MSR always leave the guest (both are handled in
// kvm_set_msr_common() and kvm_get_msr_common(), and neither is in a bitmap of MSRs that pass).
#include "provocation.h"

#include <cpuid.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>

#include "continuo/kvm/host.h"
#include "forced_emulation.h"

namespace continuo::vmm::counter_bench {

namespace {

using state::ErrorCode;

constexpr std::string_view kTsc = "TSC";
constexpr std::string_view kKvmclock = "kvmclock";
constexpr std::string_view kUser = "nothing_user";
constexpr std::string_view kKernel = "nothing_kernel";

constexpr std::array<ReadKind, 7> kKinds{{
    {kUser, "nothing", "nothing, in ring 3", ReadPath::kNothing, kUser, Method::kNothing, true},
    {kKernel, "nothing", "nothing, in ring 0", ReadPath::kNothing, kKernel, Method::kNothing,
     false},
    {"tsc", kTsc, "RDTSC, in ring 3", ReadPath::kNative, kUser, Method::kTsc, true},
    {"tsc_forced", kTsc, "RDTSC with KVM's forced-emulation prefix, in ring 3", ReadPath::kTrapped,
     kUser, Method::kTscForced, true},
    {"tsc_msr", kTsc, "RDMSR of IA32_TSC, in ring 0", ReadPath::kTrapped, kKernel, Method::kTscMsr,
     false},
    {"kvmclock_page", kKvmclock, "the vCPU's page and RDTSC, in ring 3", ReadPath::kNative, kUser,
     Method::kKvmclockPage, true},
    {"kvmclock_msr", kKvmclock, "WRMSR of the system time MSR, then the page, in ring 0",
     ReadPath::kTrapped, kKernel, Method::kKvmclockMsr, false},
}};

/// The value of the first line "key : value" of /proc/cpuinfo.
std::string cpuinfo(std::string_view key) {
    std::ifstream file{"/proc/cpuinfo"};
    for (std::string line; std::getline(file, line);) {
        const std::size_t colon = line.find(':');
        if (line.rfind(key, 0) == 0 && colon != std::string::npos && colon + 2 <= line.size())
            return line.substr(colon + 2);
    }
    return "unknown";
}

bool module_loaded(const char* name) {
    std::error_code ignored;
    return std::filesystem::exists(std::string{"/sys/module/"} + name, ignored);
}

/// By the vendor module that drives /dev/kvm.
std::string virtualisation() {
    if (module_loaded("kvm_amd")) return "SVM (kvm_amd)";
    if (module_loaded("kvm_intel")) return "VMX (kvm_intel)";
    if (module_loaded("kvm_pvm"))
        return "in software (kvm_pvm): ring 3 runs on the processor, ring 0 is emulated";
    return "unknown: no vendor module of KVM is to be seen";
}

/// What is below this host: the signature of CPUID leaf 0x40000000.
std::string hypervisor() {
    std::uint32_t eax = 0;
    std::array<std::uint32_t, 3> words{};
    __cpuid(1, eax, words[0], words[1], words[2]);
    constexpr std::uint32_t kHypervisorPresent = 1u << 31;
    if ((words[1] & kHypervisorPresent) == 0) return "none";
    __cpuid(0x40000000, eax, words[0], words[1], words[2]);
    std::array<char, sizeof words + 1> text{};
    std::memcpy(text.data(), words.data(), sizeof words);
    return text.data();
}

tl::unexpected<state::Error> contradicted(const ReadKind& kind, std::string what) {
    return state::fail(ErrorCode::kUnsupported, std::string{kind.how}, std::move(what));
}

/// With forced emulation held, where the series wants it.
class Provoked : public Provocation {
  public:
    explicit Provoked(std::optional<ForcedEmulation> forced) : forced_{std::move(forced)} {}

    Status check(const ReadKind& kind, const ReadCost& cost, const Report& report) const override {
        const std::uint64_t reads = cost.samples.count + cost.batches.count * kBatchReads;
        if (cost.exits && kind.path == ReadPath::kTrapped && *cost.exits < reads)
            return contradicted(kind, "KVM counts only " + std::to_string(*cost.exits) +
                                          " exits in " + std::to_string(reads) +
                                          " reads: not all of them trapped");
        if (kind.clock == kTsc && report.outside != 0)
            return contradicted(kind,
                                std::to_string(report.outside) +
                                    " reads lie outside the two readings of RDTSC round them");
        return {};
    }

  private:
    std::optional<ForcedEmulation> forced_;
};

}  // namespace

std::span<const ReadKind> read_kinds() {
    return kKinds;
}

std::vector<HostFact> host_facts() {
    return {{"kernel", "kernel", kvm::host_identity().kernel},
            {"cpu", "CPU", cpuinfo("model name")},
            {"mode", "guests run", virtualisation()},
            {"hypervisor", "below this host", hypervisor()},
            {"clocksource", "clocksource", kvm::host_clocksource()}};
}

Result<std::unique_ptr<Provocation>> provoke(const ReadKind& kind, VirtualMachine&,
                                             const CounterBenchOptions& options) {
    if (kind.method != Method::kTscForced) return std::make_unique<Provoked>(std::nullopt);
    auto forced = ForcedEmulation::switch_on(options.keep_parameters);
    if (!forced) return tl::unexpected(std::move(forced.error()));
    return std::make_unique<Provoked>(std::move(*forced));
}

Result<time::Hz> counter_frequency(VirtualMachine& machine, const Report&) {
    const auto khz = machine.vcpus().front().tsc_khz();
    if (!khz) return tl::unexpected(khz.error());
    const auto hz = time::Hz::from_khz(*khz);
    if (!hz)
        return state::fail(ErrorCode::kKernel, "KVM_GET_TSC_KHZ",
                           "the kernel knows no frequency of the guest's TSC");
    return *hz;
}

}  // namespace continuo::vmm::counter_bench
