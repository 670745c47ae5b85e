// Frames in a file: written one after the other, read back with their places in it, and closed by
// an END frame that binds them together. docs/formats/snapshot.md has the bytes. Private to this
// module.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <span>
#include <string>

#include "continuo/vmm/frame.h"

namespace continuo::vmm {

/// Writes frames to a descriptor, which it does not own.
class FrameFileWriter {
  public:
    explicit FrameFileWriter(int fd) : fd_{fd} {}
    /// kIo with the errno where the file does not take it: what it holds then is of no use.
    Status put(FrameType type, PayloadParts parts);
    Status put(FrameType type, std::span<const std::byte> payload) {
        return put(type, PayloadParts{&payload, 1});
    }
    /// The END frame, behind which nothing may stand.
    Status put_end(std::uint64_t pages);
    std::uint64_t bytes() const { return bytes_; }

  private:
    Status write_all(std::span<iovec> parts);

    int fd_;
    std::uint32_t frames_ = 0;
    std::uint64_t bytes_ = 0;
    std::uint64_t chain_ = 0;
};

/// Reads frames from the file's beginning, wherever the descriptor itself stands. Foreign bytes: no
/// more memory is taken than the file has.
class FrameFileReader {
  public:
    /// kInvalidArgument where it is no regular file. The descriptor stays the caller's.
    static Result<FrameFileReader> open(int fd);

    struct View {
        FrameType type{};
        std::uint64_t offset = 0;            ///< of its header in the file
        std::span<const std::byte> payload;  ///< valid until the next call
    };
    /// The next frame. kTruncated where the file ends before the frame does, else what
    /// check_frame_header() and check_frame_hash() say, with the byte of the file.
    Result<View> next();
    /// Holds the END frame, just read, against all that came before it: kMalformed or kIntegrity.
    Status check_end(const View& end, std::uint64_t pages) const;

    std::uint64_t bytes_read() const { return at_; }
    std::uint64_t size() const { return size_; }

  private:
    FrameFileReader(int fd, std::uint64_t size) : fd_{fd}, size_{size} {}
    Status read_all(std::span<std::byte> into);

    int fd_;
    std::uint64_t size_;
    std::uint64_t at_ = 0;
    std::uint32_t frames_ = 0;
    std::uint64_t chain_ = 0;
    std::uint64_t chain_before_ = 0;  ///< over all frames but the last one read
    Bytes buffer_;
};

/// What is wrong at a byte of a snapshot's file.
tl::unexpected<state::Error> bad_snapshot(state::ErrorCode code, std::uint64_t offset,
                                          std::string what, std::string advice = {});
/// The same of an error that knows no byte.
tl::unexpected<state::Error> at_byte(std::uint64_t offset, state::Error error);

}  // namespace continuo::vmm
