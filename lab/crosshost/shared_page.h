// The page that both hosts of `continuo-lab pair` have: memory of an ivshmem device, one piece of
// the machine's memory that two emulators map. What is written here needs no network and no clock,
// so it can carry the truth about both. One process on each host uses it at a time.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "continuo/state/error.h"

namespace continuo::crosshost {

using state::Result;
using state::Status;

/// Which of the two hosts this is.
enum class Side : std::uint8_t { kA, kB };

/// CONTINUO_LAB_NAME, which the lab sets; kUnsupported outside a pair.
Result<Side> this_side();

/// The page's layout. Zero when the hosts boot. Each word is written by one side only; words that
/// one side spins on have a cache line of their own.
struct PageLayout {
    alignas(64) std::atomic<std::uint64_t> arrivals_a;
    alignas(64) std::atomic<std::uint64_t> arrivals_b;
    alignas(64) std::atomic<std::uint64_t> ping;           ///< b: round, or kPingOver
    alignas(64) std::atomic<std::uint64_t> pong;           ///< a: the round that it has answered
    std::atomic<std::uint64_t> pong_counter;               ///< a: its counter when it answered
    alignas(64) std::atomic<std::uint64_t> clock_counter;  ///< a: its counter ...
    std::atomic<std::uint64_t> clock_realtime_ns;          ///< ... its REALTIME at that counter ...
    std::atomic<std::uint64_t> clock_khz;  ///< ... and the counter's frequency as a's kernel has it
};
static_assert(sizeof(PageLayout) <= 4096 && std::atomic<std::uint64_t>::is_always_lock_free);

class SharedPage {
  public:
    /// Maps BAR 2 of the first ivshmem device (PCI 1af4:1110). kUnsupported where there is none.
    static Result<SharedPage> open(Side side);

    Side side() const { return side_; }
    PageLayout& words() { return *words_; }

    /// Waits until the other side has come here as often as this one. kTimeout.
    Status meet(std::chrono::milliseconds timeout = std::chrono::minutes{2});

  private:
    struct Unmap {
        void operator()(PageLayout* words) const;
    };
    SharedPage(Side side, PageLayout* words) : side_{side}, words_{words} {}

    Side side_;
    std::unique_ptr<PageLayout, Unmap> words_;
};

}  // namespace continuo::crosshost
