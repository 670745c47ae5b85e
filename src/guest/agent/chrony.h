// What the agent says to chronyd over its command socket: requests of chronyc's protocol, version 6
// (chrony's candm.h; chrony 4.0 and later). A request is one datagram; so is its reply.
#pragma once

#include <cstddef>
#include <cstdint>

namespace continuo::guest::chrony {

enum class Command : std::uint16_t {
    kBurst = 3,          ///< measure now: up to 4 good samples of each source, of 8
    kResetSources = 66,  ///< forget all measurements, and that the clock was synchronised
};

/// Numbers in network order, zero where nothing else is said.
inline constexpr std::size_t kRequestSizeMax = 68;
struct Request {
    std::uint8_t bytes[kRequestSizeMax];
    std::size_t size;
};
Request request(Command command, std::uint32_t sequence);

enum class Reply : std::uint8_t {
    kDone,
    kOther,    ///< no reply to this request: an older one's, or damaged
    kRefused,  ///< chronyd says no
};
struct Judged {
    Reply reply;
    std::uint16_t status;  ///< of a refusal: chronyd's number (STT_*)
};
Judged judge(Command command, std::uint32_t sequence, const std::uint8_t* bytes, std::size_t size);

}  // namespace continuo::guest::chrony
