// The states of the devices that tell a guest of the time, as the bytes of items
// (docs/formats/migration.md), on every architecture.
#pragma once

#include <cstdint>

#include "continuo/vmm/notice_device.h"
#include "continuo/vmm/vmclock_device.h"
#include "state_items.h"

namespace continuo::vmm {

void encode_notice(StateWriter& out, std::uint32_t tag, const NoticeState& notice);
state::Status decode_notice(const StateItem& item, NoticeState& into);

void encode_vmclock(StateWriter& out, std::uint32_t tag, const VmclockDeviceState& vmclock);
state::Status decode_vmclock(const StateItem& item, VmclockDeviceState& into);

}  // namespace continuo::vmm
