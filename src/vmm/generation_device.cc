#include "continuo/vmm/generation_device.h"

#include <span>
#include <utility>

namespace continuo::vmm {

using state::ErrorCode;
using state::Result;

bool GenerationDevice::fits(const kvm::GuestMemory& memory, std::uint64_t page) {
    return page % kvm::kPageSize == 0 && memory.contains(page, kvm::kPageSize);
}

Result<std::unique_ptr<GenerationDevice>> GenerationDevice::create(Wiring wiring,
                                                                   std::uint64_t page) {
    if (!fits(wiring.memory, page))
        return state::fail(ErrorCode::kInvalidArgument, "generation page",
                           "it is not a whole page of the guest's memory");
    std::unique_ptr<GenerationDevice> device{new GenerationDevice{std::move(wiring), page}};
    device->set(new_generation());
    return device;
}

Result<std::unique_ptr<GenerationDevice>> GenerationDevice::restore(Wiring wiring,
                                                                    std::uint64_t page) {
    if (!fits(wiring.memory, page))
        return state::fail(ErrorCode::kMalformed, "generation page",
                           "it is not a whole page of the guest's memory");
    return std::unique_ptr<GenerationDevice>{new GenerationDevice{std::move(wiring), page}};
}

void GenerationDevice::set(const Generation& generation) {
    const auto done = wiring_.memory.write(page_, std::as_bytes(std::span{generation.id}));
    CONTINUO_CHECK(done);  // create() and restore() have looked
    wiring_.mark_dirty(page_);
}

}  // namespace continuo::vmm
