#include "continuo/model/guest_clock.h"

#include <algorithm>

namespace continuo::model {

std::optional<std::uint64_t> KvmclockReader::read(unsigned vcpu) {
    abi::pvclock_vcpu_time_info& page = vm_->page(vcpu);
    const auto line = abi::pvclock_line(page);
    const bool written = page.version != 0 && !abi::update_in_progress(page.version);
    if (!line || !written) return std::nullopt;
    // Not PvclockLine::at(): a guest's unsigned difference wraps where its counter is below the
    // page's, and that is what it reads then.
    const std::uint64_t ticks = vm_->guest_tsc(vcpu) - page.tsc_timestamp;
    const std::uint64_t ns = page.system_time + line->scale().wrap_ns(ticks);
    if ((page.flags & abi::kPVCLOCK_GUEST_STOPPED) != 0) {
        page.flags = static_cast<std::uint8_t>(page.flags & ~abi::kPVCLOCK_GUEST_STOPPED);
        ++stops_seen_;
    }
    const bool stable = (page.flags & abi::kPVCLOCK_TSC_STABLE_BIT) != 0;
    const bool kept = !stable || fallback_ == Fallback::kMaximumOfAll;
    if (!kept || fallback_ == Fallback::kNone) return ns;
    last_ = std::max(last_, ns);
    return last_;
}

SchedClock::SchedClock(KvmclockReader& reader, unsigned boot_vcpu, Underflow underflow)
    : reader_{reader}, underflow_{underflow} {
    const auto now = reader_.read(boot_vcpu);
    CONTINUO_CHECK(now.has_value());
    offset_ = *now;
}

std::optional<std::uint64_t> SchedClock::read(unsigned vcpu) {
    const auto now = reader_.read(vcpu);
    if (!now) return std::nullopt;
    if (underflow_ == Underflow::kGuarded && *now < offset_) return 0;
    return *now - offset_;
}

}  // namespace continuo::model
