#include "time_device_codec.h"

namespace continuo::vmm {

namespace {

struct WireNotice {
    std::uint64_t page;
    std::uint64_t release_after_ns;
    std::uint64_t sequence;
    std::uint64_t time_travelled_ns;
    std::uint64_t gap_ns;
    std::uint64_t maxerror_ns;
    std::uint64_t unanswered_ns;
    std::uint32_t released;
    std::uint32_t zero;
};
static_assert(sizeof(WireNotice) == 64);

struct WireVmclock {
    std::uint64_t page;
    std::uint64_t disruption_marker;
    std::uint64_t generation;
    std::uint32_t sequence;
    std::uint32_t zero;
};
static_assert(sizeof(WireVmclock) == 32);

}  // namespace

void encode_notice(StateWriter& out, std::uint32_t tag, const NoticeState& notice) {
    const abi::TimeTravelState& sums = notice.sums;
    out.item(tag, kWholeVm,
             WireNotice{notice.page, notice.release_after_ns, sums.sequence, sums.time_travelled_ns,
                        sums.gap_ns, sums.maxerror_ns, sums.unanswered_ns,
                        static_cast<std::uint32_t>(sums.released), 0});
}

state::Status decode_notice(const StateItem& item, NoticeState& into) {
    WireNotice wire;
    if (auto copied = copy_item(item, wire); !copied) return copied;
    if (wire.zero != 0) return damaged_state(item.offset, "a reserved word is not zero");
    if (wire.released > 1) return damaged_state(item.offset, "a notice is released, 1, or not, 0");
    into = {wire.page,
            wire.release_after_ns,
            {wire.sequence, wire.time_travelled_ns, wire.gap_ns, wire.maxerror_ns,
             wire.unanswered_ns, wire.released != 0}};
    return {};
}

void encode_vmclock(StateWriter& out, std::uint32_t tag, const VmclockDeviceState& vmclock) {
    const abi::VmclockState& clock = vmclock.clock;
    out.item(
        tag, kWholeVm,
        WireVmclock{vmclock.page, clock.disruption_marker, clock.generation, clock.sequence, 0});
}

state::Status decode_vmclock(const StateItem& item, VmclockDeviceState& into) {
    WireVmclock wire;
    if (auto copied = copy_item(item, wire); !copied) return copied;
    if (wire.zero != 0) return damaged_state(item.offset, "a reserved word is not zero");
    into = {wire.page, {wire.disruption_marker, wire.generation, wire.sequence}};
    return {};
}

}  // namespace continuo::vmm
