// The reads of arm64. A guest's virtual counter is offset by CNTVOFF_EL2 and read without a trap.
// Its physical counter has no offset of its own before FEAT_ECV: where one is set, KVM clears
// CNTHCTL_EL2.EL1PCTEN and answers each read itself (timer_set_traps() for VHE,
// __timer_enable_traps() for nVHE, which traps even where the processor has CNTPOFF_EL2). The
// answer is given before the exit is one that KVM counts (kvm_hyp_handle_cntpct()), so its count of
// exits shows nothing here: what does is that the guest's physical counter has the offset, and that
// nothing else could have put it there.
#include "provocation.h"

#include <sys/auxv.h>

#include <array>
#include <cstdio>
#include <fstream>

#include "continuo/kvm/counter.h"
#include "continuo/kvm/host.h"
#include "kernel_log.h"

namespace continuo::vmm::counter_bench {

namespace {

using state::ErrorCode;

constexpr std::string_view kVirtual = "virtual counter";
constexpr std::string_view kPhysical = "physical counter";
constexpr std::string_view kNothing = "nothing";
constexpr std::string_view kVirtualTrapped = "virtual_trapped";
constexpr std::string_view kPhysicalNative = "physical";
constexpr std::string_view kPhysicalTrapped = "physical_trapped";
constexpr std::string_view kPhysicalCntpoff = "physical_cntpoff";

constexpr std::array<ReadKind, 6> kKinds{{
    {kNothing, kNothing, "nothing", ReadPath::kNothing, kNothing, Method::kNothing},
    {"virtual", kVirtual, "CNTVCT_EL0, offset by CNTVOFF_EL2", ReadPath::kNative, kNothing,
     Method::kVirtualCounter},
    {kVirtualTrapped, kVirtual, "CNTVCT_EL0 with CNTHCTL_EL2.EL1TVCT", ReadPath::kTrapped, kNothing,
     Method::kVirtualCounter},
    {kPhysicalNative, kPhysical, "CNTPCT_EL0 without an offset", ReadPath::kNative, kNothing,
     Method::kPhysicalCounter},
    {kPhysicalTrapped, kPhysical, "CNTPCT_EL0 with an offset that KVM adds", ReadPath::kTrapped,
     kNothing, Method::kPhysicalCounter},
    {kPhysicalCntpoff, kPhysical, "CNTPCT_EL0, offset by CNTPOFF_EL2", ReadPath::kNative, kNothing,
     Method::kPhysicalCounter},
}};

/// What decides whether a read of an offset physical counter traps.
struct Hypervisor {
    std::string mode;  ///< empty: not known
    bool cntpoff = false;
    std::string why_unknown;
    /// With nested virtualisation the log says "VHE+NV2".
    bool vhe() const { return mode.starts_with("VHE"); }
};

Hypervisor hypervisor() {
    Hypervisor out;
    const std::string log = read_kernel_log(out.why_unknown);
    out.mode = kvm_mode(log);
    out.cntpoff = has_cntpoff(log);
    if (out.mode.empty() && out.why_unknown.empty())
        out.why_unknown = "the kernel's log no longer has KVM's line";
    return out;
}

/// ID_AA64MMFR0_EL1.ECV, which Linux answers to user space: 0 none, 1 the self-synchronised
/// counters, 2 also CNTPOFF_EL2.
unsigned ecv() {
    if ((::getauxval(AT_HWCAP) & HWCAP_CPUID) == 0) return 0;
    std::uint64_t features = 0;
    asm("mrs %0, id_aa64mmfr0_el1" : "=r"(features));
    return static_cast<unsigned>(features >> 60);
}

std::string ecv_text(const Hypervisor& host) {
    if (host.cntpoff) return "with CNTPOFF_EL2, which KVM uses under VHE";
    switch (ecv()) {
        case 0:
            return "none";
        case 1:
            return "without CNTPOFF_EL2";
        default:
            return "with CNTPOFF_EL2, of which the kernel's log says nothing";
    }
}

std::string processor() {
    std::ifstream file{"/sys/devices/system/cpu/cpu0/regs/identification/midr_el1"};
    std::uint64_t midr = 0;
    if (!(file >> std::hex >> midr)) return "unknown";
    char text[96];
    std::snprintf(text, sizeof text, "MIDR_EL1 0x%llx: implementer 0x%llx, part 0x%llx",
                  static_cast<unsigned long long>(midr),
                  static_cast<unsigned long long>(midr >> 24 & 0xff),
                  static_cast<unsigned long long>(midr >> 4 & 0xfff));
    return text;
}

tl::unexpected<state::Error> unsupported(const ReadKind& kind, std::string what,
                                         std::string advice = {}) {
    return state::fail(ErrorCode::kUnsupported, std::string{kind.how}, std::move(what),
                       std::move(advice));
}

/// Whether this host answers a read of an offset physical counter as this kind says.
Status takes_that_path(const ReadKind& kind, const Hypervisor& host) {
    const bool may_have_cntpoff = host.cntpoff || ecv() >= 2;
    if (kind.id == kPhysicalCntpoff) {
        if (!may_have_cntpoff) return unsupported(kind, "this processor has no CNTPOFF_EL2");
        if (host.vhe() && host.cntpoff) return {};
        if (host.mode.empty()) return unsupported(kind, host.why_unknown, "run as root");
        return unsupported(kind, "KVM does not use CNTPOFF_EL2 under " + host.mode);
    }
    if (!may_have_cntpoff || (!host.mode.empty() && !host.vhe())) return {};
    if (host.mode.empty()) return unsupported(kind, host.why_unknown, "run as root");
    return unsupported(kind, "nothing traps: CNTPOFF_EL2 gives the offset",
                       "boot with kvm-arm.mode=nvhe");
}

class Provoked : public Provocation {
  public:
    Provoked(HostCount before, std::optional<std::uint64_t> offset)
        : before_{before}, offset_{offset} {}

