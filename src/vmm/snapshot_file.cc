#include "snapshot_file.h"

#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <climits>

namespace continuo::vmm {

using state::Error;
using state::ErrorCode;

namespace {

constexpr const char* kTakeAnother = "take another copy of the snapshot";

const char* advice_for(int sys_errno) {
    if (sys_errno == ENOSPC || sys_errno == EDQUOT) return "make room, or choose another place";
    if (sys_errno == EFBIG) return "raise the limit of a file's size (ulimit -f)";
    return "choose another place";
}

/// All frames of a file, in their order, by their hashes: what one frame cannot say of itself.
std::uint64_t chained(std::uint64_t chain, const FrameHeader& header) {
    return XXH64(&header.hash, sizeof header.hash, chain);
}

/// What is left once `done` bytes have been written.
std::span<iovec> behind(std::span<iovec> parts, std::size_t done) {
    while (!parts.empty() && done >= parts.front().iov_len) {
        done -= parts.front().iov_len;
        parts = parts.subspan(1);
    }
    if (parts.empty()) return parts;
    parts.front().iov_base = static_cast<std::byte*>(parts.front().iov_base) + done;
    parts.front().iov_len -= done;
    return parts;
}

}  // namespace

tl::unexpected<Error> bad_snapshot(ErrorCode code, std::uint64_t offset, std::string what,
                                   std::string advice) {
    if (advice.empty()) advice = kTakeAnother;
    return state::fail(code, "byte " + std::to_string(offset), std::move(what), std::move(advice));
}

tl::unexpected<Error> at_byte(std::uint64_t offset, Error error) {
    error.where = "byte " + std::to_string(offset) + ", " + error.where;
    if (error.advice.empty()) error.advice = kTakeAnother;
    return tl::unexpected(std::move(error));
}

Status FrameFileWriter::put(FrameType type, PayloadParts parts) {
    FrameHeader header = make_frame_header(type, parts, frames_++);
    chain_ = chained(chain_, header);
    std::vector<iovec> pieces;
    pieces.reserve(parts.size() + 1);
    pieces.push_back({&header, sizeof header});
    for (const std::span<const std::byte> part : parts)
        pieces.push_back({const_cast<std::byte*>(part.data()), part.size()});
    return write_all(pieces);
}

Status FrameFileWriter::write_all(std::span<iovec> parts) {
    while (!parts.empty()) {
        const auto count = static_cast<int>(std::min<std::size_t>(parts.size(), IOV_MAX));
        const ssize_t done = ::writev(fd_, parts.data(), count);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) {
            const int sys_errno = errno;
            return state::fail(ErrorCode::kIo, "byte " + std::to_string(bytes_),
                               "the snapshot cannot be written", advice_for(sys_errno), sys_errno);
        }
        bytes_ += static_cast<std::uint64_t>(done);
        parts = behind(parts, static_cast<std::size_t>(done));
    }
    return {};
}

Status FrameFileWriter::put_end(std::uint64_t pages) {
    return put(FrameType::kEnd, PayloadWriter{}.put(bytes_).put(pages).put(chain_).take());
}

Result<FrameFileReader> FrameFileReader::open(int fd) {
    struct stat info {};
    if (::fstat(fd, &info) != 0)
        return state::fail(ErrorCode::kIo, "fstat", "its size cannot be found out", {}, errno);
    if (!S_ISREG(info.st_mode)) {
        return state::fail(ErrorCode::kInvalidArgument, "snapshot", "it is no regular file",
                           "copy it into one first");
    }
    return FrameFileReader{fd, static_cast<std::uint64_t>(info.st_size)};
}

Status FrameFileReader::read_all(std::span<std::byte> into) {
    while (!into.empty()) {
        const ssize_t got = ::pread(fd_, into.data(), into.size(), static_cast<off_t>(at_));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) {
            return state::fail(ErrorCode::kIo, "byte " + std::to_string(at_),
                               "the snapshot cannot be read", {}, errno);
        }
        if (got == 0)
            return bad_snapshot(ErrorCode::kTruncated, at_, "it became shorter while it was read");
        at_ += static_cast<std::uint64_t>(got);
        into = into.subspan(static_cast<std::size_t>(got));
    }
    return {};
}

Result<FrameFileReader::View> FrameFileReader::next() {
    const std::uint64_t offset = at_;
    const auto cut_off = [&] {
        return bad_snapshot(ErrorCode::kTruncated, size_, "the file ends before the snapshot does",
                            "it was cut off: take another copy");
    };
    FrameHeader header;
    if (size_ - at_ < sizeof header) return cut_off();
    if (auto done = read_all(std::as_writable_bytes(std::span{&header, 1})); !done)
        return tl::unexpected(std::move(done.error()));
    if (auto good = check_frame_header(header, frames_); !good) {
        Error error = std::move(good.error());
        if (header.magic != kFrameMagic) error.what = "no snapshot has such bytes here";
        if (error.code == ErrorCode::kPeer) error.code = ErrorCode::kMalformed;
        if (error.code == ErrorCode::kVersion) error.advice = "use the release that wrote it";
        return at_byte(offset, std::move(error));
    }
    // A length is a claim: no memory is taken for bytes that the file does not have.
    if (size_ - at_ < header.length) return cut_off();
    buffer_.resize(std::max<std::size_t>(buffer_.size(), header.length));
    const std::span<std::byte> payload{buffer_.data(), header.length};
    if (auto done = read_all(payload); !done) return tl::unexpected(std::move(done.error()));
    if (auto good = check_frame_hash(header, payload); !good)
        return at_byte(offset, std::move(good.error()));
    ++frames_;
    chain_before_ = chain_;
    chain_ = chained(chain_, header);
    return View{static_cast<FrameType>(header.type), offset, payload};
}

Status FrameFileReader::check_end(const View& end, std::uint64_t pages) const {
    PayloadReader in{end.payload};
    const auto bytes = in.get<std::uint64_t>();
    const auto pages_written = in.get<std::uint64_t>();
    const auto chain = in.get<std::uint64_t>();
    if (!in.complete()) return bad_snapshot(ErrorCode::kMalformed, end.offset, "its END is wrong");
    if (bytes != end.offset || pages_written != pages || chain != chain_before_) {
        return bad_snapshot(ErrorCode::kIntegrity, end.offset,
                            "the END belongs to another snapshot than what stands before it");
    }
    if (at_ == size_) return {};
    return bad_snapshot(ErrorCode::kMalformed, at_, "bytes are left over behind the END");
}

}  // namespace continuo::vmm
