// A serial port's state as the bytes of an item (docs/formats/migration.md), on every architecture.
#pragma once

#include <cstdint>

#include "continuo/vmm/serial_state.h"
#include "state_items.h"

namespace continuo::vmm {

/// One at reset is left out: so a guest that uses none can go to a release that has none.
void encode_serial(StateWriter& out, std::uint32_t tag, const SerialState& serial);
state::Status decode_serial(const StateItem& item, SerialState& into);

}  // namespace continuo::vmm