    Status check(const ReadKind& kind, const ReadCost&, const Report& report) const override {
        if (kind.method == Method::kNothing || !offset_) return {};
        const std::uint64_t after = kvm::host_counter().raw();
        const std::uint64_t low = before_.raw() - *offset_;
        const std::uint64_t first = report.first_value - low;
        if (first > after - before_.raw())
            return unsupported(kind, "the guest read " + std::to_string(report.first_value) +
                                         ", which is not the host's counter less the offset " +
                                         std::to_string(*offset_));
        if (report.outside != 0)
            return unsupported(kind,
                               std::to_string(report.outside) +
                                   " reads lie outside the readings of CNTVCT_EL0 round them");
        return {};
    }

  private:
    HostCount before_;
    std::optional<std::uint64_t> offset_;  ///< none: the kernel's, and not known
};

/// The offset that this kind wants, of both counters.
Result<std::optional<std::uint64_t>> set_offset(const ReadKind& kind, VirtualMachine& machine) {
    kvm::Vm& vm = machine.vm();
    const bool wants_none = kind.id == kPhysicalNative;
    // Without the call the physical counter has no offset, and the virtual one has the kernel's.
    if (!vm.counter_offset()) {
        if (kind.clock != kPhysical || wants_none) return std::optional<std::uint64_t>{};
        return unsupported(kind, "the counter has no offset: " + vm.why_no_offset()->what);
    }
    const std::uint64_t offset = wants_none ? 0 : kvm::host_counter().raw();
    return vm.set_counter_offset(offset).map([&] { return std::optional{offset}; });
}

}  // namespace

std::span<const ReadKind> read_kinds() {
    return kKinds;
}

std::vector<HostFact> host_facts() {
    const Hypervisor host = hypervisor();
    const std::string mode = host.mode.empty() ? "unknown: " + host.why_unknown : host.mode;
    return {{"kernel", "kernel", kvm::host_identity().kernel},
            {"cpu", "CPU", processor()},
            {"mode", "guests run", mode},
            {"ecv", "FEAT_ECV", ecv_text(host)},
            {"clocksource", "clocksource", kvm::host_clocksource()}};
}

Result<std::unique_ptr<Provocation>> provoke(const ReadKind& kind, VirtualMachine& machine,
                                             const CounterBenchOptions&) {
    if (kind.id == kVirtualTrapped)
        return unsupported(
            kind,
            "KVM traps a guest's virtual counter only where the processor's "
            "CNTVOFF_EL2 is broken or the guest is a hypervisor itself; nothing asks "
            "it to");
    if (kind.id == kPhysicalTrapped || kind.id == kPhysicalCntpoff) {
        if (auto path = takes_that_path(kind, hypervisor()); !path)
            return tl::unexpected(std::move(path.error()));
    }
    const HostCount before = kvm::host_counter();
    const auto offset = set_offset(kind, machine);
    if (!offset) return tl::unexpected(offset.error());
    return std::make_unique<Provoked>(before, *offset);
}

Result<time::Hz> counter_frequency(VirtualMachine&, const Report& report) {
    const auto hz = time::Hz::from_hz(report.counter_hz);
    if (!hz)
        return state::fail(ErrorCode::kGuest, "CNTFRQ_EL0", "the guest reads a frequency of 0",
                           "have the firmware set CNTFRQ_EL0 on every CPU");
    return *hz;
}

}  // namespace continuo::vmm::counter_bench
