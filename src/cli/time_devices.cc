#include "time_devices.h"

#include <nlohmann/json.hpp>
#include <optional>

#include "continuo/vmm/notice_device.h"
#include "progress.h"

namespace continuo::cli {

using state::Json;

namespace {

Json or_null(const std::optional<std::uint64_t>& value) {
    return value ? Json(*value) : Json{};
}

double seconds(std::uint64_t ns) {
    return static_cast<double>(ns) / 1e9;
}

void report(vmm::NoticeDevice::Event event, const vmm::NoticeStatus& status) {
    const std::uint64_t sequence = status.state.sums.sequence;
    switch (event) {
        case vmm::NoticeDevice::Event::kAnswered:
            return progress("notice {}: the guest has answered, within {:.3f} s", sequence - 1,
                            seconds(status.answered_after_ns.value_or(0)));
        case vmm::NoticeDevice::Event::kReleased:
            return progress(
                "notice {}: not answered in {:.3f} s of the guest's time; its readers of REALTIME "
                "wait no longer, and the notice stays open",
                sequence, seconds(status.state.release_after_ns));
        case vmm::NoticeDevice::Event::kGarbage:
            return progress(
                "notice page: the guest has written {:#x} where the sequence {} stood, which says "
                "nothing; the next notice puts it right",
                status.garbage.value_or(0), sequence);
    }
}

}  // namespace

Json notice_device_json(vmm::VirtualMachine& machine) {
    vmm::NoticeDevice* device = machine.board().notice();
    if (device == nullptr) return nullptr;
    const vmm::NoticeStatus status = device->status();
    const abi::TimeTravelState& sums = status.state.sums;
    Json json;
    json["page"] = status.state.page;
    json["sequence"] = sums.sequence;
    json["open"] = (sums.sequence & 1) != 0;
    json["readers_wait"] = (sums.sequence & 1) != 0 && !sums.released;
    json["time_travelled_ns"] = sums.time_travelled_ns;
    json["unanswered_ns"] = sums.unanswered_ns;
    json["gap_ns"] = sums.gap_ns;
    json["maxerror_ns"] = sums.maxerror_ns;
    json["release_after_ns"] = status.state.release_after_ns;
    json["raised"] = status.counts.raised;
    json["answered"] = status.counts.answered;
    json["overtaken"] = status.counts.overtaken;
    json["released"] = status.counts.released;
    json["garbage"] = status.counts.garbage;
    json["answered_after_ns"] = or_null(status.answered_after_ns);
    return json;
}

void tend_time_devices(vmm::VirtualMachine& machine) {
    vmm::NoticeDevice* device = machine.board().notice();
    if (device == nullptr || !machine.running()) return;
    if (const auto event = device->tend()) report(*event, device->status());
}

}  // namespace continuo::cli
