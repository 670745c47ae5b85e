#include "continuo/vmm/vm_state.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "continuo/abi/msr.h"

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

Result<VcpuState> save_vcpu(const kvm::Vcpu& vcpu, std::size_t xsave_bytes,
                            std::span<const std::uint32_t> msrs) {
    VcpuState state;
    state.xsave.resize(xsave_bytes);
    // mp_state first: reading it makes KVM process INIT and SIPI that wait, which changes the rest.
    auto status = Steps{}
                      .then([&] { return take(vcpu.mp_state(), state.mp_state); })
                      .then([&] { return take(vcpu.regs(), state.regs); })
                      .then([&] { return take(vcpu.sregs(), state.sregs); })
                      .then([&] { return vcpu.get_xsave(state.xsave); })
                      .then([&] { return take(vcpu.lapic(), state.lapic); })
                      .then([&] { return take(save_msrs(vcpu, msrs), state.msrs); })
                      .then([&] { return take(vcpu.events(), state.events); })
                      .result();
    if (!status) return tl::unexpected(std::move(status.error()));
    if (auto xcrs = vcpu.xcrs()) state.xcrs = *xcrs;
    if (auto debugregs = vcpu.debugregs()) state.debugregs = *debugregs;
    return state;
}

/// Is the refused MSR what the vCPU has already? Then nothing is lost.
bool has_value(const kvm::Vcpu& vcpu, const MsrValue& msr) {
    const auto now = vcpu.msr(msr.index);
    return now && *now == msr.data;
}

tl::unexpected<state::Error> msr_refused(const kvm::Vcpu& vcpu, const MsrValue& msr) {
    char text[96];
    std::snprintf(text, sizeof text, "vCPU %u: KVM_SET_MSRS of MSR 0x%x to 0x%llx", vcpu.id(),
                  msr.index, static_cast<unsigned long long>(msr.data));
    return state::fail(ErrorCode::kKernel, text, "this host does not take the guest's value",
                       "the hosts' CPUs or kernels differ in what they offer the guest");
}

Status load_msrs(kvm::Vcpu& vcpu, std::span<const MsrValue> msrs) {
    std::size_t next = 0;
    while (next < msrs.size()) {
        kvm::MsrBatch batch;
        std::size_t end = next;
        for (; end < msrs.size() && !batch.full(); ++end) {
            // A deadline waits for arm_deadlines; zero keeps the order of the batch simple.
            const bool deadline = msrs[end].index == abi::kMSR_IA32_TSC_DEADLINE;
            batch.add(msrs[end].index, deadline ? 0 : msrs[end].data);
        }
        const auto done = vcpu.try_set_msrs(batch);
        if (!done) return tl::unexpected(done.error());
        next += *done;
        if (*done == batch.size()) continue;
        if (!has_value(vcpu, msrs[next])) return msr_refused(vcpu, msrs[next]);
        ++next;
    }
    return {};
}

