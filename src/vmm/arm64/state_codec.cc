// The state of an arm64 VM as bytes. Builds on every architecture.
#include <algorithm>
#include <cstring>

#include "continuo/abi/arm64.h"
#include "continuo/vmm/arm64_state.h"
#include "serial_codec.h"
#include "state_items.h"
#include "time_device_codec.h"

namespace continuo::vmm::arm64 {

namespace {

using state::ErrorCode;
using state::Result;
using state::Status;

enum Tag : std::uint32_t {
    kTagMpState = 64,
    kTagEvents = 65,
    kTagRegisters = 66,
    kTagGicRedistributor = 67,
    kTagGicCpuInterface = 68,
    kTagGicDistributor = 80,
    kTagSerial = 81,
    kTagNotice = 82,
    kTagVmclock = 83,
};

constexpr std::uint64_t kArchitectureMask = 0xff00'0000'0000'0000;
constexpr std::uint64_t kArchitectureArm64 = 0x6000'0000'0000'0000;

/// What every vCPU has, registers not counted: a claim of more vCPUs than that takes no memory.
constexpr std::size_t kVcpuBytesMin =
    3 * sizeof(ItemHeader) + sizeof(std::uint32_t) + sizeof(VcpuEvents);

std::vector<std::byte> register_block(const VcpuState& vcpu) {
    std::vector<std::byte> out;
    for (const Register& one : vcpu.registers) {
        const auto id = std::as_bytes(std::span{&one.id, 1});
        out.insert(out.end(), id.begin(), id.end());
        out.insert(out.end(), one.value.begin(), one.value.end());
    }
    return out;
}

void encode_vcpu(StateWriter& out, std::uint32_t index, const VcpuState& vcpu) {
    out.item(kTagMpState, index, vcpu.mp_state);
    out.item(kTagEvents, index, vcpu.events);
    out.item(kTagRegisters, index, std::span<const std::byte>{register_block(vcpu)});
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
            if (auto taken = take(**item); !taken) return tl::unexpected(std::move(taken.error()));
        }
        if (auto whole = check_complete(); !whole) return tl::unexpected(std::move(whole.error()));
        return std::move(state_);
    }

  private:
    Status take(const StateItem& item) {
        return item.header.vcpu == kWholeVm ? vm_item(item) : vcpu_item(item);
    }

    Status vm_item(const StateItem& item) {
        const std::uint32_t tag = item.header.tag;
        if (tag < kTagGicDistributor || tag > kTagVmclock) return unknown_item(item);
        if (auto once = vm_seen_.mark(item, tag - kTagGicDistributor); !once) return once;
        switch (tag) {
            case kTagGicDistributor:
                return copy_item(item, gic().distributor);
            case kTagSerial:
                return decode_serial(item, state_.serial);
            case kTagNotice:
                return decode_notice(item, state_.notice.emplace());
            default:
                return decode_vmclock(item, state_.vmclock.emplace());
        }
    }

    Status vcpu_item(const StateItem& item) {
        const std::uint32_t tag = item.header.tag;
        const std::uint32_t index = item.header.vcpu;
        if (tag < kTagMpState || tag > kTagGicCpuInterface) return unknown_item(item);
        if (auto once = seen_[index].mark(item, tag - kTagMpState); !once) return once;
        VcpuState& vcpu = state_.vcpus[index];
        switch (tag) {
            case kTagMpState:
                return copy_item(item, vcpu.mp_state);
            case kTagEvents:
                return events(item, vcpu);
            case kTagRegisters:
                return registers(item, vcpu);
            case kTagGicRedistributor:
                return copy_item(item, gic().vcpus[index].redistributor);
            default:
                return cpu_interface(item, gic().vcpus[index].cpu_interface);
        }
    }

    GicState& gic() {
        if (!state_.gic) state_.gic.emplace().vcpus.resize(state_.vcpus.size());
        return *state_.gic;
    }

    static Status cpu_interface(const StateItem& item, GicCpuInterface& into) {
        if (auto copied = copy_item(item, into); !copied) return copied;
        const std::uint32_t words = active_priority_words(into.control);
        if (words == 0)
            return damaged_state(item.offset, "a CPU interface has 5 to 7 bits of priority");
        for (const auto& group : into.active_priorities) {
            if (!std::all_of(group + words, std::end(group),
                             [](std::uint64_t word) { return word == 0; }))
                return damaged_state(item.offset, "active priorities that it has no bits for");
        }
        return {};
    }

