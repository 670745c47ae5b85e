// What both sides of a migration put into their frames, and read out of the other's. Private to
// this module.
#pragma once

#include <string>

#include "continuo/vmm/migration.h"

namespace continuo::vmm {

inline constexpr std::size_t kPageBytes = 4096;
inline constexpr std::uint32_t kPagesAFrame = 128;
inline constexpr std::uint32_t kRoundsMax = 1000;
inline constexpr std::uint64_t kPageHasData = 1;  ///< bit 0 of a page entry; else the page is zero
inline constexpr std::size_t kErrorTextMax = 4096;
inline constexpr std::size_t kProbesMax = state::kExchangeRoundsMax;  ///< of one migration

struct Hello {
    MigrationId id{};
    ProcessIdentity process;
    Bytes shape;
};
Bytes encode_hello(const Hello& hello);
Result<Hello> decode_hello(std::span<const std::byte> payload);

struct Welcome {
    MigrationId id{};
    ProcessIdentity process;
};
Bytes encode_welcome(const Welcome& welcome);
Result<Welcome> decode_welcome(std::span<const std::byte> payload);

/// ECHO: the source's counter when the question was there, and when this answer goes.
struct Echo {
    time::Count<time::SourceCounter> received;
    time::Count<time::SourceCounter> answered;
};
Bytes encode_echo(const Echo& echo);
/// kMalformed where its length is wrong or it was answered before it was received.
Result<Echo> decode_echo(std::span<const std::byte> payload);

/// FAIL: the error as far as the other side may see it.
Bytes encode_failure(const state::Error& error);
/// The peer's error, as a kPeer error of ours (kBusy stays kBusy).
state::Error decode_failure(std::span<const std::byte> payload);

/// The error for a frame that may not come now.
tl::unexpected<state::Error> unexpected_frame(FrameType got, std::string_view wanted);

/// Receives a frame of one type; a FAIL in its place is the peer's error.
Result<Frame> expect_frame(FrameStream& stream, FrameType type, Deadline deadline);

/// Writes a PAGES payload into memory; kMalformed with the index of the entry that is wrong.
Status apply_pages(std::span<const std::byte> payload, std::span<std::byte> memory,
                   MigrationStats& stats);

}  // namespace continuo::vmm