Status load_vcpu(kvm::Vcpu& vcpu, const VcpuState& state) {
    return Steps{}
        .then([&] { return vcpu.set_regs(state.regs); })
        .then([&] { return vcpu.set_sregs(state.sregs); })
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

Status check_shape(VirtualMachine& machine, const VmState& state) {
    if (machine.vcpus().size() != state.vcpus.size()) {
        return state::fail(ErrorCode::kInvalidArgument, "vCPU state",
                           std::to_string(state.vcpus.size()) + " vCPUs for a VM that has " +
                               std::to_string(machine.vcpus().size()));
    }
    for (const VcpuState& vcpu : state.vcpus) {
        if (vcpu.xsave.size() == machine.xsave_bytes()) continue;
        return state::fail(ErrorCode::kInvalidArgument, "XSAVE area",
                           std::to_string(vcpu.xsave.size()) + " bytes; this host has " +
                               std::to_string(machine.xsave_bytes()),
                           "the hosts' CPUs differ in their extended state");
    }
    return {};
}

// ---- Serialisation ----

constexpr std::uint64_t kStateMagic = 0x31545356544e4f43;  // "CONTVST1"
constexpr std::uint32_t kStateVersion = 1;
constexpr std::uint32_t kWholeVm = 0xffffffff;
constexpr std::uint32_t kOptional = 0x80000000;
constexpr std::size_t kXsaveMin = 4096;
constexpr std::size_t kXsaveMax = 1u << 20;

enum Tag : std::uint32_t {
    kTagIrqchip = 1,
    kTagPit = 2,
    kTagMpState = 16,
    kTagRegs = 17,
    kTagSregs = 18,
    kTagLapic = 19,
    kTagEvents = 20,
    kTagDebugregs = 21,
    kTagXcrs = 22,
    kTagXsave = 23,
    kTagMsrs = 24,
};

struct StateHeader {
    std::uint64_t magic;
    std::uint32_t version;
    std::uint32_t vcpus;
};
static_assert(sizeof(StateHeader) == 16);

struct ItemHeader {
    std::uint32_t tag;
    std::uint32_t vcpu;
    std::uint32_t length;
    std::uint32_t zero;
};
static_assert(sizeof(ItemHeader) == 16);

struct WireMsr {
    std::uint32_t index;
    std::uint32_t zero;
    std::uint64_t data;
};
static_assert(sizeof(WireMsr) == 16);

/// What every vCPU has, MSRs not counted: a claim of more vCPUs than that takes no memory.
constexpr std::size_t kVcpuBytesMin = 7 * sizeof(ItemHeader) + sizeof(kvm_mp_state) +
                                      sizeof(kvm_regs) + sizeof(kvm_sregs) +
                                      sizeof(kvm_lapic_state) + sizeof(kvm_vcpu_events) + kXsaveMin;

class Encoder {
  public:
    template <class T>
    void raw(const T& value) {
        static_assert(std::is_trivially_copyable_v<T>);
        append(std::as_bytes(std::span{&value, 1}));
    }
    void append(std::span<const std::byte> bytes) {
        bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    }
    void item(std::uint32_t tag, std::uint32_t vcpu, std::span<const std::byte> body) {
        raw(ItemHeader{tag, vcpu, static_cast<std::uint32_t>(body.size()), 0});
        append(body);
    }
    template <class T>
    void item(std::uint32_t tag, std::uint32_t vcpu, const T& value) {
        item(tag, vcpu, std::as_bytes(std::span{&value, 1}));
    }
    std::vector<std::byte> take() { return std::move(bytes_); }

  private:
    std::vector<std::byte> bytes_;
};

void encode_vcpu(Encoder& out, std::uint32_t index, const VcpuState& vcpu) {
    out.item(kTagMpState, index, vcpu.mp_state);
    out.item(kTagRegs, index, vcpu.regs);
    out.item(kTagSregs, index, vcpu.sregs);
    out.item(kTagLapic, index, vcpu.lapic);
    out.item(kTagEvents, index, vcpu.events);
    if (vcpu.debugregs) out.item(kTagDebugregs, index, *vcpu.debugregs);
    if (vcpu.xcrs) out.item(kTagXcrs, index, *vcpu.xcrs);
    out.item(kTagXsave, index, std::span<const std::byte>{vcpu.xsave});
    std::vector<WireMsr> msrs;
    for (const MsrValue& msr : vcpu.msrs)
        msrs.push_back({msr.index, 0, msr.data});
    out.item(kTagMsrs, index, std::as_bytes(std::span{msrs}));
}

/// One item at its place in the input.
struct Item {
    ItemHeader header;
    std::size_t offset;
    std::span<const std::byte> body;
};

tl::unexpected<state::Error> damaged(std::size_t offset, std::string what,
                                     ErrorCode code = ErrorCode::kMalformed) {
    return state::fail(code, "VM state, byte " + std::to_string(offset), std::move(what));
}

class Decoder {
  public:
    explicit Decoder(std::span<const std::byte> bytes) : bytes_{bytes} {}

    Result<VmState> run() {
        StateHeader header;
        if (!read(header)) return damaged(0, "the header is cut off", ErrorCode::kTruncated);
        if (header.magic != kStateMagic) return damaged(0, "this is no VM state");
        if (header.version != kStateVersion) {
            return damaged(8, "version " + std::to_string(header.version) + " is not known",
                           ErrorCode::kVersion);
        }
        if (header.vcpus == 0 || header.vcpus > kVcpusMax)
            return damaged(12, std::to_string(header.vcpus) + " vCPUs; a VM has 1 to 64");
        if (bytes_.size() / kVcpuBytesMin < header.vcpus)
            return damaged(12, "fewer bytes than that many vCPUs have", ErrorCode::kTruncated);
        state_.vcpus.resize(header.vcpus);
        seen_.resize(header.vcpus);
        while (at_ < bytes_.size()) {
            if (auto done = next(); !done) return tl::unexpected(std::move(done.error()));
        }
        if (auto whole = check_complete(); !whole) return tl::unexpected(std::move(whole.error()));
        return std::move(state_);
    }

  private:
    template <class T>
    bool read(T& into) {
        if (bytes_.size() - at_ < sizeof(T)) return false;
        std::memcpy(&into, bytes_.data() + at_, sizeof(T));
        at_ += sizeof(T);
        return true;
    }

    Status next() {
        Item item{};
        item.offset = at_;
        if (!read(item.header))
            return damaged(item.offset, "an item's header is cut off", ErrorCode::kTruncated);
        if (item.header.zero != 0) return damaged(item.offset + 12, "a reserved word is not zero");
        if (bytes_.size() - at_ < item.header.length) {
            return damaged(item.offset, "the item states more bytes than there are",
                           ErrorCode::kTruncated);
        }
        item.body = bytes_.subspan(at_, item.header.length);
        at_ += item.header.length;
        return item.header.vcpu == kWholeVm ? vm_item(item) : vcpu_item(item);
    }

    Status vm_item(const Item& item) {
        switch (item.header.tag) {
            case kTagIrqchip: {
                kvm_irqchip chip;
                if (auto done = fixed(item, chip); !done) return done;
                if (chip.chip_id >= state_.irqchips.size())
                    return damaged(item.offset, "there is no such interrupt controller");
                if (auto once = mark(vm_seen_, item, chip.chip_id); !once) return once;
                state_.irqchips[chip.chip_id] = chip;
                return {};
            }
            case kTagPit:
                if (auto once = mark(vm_seen_, item, 3); !once) return once;
                return fixed(item, state_.pit);
            default:
                return unknown(item);
        }
    }

    Status vcpu_item(const Item& item) {
        const std::uint32_t index = item.header.vcpu;
        if (index >= state_.vcpus.size())
            return damaged(item.offset + 4, "there is no vCPU " + std::to_string(index));
        if (item.header.tag < kTagMpState || item.header.tag > kTagMsrs) return unknown(item);
        if (auto once = mark(seen_[index], item, item.header.tag - kTagMpState); !once) return once;
        VcpuState& vcpu = state_.vcpus[index];
        switch (item.header.tag) {
            case kTagMpState:
                return fixed(item, vcpu.mp_state);
            case kTagRegs:
                return fixed(item, vcpu.regs);
            case kTagSregs:
                return fixed(item, vcpu.sregs);
            case kTagLapic:
                return fixed(item, vcpu.lapic);
            case kTagEvents:
                return fixed(item, vcpu.events);
            case kTagDebugregs:
                return fixed(item, vcpu.debugregs.emplace());
            case kTagXcrs:
                return fixed(item, vcpu.xcrs.emplace());
            case kTagXsave:
                return xsave(item, vcpu);
            default:
                return msrs(item, vcpu);
        }
    }

    template <class T>
    Status fixed(const Item& item, T& into) {
        if (item.body.size() != sizeof(T)) {
            return damaged(item.offset, "tag " + std::to_string(item.header.tag) + " has " +
                                            std::to_string(item.body.size()) +
                                            " bytes instead of " + std::to_string(sizeof(T)));
        }
        std::memcpy(&into, item.body.data(), sizeof(T));
        return {};
    }

    Status xsave(const Item& item, VcpuState& vcpu) {
        if (item.body.size() < kXsaveMin || item.body.size() > kXsaveMax)
            return damaged(item.offset, "an XSAVE area has 4096 bytes to 1 MiB");
        vcpu.xsave.assign(item.body.begin(), item.body.end());
        return {};
    }

    Status msrs(const Item& item, VcpuState& vcpu) {
        if (item.body.size() % sizeof(WireMsr) != 0)
            return damaged(item.offset, "the MSRs are not a whole number of entries");
        for (std::size_t at = 0; at < item.body.size(); at += sizeof(WireMsr)) {
            WireMsr msr;
            std::memcpy(&msr, item.body.data() + at, sizeof msr);
            if (msr.zero != 0) return damaged(item.offset + at, "a reserved word is not zero");
            if (owned_by_clock_record(msr.index))
                return damaged(item.offset + at, "this MSR belongs to the clock record");
            vcpu.msrs.push_back({msr.index, msr.data});
        }
        return {};
    }

    Status unknown(const Item& item) {
        if ((item.header.tag & kOptional) != 0) return {};
        return damaged(
            item.offset,
            "tag " + std::to_string(item.header.tag) + " is mandatory and not known to this build",
            ErrorCode::kVersion);
    }

    Status mark(std::uint32_t& seen, const Item& item, std::uint32_t bit) {
        if ((seen & (1u << bit)) != 0) return damaged(item.offset, "the same item again");
        seen |= 1u << bit;
        return {};
    }

    Status check_complete() {
        if (vm_seen_ != 0xf) return damaged(bytes_.size(), "a VM-wide item is missing");
        constexpr std::uint32_t kAll = (1u << (kTagMsrs - kTagMpState + 1)) - 1;
        constexpr std::uint32_t kMayLack =
            (1u << (kTagDebugregs - kTagMpState)) | (1u << (kTagXcrs - kTagMpState));
        for (std::size_t i = 0; i < seen_.size(); ++i) {
            if ((seen_[i] | kMayLack) != kAll) {
                return damaged(bytes_.size(), "vCPU " + std::to_string(i) + " lacks an item",
                               ErrorCode::kTruncated);
            }
        }
        return {};
    }

    std::span<const std::byte> bytes_;
    std::size_t at_ = 0;
    VmState state_;
    std::uint32_t vm_seen_ = 0;
    std::vector<std::uint32_t> seen_;
};

}  // namespace

