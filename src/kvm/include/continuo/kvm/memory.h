// Guest memory: one mmap'd region (a memfd, so that a second mapping or process can share it) seen
// by guest-physical address, with a hole in the addresses where a machine has devices there. Every
// access is checked against the region: a guest may hand us any address (its clock page's, say),
// and an address outside is a kGuest error that names it.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>

#include "continuo/kvm/fd.h"

namespace continuo::kvm {

inline constexpr std::uint64_t kPageSize = 4096;

/// A stretch of guest-physical addresses.
struct AddressRange {
    std::uint64_t begin = 0;
    std::uint64_t bytes = 0;
};

/// The memory of a guest: `size` bytes from GPA `base` on, leaving out a hole where one is wanted.
/// To the host it is one piece: byte n of it is byte n of the guest's memory in the order of
/// addresses. Move-only. Plain reads and writes race
/// with running vCPUs as DMA does; words that are shared while vCPUs run go through load and store.
class GuestMemory {
  public:
    /// Maps `size` bytes of zeroes at GPA `base`; both must be multiples of 4096, and size not 0.
    /// Pages that nobody touches cost nothing.
    static Result<GuestMemory> create(std::uint64_t size, std::uint64_t base = 0);
    /// The same, but no byte of it lies in `hole`: what would goes on behind it. Begin and length
    /// of the hole are multiples of 64 pages, so that dirty logs of both sides meet at a whole
    /// word.
    static Result<GuestMemory> create_around(std::uint64_t size, const AddressRange& hole);

    GuestMemory(GuestMemory&& other) noexcept;
    GuestMemory& operator=(GuestMemory&& other) noexcept;
    ~GuestMemory();

    /// The addresses that it has, in their order.
    std::span<const AddressRange> ranges() const {
        return std::span{ranges_}.first(ranges_[1].bytes == 0 ? 1 : 2);
    }
    /// Bytes of it, the hole not counted.
    std::uint64_t size() const { return size_; }
    std::byte* host() const { return host_; }
    int fd() const { return fd_.get(); }

    /// Which byte of it is at this address; nullopt where none is.
    std::optional<std::uint64_t> offset_of(std::uint64_t gpa) const;
    /// The host's view of [gpa, gpa + length). kGuest where any byte of it lies outside. No heap
    /// use where it succeeds.
    Result<std::span<std::byte>> at(std::uint64_t gpa, std::uint64_t length) const;
    /// True where [gpa, gpa + length) lies inside; no wrap.
    bool contains(std::uint64_t gpa, std::uint64_t length) const;

    /// One bit for each page that was ever touched, bit 0 of word 0 first; the others are zeroes,
    /// and looking at one would give it memory. `bitmap` is in whole words, at least a bit a page.
    Status find_touched_pages(std::span<std::uint64_t> bitmap) const;

    Status read(std::uint64_t gpa, std::span<std::byte> into) const;
    Status write(std::uint64_t gpa, std::span<const std::byte> from);

    /// A struct's bytes, copied. T is trivially copyable: every bit pattern is a value of it.
    template <class T>
    Result<T> read_object(std::uint64_t gpa) const {
        static_assert(std::is_trivially_copyable_v<T>);
        T value{};
        if (auto done = read(gpa, std::as_writable_bytes(std::span{&value, 1})); !done)
            return tl::unexpected(std::move(done.error()));
        return value;
    }
    template <class T>
    Status write_object(std::uint64_t gpa, const T& value) {
        static_assert(std::is_trivially_copyable_v<T>);
        return write(gpa, std::as_bytes(std::span{&value, 1}));
    }

    /// An aligned word, acquire: vCPUs may write it meanwhile. kGuest where it lies outside or
    /// misaligned.
    template <class T>
    Result<T> load(std::uint64_t gpa) const {
        auto word = aligned<T>(gpa);
        if (!word) return tl::unexpected(std::move(word.error()));
        return std::atomic_ref<T>{**word}.load(std::memory_order_acquire);
    }
    /// An aligned word, release.
    template <class T>
    Status store(std::uint64_t gpa, T value) {
        auto word = aligned<T>(gpa);
        if (!word) return tl::unexpected(std::move(word.error()));
        std::atomic_ref<T>{**word}.store(value, std::memory_order_release);
        return {};
    }

  private:
    GuestMemory() = default;
    Result<std::byte*> aligned_bytes(std::uint64_t gpa, std::uint64_t length) const;
    template <class T>
    Result<T*> aligned(std::uint64_t gpa) const {
        static_assert(std::is_integral_v<T>);
        return aligned_bytes(gpa, sizeof(T)).map([](std::byte* at) {
            return reinterpret_cast<T*>(at);
        });
    }

    Fd fd_;
    std::byte* host_ = nullptr;
    std::array<AddressRange, 2> ranges_{};
    std::uint64_t size_ = 0;
};

}  // namespace continuo::kvm
