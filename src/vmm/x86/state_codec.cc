// The state of an x86-64 VM as bytes.
#include <cstring>

#include "continuo/abi/kvm_x86.h"
#include "continuo/abi/msr.h"
#include "continuo/vmm/vm_state.h"
#include "serial_codec.h"
#include "state_items.h"
#include "time_device_codec.h"

namespace continuo::vmm {

namespace {

using state::ErrorCode;

constexpr std::size_t kXsaveMin = 4096;
constexpr std::size_t kXsaveMax = 1u << 20;
constexpr std::size_t kNestedMin = sizeof(abi::kvm_nested_state);
constexpr std::size_t kNestedMax = 1u << 16;

enum Tag : std::uint32_t {
    kTagIrqchip = 1,
    kTagPit = 2,
    kTagSerial = 3,
    kTagPm1 = 4,
    kTagNotice = 5,
    kTagWake = 6,
    kTagDeviceEvents = 7,
    kTagVmclock = 8,
    kTagGeneration = 9,
    kTagMpState = 16,
    kTagRegs = 17,
    kTagSregs = 18,
    kTagLapic = 19,
    kTagEvents = 20,
    kTagDebugregs = 21,
    kTagXcrs = 22,
    kTagXsave = 23,
    kTagMsrs = 24,
    kTagNested = 25,
};

struct WireMsr {
    std::uint32_t index;
    std::uint32_t zero;
    std::uint64_t data;
};
static_assert(sizeof(WireMsr) == 16);

struct WirePm1 {
    std::uint16_t enable;
    std::uint16_t zero;
};
static_assert(sizeof(WirePm1) == 4);

struct WireEvents {
    std::uint8_t pending;
    std::uint8_t zero[3];
};
static_assert(sizeof(WireEvents) == 4);

/// What every vCPU has, MSRs not counted: a claim of more vCPUs than that takes no memory.
constexpr std::size_t kVcpuBytesMin = 7 * sizeof(ItemHeader) + sizeof(kvm_mp_state) +
                                      sizeof(kvm_regs) + sizeof(kvm_sregs) +
                                      sizeof(kvm_lapic_state) + sizeof(kvm_vcpu_events) + kXsaveMin;

/// A device at reset is left out: so a guest that uses none can go to a release that has none. The
/// notice device is there or not: a guest that has one is never without.
void encode_devices(StateWriter& out, const VmState& state) {
    encode_serial(out, kTagSerial, state.serial);
    if (state.pm1_enable != 0) out.item(kTagPm1, kWholeVm, WirePm1{state.pm1_enable, 0});
    if (state.notice) encode_notice(out, kTagNotice, *state.notice);
    encode_serial(out, kTagWake, state.wake);
    if (state.generation_page) out.item(kTagGeneration, kWholeVm, *state.generation_page);
    if (state.vmclock) encode_vmclock(out, kTagVmclock, *state.vmclock);
    if (state.events != 0) out.item(kTagDeviceEvents, kWholeVm, WireEvents{state.events, {}});
}

void encode_vcpu(StateWriter& out, std::uint32_t index, const VcpuState& vcpu) {
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
    if (!vcpu.nested.empty()) out.item(kTagNested, index, std::span<const std::byte>{vcpu.nested});
}

class Decoder {
  public:
    explicit Decoder(StateReader reader) : reader_{reader}, seen_(reader.vcpus()) {
        state_.vcpus.resize(reader.vcpus());
    }

    Result<VmState> run() {
        for (;;) {
            const auto item = reader_.next();
            if (!item) return tl::unexpected(item.error());
            if (!*item) break;
            auto taken = (*item)->header.vcpu == kWholeVm ? vm_item(**item) : vcpu_item(**item);
            if (!taken) return tl::unexpected(std::move(taken.error()));
        }
        if (auto whole = check_complete(); !whole) return tl::unexpected(std::move(whole.error()));
        return std::move(state_);
    }

  private:
    Status vm_item(const StateItem& item) {
        switch (item.header.tag) {
            case kTagIrqchip: {
                kvm_irqchip chip;
                if (auto done = copy_item(item, chip); !done) return done;
                if (chip.chip_id >= state_.irqchips.size())
                    return damaged_state(item.offset, "there is no such interrupt controller");
                if (auto once = vm_seen_.mark(item, chip.chip_id); !once) return once;
                state_.irqchips[chip.chip_id] = chip;
                return {};
            }
            case kTagPit:
                if (auto once = vm_seen_.mark(item, 3); !once) return once;
                return copy_item(item, state_.pit);
            case kTagSerial:
                if (auto once = vm_seen_.mark(item, 4); !once) return once;
                return decode_serial(item, state_.serial);
            case kTagPm1:
                if (auto once = vm_seen_.mark(item, 5); !once) return once;
                return pm1(item);
            case kTagNotice:
                if (auto once = vm_seen_.mark(item, 6); !once) return once;
                return decode_notice(item, state_.notice.emplace());
            case kTagWake:
                if (auto once = vm_seen_.mark(item, 7); !once) return once;
                return decode_serial(item, state_.wake);
            case kTagGeneration:
                if (auto once = vm_seen_.mark(item, 10); !once) return once;
                return copy_item(item, state_.generation_page.emplace());
            case kTagDeviceEvents:
                if (auto once = vm_seen_.mark(item, 8); !once) return once;
                return events(item);
            case kTagVmclock:
                if (auto once = vm_seen_.mark(item, 9); !once) return once;
                return decode_vmclock(item, state_.vmclock.emplace());
            default:
                return unknown_item(item);
        }
    }