bool owned_by_clock_record(std::uint32_t msr) {
    return msr == abi::kMSR_IA32_TSC || msr == abi::kMSR_IA32_TSC_ADJUST;
}

Result<VmState> save_state(VirtualMachine& machine, std::span<const std::uint32_t> msrs) {
    std::vector<std::uint32_t> wanted;
    for (const std::uint32_t msr : msrs)
        if (!owned_by_clock_record(msr)) wanted.push_back(msr);
    // Older kernels do not list the deadline.
    if (std::find(wanted.begin(), wanted.end(), abi::kMSR_IA32_TSC_DEADLINE) == wanted.end())
        wanted.push_back(abi::kMSR_IA32_TSC_DEADLINE);

    VmState state;
    for (std::uint32_t chip = 0; chip < state.irqchips.size(); ++chip) {
        if (auto done = take(machine.vm().get_irqchip(chip), state.irqchips[chip]); !done)
            return tl::unexpected(std::move(done.error()));
    }
    if (auto done = take(machine.vm().get_pit(), state.pit); !done)
        return tl::unexpected(std::move(done.error()));
    for (const kvm::Vcpu& vcpu : machine.vcpus()) {
        auto saved = save_vcpu(vcpu, machine.xsave_bytes(), wanted);
        if (!saved) return tl::unexpected(std::move(saved.error()));
        state.vcpus.push_back(std::move(*saved));
    }
    return state;
}

