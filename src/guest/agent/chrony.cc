#include "chrony.h"

namespace continuo::guest::chrony {
namespace {

constexpr std::uint8_t kVersion = 6;
constexpr std::uint8_t kRequest = 1;
constexpr std::uint8_t kReply = 2;

// A request: version, type, two reserved bytes, u16 command, u16 attempt, u32 sequence, 8 bytes of
// padding, data. A request without data is padded to the length of its reply, so that replies are
// never longer than what asked for them.
constexpr std::size_t kHeader = 20;
constexpr std::size_t kReplyHeader = 28;
// BURST: mask and address of 20 bytes each (family 0: all sources), i32 good samples, i32 samples.
constexpr std::size_t kBurstGood = kHeader + 40;
constexpr std::size_t kBurstTotal = kHeader + 44;
static_assert(kBurstTotal + 4 == kRequestSizeMax);

void put16(std::uint8_t* at, std::uint16_t value) {
    at[0] = static_cast<std::uint8_t>(value >> 8);
    at[1] = static_cast<std::uint8_t>(value);
}
void put32(std::uint8_t* at, std::uint32_t value) {
    put16(at, static_cast<std::uint16_t>(value >> 16));
    put16(at + 2, static_cast<std::uint16_t>(value));
}
std::uint16_t get16(const std::uint8_t* at) {
    return static_cast<std::uint16_t>(at[0] << 8 | at[1]);
}
std::uint32_t get32(const std::uint8_t* at) {
    return std::uint32_t{get16(at)} << 16 | get16(at + 2);
}

}  // namespace

Request request(Command command, std::uint32_t sequence) {
    Request request{};
    request.bytes[0] = kVersion;
    request.bytes[1] = kRequest;
    put16(request.bytes + 4, static_cast<std::uint16_t>(command));
    put32(request.bytes + 8, sequence);
    request.size = kReplyHeader;
    if (command == Command::kBurst) {
        put32(request.bytes + kBurstGood, 4);
        put32(request.bytes + kBurstTotal, 8);
        request.size = kRequestSizeMax;
    }
    return request;
}

// A reply: version, type, two reserved bytes, u16 command, u16 kind, u16 status, 6 bytes of
// padding, u32 sequence, 8 bytes of padding.
Judged judge(Command command, std::uint32_t sequence, const std::uint8_t* bytes, std::size_t size) {
    if (size < kReplyHeader || bytes[0] != kVersion || bytes[1] != kReply ||
        get16(bytes + 4) != static_cast<std::uint16_t>(command) || get32(bytes + 16) != sequence)
        return {Reply::kOther, 0};
    const std::uint16_t status = get16(bytes + 8);
    return {status == 0 ? Reply::kDone : Reply::kRefused, status};
}

}  // namespace continuo::guest::chrony
