#include "continuo/vmm/generation.h"

#include <cstring>

#include "continuo/vmm/migration.h"

namespace continuo::vmm {

std::uint64_t Generation::counter() const {
    std::uint64_t value = 0;
    std::memcpy(&value, id.data(), sizeof value);
    return value;
}

Generation new_generation() {
    Generation generation;
    do
        generation.id = new_migration_id();
    while (generation.counter() == 0);
    return generation;
}

std::string text_of(const std::array<std::uint8_t, 16>& id) {
    constexpr char kDigits[] = "0123456789abcdef";
    std::string text;
    for (const std::uint8_t byte : id) {
        text.push_back(kDigits[byte >> 4]);
        text.push_back(kDigits[byte & 15]);
    }
    return text;
}

}  // namespace continuo::vmm
