#include "continuo/vmm/console.h"

#include <algorithm>
#include <utility>

namespace continuo::vmm {

void Console::put(std::span<const std::byte> bytes) {
    {
        const std::lock_guard lock{mutex_};
        const std::size_t taken = std::min(bytes.size(), kBytesMax - text_.size());
        text_.append(reinterpret_cast<const char*>(bytes.data()), taken);
        lost_bytes_ += bytes.size() - taken;
    }
    on_text_();
}

bool Console::has_room() const {
    const std::lock_guard lock{mutex_};
    return text_.size() < kBytesMax;
}

std::string Console::text() const {
    const std::lock_guard lock{mutex_};
    return text_;
}

std::string Console::take() {
    const std::lock_guard lock{mutex_};
    return std::exchange(text_, {});
}

std::uint64_t Console::lost_bytes() const {
    const std::lock_guard lock{mutex_};
    return lost_bytes_;
}

}  // namespace continuo::vmm