Status load_state(VirtualMachine& machine, const VmState& state) {
    if (auto fits = check_shape(machine, state); !fits) return fits;
    for (const kvm_irqchip& chip : state.irqchips) {
        if (auto done = machine.vm().set_irqchip(chip); !done) return done;
    }
    if (auto done = machine.vm().set_pit(state.pit); !done) return done;
    for (std::size_t i = 0; i < state.vcpus.size(); ++i) {
        if (auto done = load_vcpu(machine.vcpus()[i], state.vcpus[i]); !done) return done;
    }
    return {};
}

Status arm_deadlines(VirtualMachine& machine, const VmState& state) {
    for (std::size_t i = 0; i < state.vcpus.size() && i < machine.vcpus().size(); ++i) {
        for (const MsrValue& msr : state.vcpus[i].msrs) {
            if (msr.index != abi::kMSR_IA32_TSC_DEADLINE || msr.data == 0) continue;
            if (auto done = machine.vcpus()[i].set_msr(msr.index, msr.data); !done) return done;
        }
    }
    return {};
}

std::vector<std::byte> encode_state(const VmState& state) {
    Encoder out;
    out.raw(
        StateHeader{kStateMagic, kStateVersion, static_cast<std::uint32_t>(state.vcpus.size())});
    for (const kvm_irqchip& chip : state.irqchips)
        out.item(kTagIrqchip, kWholeVm, chip);
    out.item(kTagPit, kWholeVm, state.pit);
    for (std::uint32_t i = 0; i < state.vcpus.size(); ++i)
        encode_vcpu(out, i, state.vcpus[i]);
    return out.take();
}

Result<VmState> decode_state(std::span<const std::byte> bytes) {
    return Decoder{bytes}.run();
}

}  // namespace continuo::vmm
