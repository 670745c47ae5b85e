#include "continuo/vmm/vm_state.h"

#include <algorithm>
#include <cstdio>

#include "continuo/abi/msr.h"
#include "devices.h"

namespace continuo::vmm {

namespace {

using state::ErrorCode;

template <class T>
Status take(Result<T> from, T& into) {
    if (!from) return tl::unexpected(std::move(from.error()));
    into = std::move(*from);
    return {};
}

/// Runs steps until one fails.
class Steps {
  public:
    template <class Step>
    Steps& then(Step&& step) {
        if (status_) status_ = step();
        return *this;
    }
    Status result() { return std::move(status_); }

  private:
    Status status_{};
};

/// All MSRs that this vCPU has; those that the kernel lists but this guest lacks are left out.
Result<std::vector<MsrValue>> save_msrs(const kvm::Vcpu& vcpu,
                                        std::span<const std::uint32_t> wanted) {
    std::vector<MsrValue> saved;
    std::size_t next = 0;
    while (next < wanted.size()) {
        kvm::MsrBatch batch;
        std::size_t end = next;
        while (end < wanted.size() && batch.add(wanted[end]))
            ++end;
        const auto done = vcpu.try_get_msrs(batch);
        if (!done) return tl::unexpected(done.error());
        for (std::uint32_t i = 0; i < *done; ++i)
            saved.push_back({batch.index(i), batch.data(i)});
        next += *done + (*done < batch.size() ? 1 : 0);
    }
    return saved;
}

/// Read in this order: the multiprocessing state first, as reading it makes KVM process INIT and
/// SIPI that wait, which changes the rest; then the events, as reading them may deliver what a
/// pending exception carries into CR2 and DR6 (kvm_handle_exception_payload_quirk()).
Result<VcpuState> save_vcpu(const kvm::Vcpu& vcpu, const StateSizes& sizes,
                            std::span<const std::uint32_t> msrs) {
    VcpuState state;
    state.xsave.resize(sizes.xsave);
    auto status = Steps{}
                      .then([&] { return take(vcpu.mp_state(), state.mp_state); })
                      .then([&] { return take(vcpu.events(), state.events); })
                      .then([&] { return take(vcpu.regs(), state.regs); })
                      .then([&] { return take(vcpu.sregs(), state.sregs); })
                      .then([&] { return vcpu.get_xsave(state.xsave); })
                      .then([&] { return take(vcpu.lapic(), state.lapic); })
                      .then([&] { return take(save_msrs(vcpu, msrs), state.msrs); })
                      .result();
    if (!status) return tl::unexpected(std::move(status.error()));
    if (sizes.nested != 0) {
        if (auto done = take(vcpu.nested_state(sizes.nested), state.nested); !done)
            return tl::unexpected(std::move(done.error()));
    }
    if (auto xcrs = vcpu.xcrs()) state.xcrs = *xcrs;
    if (auto debugregs = vcpu.debugregs()) state.debugregs = *debugregs;
    return state;
}

/// Is nothing lost by the refused MSR? Where the vCPU has that value already; or where this kernel
/// does not know the MSR at all and the guest has left it at 0: it was offered no feature that this
/// host lacks (check_cpuid()), and newer kernels list MSRs that only such features use.
bool nothing_is_lost(const kvm::Vcpu& vcpu, const MsrValue& msr) {
    const auto now = vcpu.msr(msr.index);
    return now ? *now == msr.data : msr.data == 0;
}

tl::unexpected<state::Error> msr_refused(const kvm::Vcpu& vcpu, const MsrValue& msr) {
    char text[96];
    std::snprintf(text, sizeof text, "vCPU %u: KVM_SET_MSRS of MSR 0x%x to 0x%llx", vcpu.id(),
                  msr.index, static_cast<unsigned long long>(msr.data));
    return state::fail(ErrorCode::kKernel, text, "this host does not take the guest's value",
                       "the hosts' CPUs or kernels differ in what they offer the guest");
}

/// Left to arm_timers().
bool waits_for_clocks(std::uint32_t msr) {
    return msr == abi::kMSR_IA32_TSC_DEADLINE || msr == abi::kMSR_KVM_WALL_CLOCK ||
           msr == abi::kMSR_KVM_WALL_CLOCK_NEW;
}

Status load_msrs(kvm::Vcpu& vcpu, std::span<const MsrValue> msrs) {
    std::size_t next = 0;
    while (next < msrs.size()) {
        kvm::MsrBatch batch;
        std::size_t end = next;
        for (; end < msrs.size() && !batch.full(); ++end) {
            // Zero, which does nothing, keeps the order of the batch simple.
            batch.add(msrs[end].index, waits_for_clocks(msrs[end].index) ? 0 : msrs[end].data);
        }
        const auto done = vcpu.try_set_msrs(batch);
        if (!done) return tl::unexpected(done.error());
        next += *done;
        if (*done == batch.size()) continue;
        if (!nothing_is_lost(vcpu, msrs[next])) return msr_refused(vcpu, msrs[next]);
        ++next;
    }
    return {};
}

/// IA32_FEATURE_CONTROL decides whether VMX is allowed at all.
Status load_nested(kvm::Vcpu& vcpu, const VcpuState& state) {
    if (state.nested.empty()) return {};
    constexpr std::uint32_t kFeatureControl = 0x3a;
    for (const MsrValue& msr : state.msrs) {
        if (msr.index != kFeatureControl) continue;
        if (auto set = vcpu.set_msr(msr.index, msr.data); !set) return set;
    }
    return vcpu.set_nested_state(state.nested);
}

Status load_vcpu(kvm::Vcpu& vcpu, const VcpuState& state) {
    return Steps{}
        .then([&] { return vcpu.set_sregs(state.sregs); })
        // Between EFER, which allows it, and the registers, which may be its guest's.
        .then([&] { return load_nested(vcpu, state); })
        .then([&] { return vcpu.set_regs(state.regs); })
        .then([&] { return state.xcrs ? vcpu.set_xcrs(*state.xcrs) : Status{}; })
        .then([&] { return vcpu.set_xsave(state.xsave); })
        // The LAPIC's mode is in sregs (APIC base); its timer mode must stand before the MSRs.
        .then([&] { return vcpu.set_lapic(state.lapic); })
        .then([&] { return load_msrs(vcpu, state.msrs); })
        .then([&] { return vcpu.set_mp_state(state.mp_state); })
        .then([&] { return state.debugregs ? vcpu.set_debugregs(*state.debugregs) : Status{}; })
        // Last of all: set_regs and set_sregs drop pending exceptions.
        .then([&] { return vcpu.set_events(state.events); })
        .result();
}

/// What KVM_GET_MSR_INDEX_LIST leaves out although a guest may have written it: memory types, the
/// supervisor's extended state, and the banks of machine checks (four MSRs each).
void add_unlisted_msrs(std::vector<std::uint32_t>& wanted, std::uint32_t check_banks) {
    constexpr std::uint32_t kXss = 0xda0;
    constexpr std::uint32_t kMtrrDefaultType = 0x2ff;
    constexpr std::uint32_t kMtrrVariable = 0x200;
    constexpr std::uint32_t kMtrrVariableCount = 16;  // 8 pairs of base and mask
    constexpr std::uint32_t kMtrrFixed[] = {0x250, 0x258, 0x259, 0x268, 0x269, 0x26a,
                                            0x26b, 0x26c, 0x26d, 0x26e, 0x26f};
    constexpr std::uint32_t kCheckBank = 0x400;
    constexpr std::uint32_t kBanksMax = 32;
    std::vector<std::uint32_t> unlisted{abi::kMSR_IA32_TSC_DEADLINE, kXss, kMtrrDefaultType};
    unlisted.insert(unlisted.end(), std::begin(kMtrrFixed), std::end(kMtrrFixed));
    for (std::uint32_t i = 0; i < kMtrrVariableCount; ++i)
        unlisted.push_back(kMtrrVariable + i);
    for (std::uint32_t i = 0; i < 4 * std::min(check_banks, kBanksMax); ++i)
        unlisted.push_back(kCheckBank + i);
    for (const std::uint32_t msr : unlisted) {
        // Some kernels list some of them.
        if (std::find(wanted.begin(), wanted.end(), msr) == wanted.end()) wanted.push_back(msr);
    }
}

Result<std::vector<std::uint32_t>> msrs_to_save(VirtualMachine& machine,
                                                const kvm::System& system) {
    const auto listed = system.msr_index_list();
    if (!listed) return tl::unexpected(listed.error());
    std::vector<std::uint32_t> wanted;
    for (const std::uint32_t msr : *listed)
        if (!owned_by_clock_record(msr)) wanted.push_back(msr);
    constexpr std::uint32_t kCheckCapabilities = 0x179;
    const auto capabilities = machine.vcpus().front().msr(kCheckCapabilities);
    add_unlisted_msrs(wanted, capabilities ? static_cast<std::uint32_t>(*capabilities & 0xff) : 0);
    return wanted;
}

Status check_shape(VirtualMachine& machine, const VmState& state) {
    if (machine.vcpus().size() != state.vcpus.size()) {
        return state::fail(ErrorCode::kInvalidArgument, "vCPU state",
                           std::to_string(state.vcpus.size()) + " vCPUs for a VM that has " +
                               std::to_string(machine.vcpus().size()));
    }
    const StateSizes& sizes = machine.board().state_sizes();
    for (const VcpuState& vcpu : state.vcpus) {
        if (!vcpu.nested.empty() && vcpu.nested.size() > sizes.nested) {
            return state::fail(
                ErrorCode::kUnsupported, "nested state",
                "the guest runs a guest of its own, which this host cannot take over",
                "use a host with nested virtualisation, or end that guest first");
        }
        if (vcpu.xsave.size() == sizes.xsave) continue;
        return state::fail(ErrorCode::kInvalidArgument, "XSAVE area",
                           std::to_string(vcpu.xsave.size()) + " bytes; this host has " +
                               std::to_string(sizes.xsave),
                           "the hosts' CPUs differ in their extended state");
    }
    return {};
}

void save_time_devices(Devices& devices, VmState& state) {
    if (NoticeDevice* notice = devices.notice()) {
        state.notice = notice->save();
        state.wake = devices.wake().state();
    }
    if (const GenerationDevice* generation = devices.generation())
        state.generation_page = generation->page();
    if (VmclockDevice* vmclock = devices.vmclock()) state.vmclock = vmclock->save();
    state.events = devices.events();
}

Status load_time_devices(VirtualMachine& machine, const VmState& state) {
    Devices& devices = machine.board().devices();
    const GuestPages pages{machine.memory(),
                           [&machine](std::uint64_t gpa) { machine.mark_dirty(gpa); }};
    if (state.notice)
        if (auto done = devices.load_notice(pages, *state.notice, state.wake); !done) return done;
    if (state.generation_page)
        if (auto done = devices.load_generation(pages, *state.generation_page); !done) return done;
    if (state.vmclock)
        if (auto done = devices.add_vmclock(pages, *state.vmclock); !done) return done;
    devices.load_events(state.events);
    return {};
}

}  // namespace

Result<VmState> save_state(VirtualMachine& machine, const kvm::System& system) {
    const auto wanted = msrs_to_save(machine, system);
    if (!wanted) return tl::unexpected(wanted.error());

    VmState state;
    for (std::uint32_t chip = 0; chip < state.irqchips.size(); ++chip) {
        if (auto done = take(machine.vm().get_irqchip(chip), state.irqchips[chip]); !done)
            return tl::unexpected(std::move(done.error()));
    }
    if (auto done = take(machine.vm().get_pit(), state.pit); !done)
        return tl::unexpected(std::move(done.error()));
    state.serial = machine.board().devices().serial().state();
    state.pm1_enable = machine.board().devices().pm1_enable();
    save_time_devices(machine.board().devices(), state);
    for (const kvm::Vcpu& vcpu : machine.vcpus()) {
        auto saved = save_vcpu(vcpu, machine.board().state_sizes(), *wanted);
        if (!saved) return tl::unexpected(std::move(saved.error()));
        state.vcpus.push_back(std::move(*saved));
    }
    return state;
}

Status load_state(VirtualMachine& machine, const VmState& state) {
    if (auto fits = check_shape(machine, state); !fits) return fits;
    for (std::size_t i = 0; i < state.vcpus.size(); ++i) {
        if (auto done = load_vcpu(machine.vcpus()[i], state.vcpus[i]); !done) return done;
    }
    // After the LAPICs: an interrupt that waits in an IOAPIC, or a line that rises, goes to them.
    for (const kvm_irqchip& chip : state.irqchips) {
        if (auto done = machine.vm().set_irqchip(chip); !done) return done;
    }
    if (auto done = machine.vm().set_pit(state.pit); !done) return done;
    machine.board().devices().serial().load(state.serial);
    machine.board().devices().set_pm1_enable(state.pm1_enable);
    return load_time_devices(machine, state);
}

Status arm_timers(VirtualMachine& machine, const VmState& state) {
    for (std::size_t i = 0; i < state.vcpus.size() && i < machine.vcpus().size(); ++i) {
        for (const MsrValue& msr : state.vcpus[i].msrs) {
            if (!waits_for_clocks(msr.index) || msr.data == 0) continue;
            if (auto done = machine.vcpus()[i].set_msr(msr.index, msr.data); !done) return done;
        }
    }
    return {};
}

}  // namespace continuo::vmm
