#include "time_devices.h"

#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

#include "continuo/vmm/notice_device.h"
#include "continuo/vmm/vmclock_device.h"
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

std::string_view status_name(std::uint8_t status) {
    switch (status) {
        case abi::kVMCLOCK_STATUS_SYNCHRONIZED:
            return "synchronized";
        case abi::kVMCLOCK_STATUS_FREERUNNING:
            return "freerunning";
        case abi::kVMCLOCK_STATUS_UNRELIABLE:
            return "unreliable";
        default:
            return "unknown";
    }
}

void tend_notice(vmm::NoticeDevice& device) {
    if (const auto event = device.tend()) report(*event, device.status());
}

void tend_vmclock(vmm::VmclockDevice& device) {
    using Change = abi::VmclockHost::Change;
    const auto change = device.tend();
    if (!change) return progress("vmclock: {}", change.error().message());
    const double step = static_cast<double>(device.status().step_ns) / 1e9;
    if (*change == Change::kDoubted)
        progress(
            "vmclock: the host's clock has moved by {:+.6f} s, beyond the bound of what the guest "
            "was told: its page is unreliable until that is borne out",
            step);
    if (*change == Change::kBelieved)
        progress("vmclock: the host's clock agrees again with what the guest was told");
    if (*change == Change::kStepped)
        progress("vmclock: the host's clock was set, by {:+.6f} s: the guest's page begins anew",
                 step);
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

Json vmclock_json(vmm::VirtualMachine& machine) {
    vmm::VmclockDevice* device = machine.board().vmclock();
    if (device == nullptr) return nullptr;
    const vmm::VmclockStatus status = device->status();
    Json json;
    json["disruption_marker"] = status.page.disruption_marker;
    json["generation"] = status.page.vm_generation_counter;
    json["sequence"] = status.page.seq_count;
    json["clock_status"] = status_name(status.page.clock_status);
    json["time"] = status.page.counter_id == abi::kVMCLOCK_COUNTER_INVALID ? Json{}
                   : status.page.time_type == abi::kVMCLOCK_TIME_TAI       ? Json("tai")
                                                                           : Json("utc");
    json["maxerror_ns"] = status.page.time_maxerror_nanosec;
    json["refits"] = status.counts.refits;
    json["doubts"] = status.counts.doubts;
    json["steps"] = status.counts.steps;
    json["step_ns"] = status.step_ns;
    return json;
}

void tend_time_devices(vmm::VirtualMachine& machine) {
    if (!machine.running()) return;
    if (vmm::NoticeDevice* notice = machine.board().notice()) tend_notice(*notice);
    if (vmm::VmclockDevice* vmclock = machine.board().vmclock()) tend_vmclock(*vmclock);
}

}  // namespace continuo::cli
