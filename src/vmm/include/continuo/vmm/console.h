// What a guest has printed and nobody has taken yet. Bounded, so that no guest fills the host's
// memory: where nobody takes anything, a serial port with flow control waits, and what is printed
// all the same is counted as lost.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <string>

namespace continuo::vmm {

/// Any method, any thread.
class Console {
  public:
    static constexpr std::size_t kBytesMax = std::size_t{64} * 1024;

    /// `on_text` is called whenever text has come, on the thread that prints it.
    explicit Console(std::function<void()> on_text) : on_text_{std::move(on_text)} {}

    /// Takes as much as there is room for.
    void put(std::span<const std::byte> bytes);
    bool has_room() const;
    /// What nobody has taken yet; it stays.
    std::string text() const;
    /// The same, and it is gone.
    std::string take();
    /// Bytes for which there was no room.
    std::uint64_t lost_bytes() const;

  private:
    mutable std::mutex mutex_;
    std::function<void()> on_text_;
    std::string text_;
    std::uint64_t lost_bytes_ = 0;
};

}  // namespace continuo::vmm