    /// Every vCPU whole, and the interrupt controller whole or not there.
    Status check_complete() const {
        constexpr std::uint32_t kAlways = 7;
        constexpr std::uint32_t kOfGic = 3u << (kTagGicRedistributor - kTagMpState);
        const bool distributor = vm_seen_.has(1);
        if (state_.gic && !distributor) {
            return damaged_state(reader_.size(), "the interrupt controller lacks its distributor",
                                 ErrorCode::kTruncated);
        }
        for (std::size_t i = 0; i < seen_.size(); ++i) {
            if (seen_[i].has(kAlways | (distributor ? kOfGic : 0))) continue;
            return damaged_state(reader_.size(), "vCPU " + std::to_string(i) + " lacks an item",
                                 ErrorCode::kTruncated);
        }
        return {};
    }

    static Status events(const StateItem& item, VcpuState& vcpu) {
        if (auto copied = copy_item(item, vcpu.events); !copied) return copied;
        const VcpuEvents& events = vcpu.events;
        const bool clean = std::all_of(std::begin(events.pad), std::end(events.pad),
                                       [](std::uint8_t byte) { return byte == 0; }) &&
                           std::all_of(std::begin(events.reserved), std::end(events.reserved),
                                       [](std::uint32_t word) { return word == 0; });
        if (!clean) return damaged_state(item.offset, "a reserved word of the events is not zero");
        return {};
    }

    static Status registers(const StateItem& item, VcpuState& vcpu) {
        std::span<const std::byte> left = item.body;
        while (!left.empty()) {
            const std::size_t at =
                item.offset + sizeof(ItemHeader) + (item.body.size() - left.size());
            auto one = take_register(left, at);
            if (!one) return tl::unexpected(std::move(one.error()));
            vcpu.registers.push_back(std::move(*one));
        }
        return check_once(item, vcpu);
    }

    static Result<Register> take_register(std::span<const std::byte>& left, std::size_t at) {
        Register one;
        if (left.size() < sizeof one.id) return damaged_state(at, "a register's id is cut off");
        std::memcpy(&one.id, left.data(), sizeof one.id);
        left = left.subspan(sizeof one.id);
        if ((one.id & kArchitectureMask) != kArchitectureArm64 ||
            register_bytes(one.id) > kRegisterBytesMax)
            return damaged_state(at, "this is no register of arm64");
        if (owned_by_clock_record(one.id))
            return damaged_state(at, "this register belongs to the clock record");
        const std::size_t bytes = register_bytes(one.id);
        if (left.size() < bytes) return damaged_state(at, "a register's value is cut off");
        one.value.assign(left.begin(), left.begin() + static_cast<std::ptrdiff_t>(bytes));
        left = left.subspan(bytes);
        return one;
    }

    static Status check_once(const StateItem& item, const VcpuState& vcpu) {
        std::vector<std::uint64_t> ids;
        ids.reserve(vcpu.registers.size());
        for (const Register& one : vcpu.registers)
            ids.push_back(one.id);
        std::sort(ids.begin(), ids.end());
        if (std::adjacent_find(ids.begin(), ids.end()) == ids.end()) return {};
        return damaged_state(item.offset, "a register comes twice");
    }

    StateReader reader_;
    VmState state_;
    ItemsSeen vm_seen_;
    std::vector<ItemsSeen> seen_;
};

}  // namespace

bool owned_by_clock_record(std::uint64_t id) {
    return id == abi::kKVM_REG_ARM_TIMER_CNT || id == abi::kKVM_REG_ARM_PTIMER_CNT;
}

bool belongs_to_timer(std::uint64_t id) {
    return id == abi::kKVM_REG_ARM_TIMER_CTL || id == abi::kKVM_REG_ARM_TIMER_CVAL ||
           id == abi::kKVM_REG_ARM_PTIMER_CTL || id == abi::kKVM_REG_ARM_PTIMER_CVAL;
}

std::vector<std::byte> encode_state(const VmState& state) {
    StateWriter out{state.vcpus.size()};
    if (state.gic) out.item(kTagGicDistributor, kWholeVm, state.gic->distributor);
    encode_serial(out, kTagSerial, state.serial);
    if (state.notice) encode_notice(out, kTagNotice, *state.notice);
    if (state.vmclock) encode_vmclock(out, kTagVmclock, *state.vmclock);
    for (std::uint32_t i = 0; i < state.vcpus.size(); ++i) {
        encode_vcpu(out, i, state.vcpus[i]);
        if (!state.gic) continue;
        out.item(kTagGicRedistributor, i, state.gic->vcpus[i].redistributor);
        out.item(kTagGicCpuInterface, i, state.gic->vcpus[i].cpu_interface);
    }
    return out.take();
}

Result<VmState> decode_state(std::span<const std::byte> bytes) {
    const auto reader = StateReader::open(bytes, kVcpuBytesMin);
    if (!reader) return tl::unexpected(reader.error());
    return Decoder{*reader}.run();
}

}  // namespace continuo::vmm::arm64
