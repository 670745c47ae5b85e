// Frames on a stream socket: what a migration says, with length, order and integrity checked; a
// snapshot's file holds the same. docs/formats/migration.md has every byte. A stream that ends,
// stalls, or carries anything else is a typed Error; nothing here throws, and SIGPIPE is never
// raised.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "continuo/kvm/fd.h"
#include "continuo/time/point.h"

namespace continuo::vmm {

using state::Result;
using state::Status;
using Bytes = std::vector<std::byte>;

enum class FrameType : std::uint16_t {
    kHello = 1,         ///< source: who I am, the VM's shape
    kWelcome = 2,       ///< destination: who I am, the VM is created
    kPages = 3,         ///< source: pages of memory
    kRoundEnd = 4,      ///< source: one pass over the dirty pages is done
    kStopped = 5,       ///< source: the vCPUs stand still
    kState = 6,         ///< source: vCPUs and devices
    kClocks = 7,        ///< source: the clock record
    kComplete = 8,      ///< source: that was everything
    kReady = 9,         ///< destination: loaded, planned, applied
    kCommit = 10,       ///< source: the VM is yours
    kRunning = 11,      ///< destination: the VM runs
    kDone = 12,         ///< source: my copy is destroyed
    kFail = 13,         ///< either: I give up, and why
    kStatusQuery = 14,  ///< source, on a new connection: what became of this migration?
    kStatus = 15,       ///< destination: this
    kConverged = 16,    ///< source: pre-copy is done; ask for my counter now, if you want to
    kProbe = 17,        ///< destination: what is your counter?
    kEcho = 18,         ///< source: this
    kProceed = 19,      ///< destination: I have asked enough
    kSnapshot = 20,     ///< in a file only, first: which snapshot, of what VM (snapshot.h)
    kEnd = 21,          ///< in a file only, last: that was everything
};
std::string_view name(FrameType type);

inline constexpr std::uint32_t kFrameMagic = 0x47494d43;  ///< "CMIG"
inline constexpr std::uint16_t kFrameVersion = 2;
inline constexpr std::uint32_t kFrameBytesMax = 64u << 20;

/// The first 24 bytes of every frame; the payload follows.
struct FrameHeader {
    std::uint32_t magic;
    std::uint16_t version;
    std::uint16_t type;
    std::uint32_t length;    ///< of the payload
    std::uint32_t sequence;  ///< of this frame in this direction of this connection, from 0
    std::uint64_t hash;      ///< XXH64, seed 0, of the 16 bytes before it and the payload
};
static_assert(sizeof(FrameHeader) == 24 && offsetof(FrameHeader, hash) == 16);

/// A payload in the pieces that it lies in.
using PayloadParts = std::span<const std::span<const std::byte>>;
/// The header of a frame of this payload, at most kFrameBytesMax long, with its hash.
FrameHeader make_frame_header(FrameType type, PayloadParts parts, std::uint32_t sequence);
/// Everything that can be wrong with a header before its payload has come: kMalformed, kVersion,
/// kTooLarge, or kPeer where it is not the frame that is due.
Status check_frame_header(const FrameHeader& header, std::uint32_t expected_sequence);
/// kIntegrity where header and payload do not belong together.
Status check_frame_hash(const FrameHeader& header, std::span<const std::byte> payload);

struct Frame {
    FrameType type{};
    Bytes payload;
    /// This host's counter just after the first bytes of the frame had been taken from the socket.
    time::Count<time::HostCounter> arrived;
};

using Deadline = std::chrono::steady_clock::time_point;
inline Deadline after(std::chrono::milliseconds length) {
    return std::chrono::steady_clock::now() + length;
}

/// One end of a connection. Owns the descriptor. Not thread-safe.
class FrameStream {
  public:
    explicit FrameStream(kvm::Fd fd) : fd_{std::move(fd)} {}

    /// Sends one frame. kPeer where the connection is gone, kTimeout where the peer does not read.
    Status send(FrameType type, std::span<const std::byte> payload, Deadline deadline);
    /// Receives one frame. kPeer: the stream ended (`where` says "end of stream" at a frame's edge,
    /// else within it); kMalformed, kVersion, kTooLarge, kIntegrity: it is not what it should be;
    /// kTimeout. Memory is taken as bytes arrive, not as a length promises.
    Result<Frame> receive(Deadline deadline);
    /// True where bytes or an end are waiting to be read.
    bool readable() const;

    std::uint64_t bytes_sent() const { return bytes_sent_; }
    int fd() const { return fd_.get(); }
    void close() { fd_.reset(); }

  private:
    Status write_all(std::span<const std::byte> header, std::span<const std::byte> payload,
                     Deadline deadline);
    /// Appends `count` bytes to `into`; where it fails, what is behind its old end means nothing.
    Status read_some(Bytes& into, std::size_t count, Deadline deadline, bool at_edge);

    kvm::Fd fd_;
    std::uint32_t sent_ = 0;
    std::uint32_t received_ = 0;
    std::uint64_t bytes_sent_ = 0;
    time::Count<time::HostCounter> arrived_;
};

/// Builds payloads: little-endian values one after the other.
class PayloadWriter {
  public:
    template <class T>
    PayloadWriter& put(const T& value) {
        static_assert(std::has_unique_object_representations_v<T>);
        return put_bytes(std::as_bytes(std::span{&value, 1}));
    }
    PayloadWriter& put_bytes(std::span<const std::byte> bytes) {
        bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
        return *this;
    }
    /// A 32-bit length, then the bytes.
    PayloadWriter& put_block(std::span<const std::byte> bytes) {
        put(static_cast<std::uint32_t>(bytes.size()));
        return put_bytes(bytes);
    }
    Bytes take() { return std::move(bytes_); }

  private:
    Bytes bytes_;
};

/// Reads them back. Once a read did not fit, every later one yields zeroes and ok() is false.
class PayloadReader {
  public:
    explicit PayloadReader(std::span<const std::byte> bytes) : bytes_{bytes} {}
    template <class T>
    T get() {
        static_assert(std::has_unique_object_representations_v<T>);
        T value{};
        const auto from = get_bytes(sizeof(T));
        if (from.size() == sizeof(T)) std::memcpy(&value, from.data(), sizeof(T));
        return value;
    }
    std::span<const std::byte> get_bytes(std::size_t count) {
        if (count > bytes_.size()) {
            ok_ = false;
            bytes_ = {};
            return {};
        }
        const auto taken = bytes_.first(count);
        bytes_ = bytes_.subspan(count);
        return taken;
    }
    std::span<const std::byte> get_block() { return get_bytes(get<std::uint32_t>()); }
    bool ok() const { return ok_; }
    /// ok(), and nothing is left over.
    bool complete() const { return ok_ && bytes_.empty(); }
    std::size_t left() const { return bytes_.size(); }

  private:
    std::span<const std::byte> bytes_;
    bool ok_ = true;
};

}  // namespace continuo::vmm