    Status pm1(const StateItem& item) {
        WirePm1 wire;
        if (auto copied = copy_item(item, wire); !copied) return copied;
        if (wire.zero != 0) return damaged_state(item.offset, "a reserved word is not zero");
        state_.pm1_enable = wire.enable;
        return {};
    }

    Status events(const StateItem& item) {
        WireEvents wire;
        if (auto copied = copy_item(item, wire); !copied) return copied;
        if ((wire.zero[0] | wire.zero[1] | wire.zero[2]) != 0)
            return damaged_state(item.offset, "a reserved byte is not zero");
        state_.events = wire.pending;
        return {};
    }

    Status vcpu_item(const StateItem& item) {
        const std::uint32_t index = item.header.vcpu;
        if (item.header.tag < kTagMpState || item.header.tag > kTagNested)
            return unknown_item(item);
        if (auto once = seen_[index].mark(item, item.header.tag - kTagMpState); !once) return once;
        VcpuState& vcpu = state_.vcpus[index];
        switch (item.header.tag) {
            case kTagMpState:
                return copy_item(item, vcpu.mp_state);
            case kTagRegs:
                return copy_item(item, vcpu.regs);
            case kTagSregs:
                return copy_item(item, vcpu.sregs);
            case kTagLapic:
                return copy_item(item, vcpu.lapic);
            case kTagEvents:
                return copy_item(item, vcpu.events);
            case kTagDebugregs:
                return copy_item(item, vcpu.debugregs.emplace());
            case kTagXcrs:
                return copy_item(item, vcpu.xcrs.emplace());
            case kTagXsave:
                return xsave(item, vcpu);
            case kTagNested:
                return nested(item, vcpu);
            default:
                return msrs(item, vcpu);
        }
    }

    Status xsave(const StateItem& item, VcpuState& vcpu) {
        if (item.body.size() < kXsaveMin || item.body.size() > kXsaveMax)
            return damaged_state(item.offset, "an XSAVE area has 4096 bytes to 1 MiB");
        vcpu.xsave.assign(item.body.begin(), item.body.end());
        return {};
    }

    Status nested(const StateItem& item, VcpuState& vcpu) {
        if (item.body.size() < kNestedMin || item.body.size() > kNestedMax)
            return damaged_state(item.offset, "nested state has 128 bytes to 64 KiB");
        vcpu.nested.assign(item.body.begin(), item.body.end());
        return {};
    }

    Status msrs(const StateItem& item, VcpuState& vcpu) {
        if (item.body.size() % sizeof(WireMsr) != 0)
            return damaged_state(item.offset, "the MSRs are not a whole number of entries");
        for (std::size_t at = 0; at < item.body.size(); at += sizeof(WireMsr)) {
            WireMsr msr;
            std::memcpy(&msr, item.body.data() + at, sizeof msr);
            if (msr.zero != 0)
                return damaged_state(item.offset + at, "a reserved word is not zero");
            if (owned_by_clock_record(msr.index))
                return damaged_state(item.offset + at, "this MSR belongs to the clock record");
            vcpu.msrs.push_back({msr.index, msr.data});
        }
        return {};
    }

    Status check_complete() {
        if (!vm_seen_.has(0xf)) return damaged_state(reader_.size(), "a VM-wide item is missing");
        if (!state_.notice && state_.wake != SerialState{})
            return damaged_state(reader_.size(), "a notice device's line without the device");
        constexpr std::uint32_t kAll = (1u << (kTagNested - kTagMpState + 1)) - 1;
        constexpr std::uint32_t kMayLack = (1u << (kTagDebugregs - kTagMpState)) |
                                           (1u << (kTagXcrs - kTagMpState)) |
                                           (1u << (kTagNested - kTagMpState));
        for (std::size_t i = 0; i < seen_.size(); ++i) {
            if (!seen_[i].has(kAll & ~kMayLack)) {
                return damaged_state(reader_.size(), "vCPU " + std::to_string(i) + " lacks an item",
                                     ErrorCode::kTruncated);
            }
        }
        return {};
    }

    StateReader reader_;
    VmState state_;
    ItemsSeen vm_seen_;
    std::vector<ItemsSeen> seen_;
};

}  // namespace

bool owned_by_clock_record(std::uint32_t msr) {
    return msr == abi::kMSR_IA32_TSC || msr == abi::kMSR_IA32_TSC_ADJUST;
}

std::vector<std::byte> encode_state(const VmState& state) {
    StateWriter out{state.vcpus.size()};
    for (const kvm_irqchip& chip : state.irqchips)
        out.item(kTagIrqchip, kWholeVm, chip);
    out.item(kTagPit, kWholeVm, state.pit);
    encode_devices(out, state);
    for (std::uint32_t i = 0; i < state.vcpus.size(); ++i)
        encode_vcpu(out, i, state.vcpus[i]);
    return out.take();
}

Result<VmState> decode_state(std::span<const std::byte> bytes) {
    const auto reader = StateReader::open(bytes, kVcpuBytesMin);
    if (!reader) return tl::unexpected(reader.error());
    return Decoder{*reader}.run();
}

}  // namespace continuo::vmm
