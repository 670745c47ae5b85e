#include "continuo/vmm/frame.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

// The state of a running hash on the stack.
#define XXH_STATIC_LINKING_ONLY
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <string>

#include "continuo/kvm/counter.h"

namespace continuo::vmm {

namespace {

using state::ErrorCode;

/// A length in a header is a claim: memory grows as bytes arrive, in steps of this.
constexpr std::size_t kReadStep = 1u << 20;
constexpr std::size_t kHashedHeaderBytes = offsetof(FrameHeader, hash);

std::uint64_t hash_of(const FrameHeader& header, PayloadParts parts) {
    XXH64_state_t state;
    XXH64_reset(&state, 0);
    XXH64_update(&state, &header, kHashedHeaderBytes);
    for (const std::span<const std::byte> part : parts)
        if (!part.empty()) XXH64_update(&state, part.data(), part.size());
    return XXH64_digest(&state);
}

/// Waits until the descriptor is ready. False where the deadline passed first.
bool wait_for(int fd, short events, Deadline deadline) {
    for (;;) {
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
                              deadline - std::chrono::steady_clock::now())
                              .count();
        pollfd poll_fd{fd, events, 0};
        const int ready =
            ::poll(&poll_fd, 1, static_cast<int>(std::clamp<long long>(left, 0, 60'000)));
        if (ready > 0) return true;
        if (ready == 0 && left <= 0) return false;
        if (ready < 0 && errno != EINTR) return true;  // the read or write will say what is wrong
    }
}

tl::unexpected<state::Error> connection_lost(std::string where, int sys_errno) {
    return state::fail(ErrorCode::kPeer, std::move(where), "the connection is gone", {}, sys_errno);
}

}  // namespace

std::string_view name(FrameType type) {
    constexpr std::string_view kNames[] = {
        "?",     "HELLO",   "WELCOME",      "PAGES",  "ROUND_END", "STOPPED",
        "STATE", "CLOCKS",  "COMPLETE",     "READY",  "COMMIT",    "RUNNING",
        "DONE",  "FAIL",    "STATUS_QUERY", "STATUS", "CONVERGED", "PROBE",
        "ECHO",  "PROCEED", "SNAPSHOT",     "END"};
    const auto index = static_cast<std::size_t>(type);
    return index < std::size(kNames) ? kNames[index] : kNames[0];
}

FrameHeader make_frame_header(FrameType type, PayloadParts parts, std::uint32_t sequence) {
    std::size_t length = 0;
    for (const std::span<const std::byte> part : parts)
        length += part.size();
    CONTINUO_CHECK(length <= kFrameBytesMax);
    FrameHeader header{kFrameMagic,
                       kFrameVersion,
                       static_cast<std::uint16_t>(type),
                       static_cast<std::uint32_t>(length),
                       sequence,
                       0};
    header.hash = hash_of(header, parts);
    return header;
}

Status check_frame_header(const FrameHeader& header, std::uint32_t expected_sequence) {
    if (header.magic != kFrameMagic) {
        return state::fail(ErrorCode::kMalformed, "frame header, byte 0",
                           "the peer does not speak Continuo's migration protocol");
    }
    if (header.version != kFrameVersion) {
        return state::fail(ErrorCode::kVersion, "frame header, byte 4",
                           "protocol version " + std::to_string(header.version) + ", not " +
                               std::to_string(kFrameVersion),
                           "use the same release on both hosts");
    }
    if (header.length > kFrameBytesMax) {
        return state::fail(
            ErrorCode::kTooLarge, "frame header, byte 8",
            std::to_string(header.length) + " bytes of payload; the limit is 64 MiB");
    }
    if (header.sequence != expected_sequence) {
        return state::fail(ErrorCode::kPeer, "frame header, byte 12",
                           "frame " + std::to_string(header.sequence) + " where frame " +
                               std::to_string(expected_sequence) + " was due");
    }
    return {};
}

Status check_frame_hash(const FrameHeader& header, std::span<const std::byte> payload) {
    if (hash_of(header, {&payload, 1}) == header.hash) return {};
    return state::fail(ErrorCode::kIntegrity,
                       std::string{name(static_cast<FrameType>(header.type))} + " frame",
                       "the hash does not match the bytes");
}

Status FrameStream::write_all(std::span<const std::byte> header, std::span<const std::byte> payload,
                              Deadline deadline) {
    // One call for both: a small frame is one segment on the wire, and comes to one wake-up there.
    while (!header.empty() || !payload.empty()) {
        iovec parts[] = {{const_cast<std::byte*>(header.data()), header.size()},
                         {const_cast<std::byte*>(payload.data()), payload.size()}};
        msghdr message{};
        message.msg_iov = parts;
        message.msg_iovlen = std::size(parts);
        const ssize_t done = ::sendmsg(fd_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (done >= 0) {
            const auto count = static_cast<std::size_t>(done);
            const std::size_t of_header = std::min(count, header.size());
            header = header.subspan(of_header);
            payload = payload.subspan(count - of_header);
            bytes_sent_ += count;
            continue;
        }
        if (errno == EINTR) continue;
        if (errno != EAGAIN && errno != EWOULDBLOCK) return connection_lost("send", errno);
        if (!wait_for(fd_.get(), POLLOUT, deadline))
            return state::fail(ErrorCode::kTimeout, "send", "the peer does not take our bytes");
    }
    return {};
}

Status FrameStream::send(FrameType type, std::span<const std::byte> payload, Deadline deadline) {
    const FrameHeader header = make_frame_header(type, {&payload, 1}, sent_);
    ++sent_;
    return write_all(std::as_bytes(std::span{&header, 1}), payload, deadline);
}

Status FrameStream::read_some(Bytes& into, std::size_t count, Deadline deadline, bool at_edge) {
    std::size_t filled = into.size();
    const std::size_t end = filled + count;
    while (filled < end) {
        if (filled == into.size()) into.resize(std::min(end, filled + kReadStep));
        const ssize_t got =
            ::recv(fd_.get(), into.data() + filled, into.size() - filled, MSG_DONTWAIT);
        if (got > 0) {
            if (at_edge) arrived_ = kvm::host_counter();
            filled += static_cast<std::size_t>(got);
            at_edge = false;
            continue;
        }
        if (got == 0) return connection_lost(at_edge ? "end of stream" : "within a frame", 0);
        if (errno == EINTR) continue;
        if (errno != EAGAIN && errno != EWOULDBLOCK) return connection_lost("receive", errno);
        if (!wait_for(fd_.get(), POLLIN, deadline))
            return state::fail(ErrorCode::kTimeout, "receive", "the peer says nothing");
    }
    return {};
}

Result<Frame> FrameStream::receive(Deadline deadline) {
    Bytes raw;
    if (auto done = read_some(raw, sizeof(FrameHeader), deadline, true); !done)
        return tl::unexpected(std::move(done.error()));
    FrameHeader header;
    std::memcpy(&header, raw.data(), sizeof header);
    if (auto good = check_frame_header(header, received_); !good)
        return tl::unexpected(std::move(good.error()));
    Frame frame;
    frame.type = static_cast<FrameType>(header.type);
    frame.arrived = arrived_;
    if (auto done = read_some(frame.payload, header.length, deadline, false); !done)
        return tl::unexpected(std::move(done.error()));
    if (auto good = check_frame_hash(header, frame.payload); !good)
        return tl::unexpected(std::move(good.error()));
    ++received_;
    return frame;
}

bool FrameStream::readable() const {
    pollfd poll_fd{fd_.get(), POLLIN, 0};
    return ::poll(&poll_fd, 1, 0) > 0;
}

}  // namespace continuo::vmm
