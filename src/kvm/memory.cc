#include "continuo/kvm/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>

namespace continuo::kvm {

namespace {

std::string describe_range(const char* verb, std::uint64_t gpa, std::uint64_t length) {
    char text[96];
    std::snprintf(text, sizeof text, "%s %llu bytes at GPA 0x%llx", verb,
                  static_cast<unsigned long long>(length), static_cast<unsigned long long>(gpa));
    return text;
}

}  // namespace

Result<GuestMemory> GuestMemory::create(std::uint64_t size, std::uint64_t base) {
    const bool aligned = size % kPageSize == 0 && base % kPageSize == 0;
    if (size == 0 || !aligned || base + size < base || size > (std::uint64_t{1} << 46)) {
        return state::fail(state::ErrorCode::kInvalidArgument, describe_range("map", base, size),
                           "guest memory must be whole pages of 4096 bytes, below 2^46 bytes",
                           "give a size in MiB");
    }
    GuestMemory memory;
    memory.fd_ = Fd{::memfd_create("continuo-guest", MFD_CLOEXEC)};
    if (!memory.fd_) return kernel_failure("memfd_create", errno);
    if (::ftruncate(memory.fd_.get(), static_cast<off_t>(size)) != 0)
        return kernel_failure("ftruncate of guest memory", errno);
    void* host = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
                        memory.fd_.get(), 0);
    if (host == MAP_FAILED)
        return kernel_failure("mmap of guest memory", errno, "give the guest less memory");
    memory.host_ = static_cast<std::byte*>(host);
    memory.ranges_[0] = {base, size};
    memory.size_ = size;
    return memory;
}

Result<GuestMemory> GuestMemory::create_around(std::uint64_t size, const AddressRange& hole) {
    constexpr std::uint64_t kWordOfPages = 64 * kPageSize;
    CONTINUO_CHECK(hole.begin != 0 && hole.begin % kWordOfPages == 0 &&
                   hole.bytes % kWordOfPages == 0);
    auto memory = create(size);
    if (!memory || size <= hole.begin) return memory;
    memory->ranges_ = {AddressRange{0, hole.begin},
                       AddressRange{hole.begin + hole.bytes, size - hole.begin}};
    return memory;
}

Status GuestMemory::find_touched_pages(std::span<std::uint64_t> bitmap) const {
    CONTINUO_CHECK(bitmap.size() >= (size_ / kPageSize + 63) / 64);
    std::fill(bitmap.begin(), bitmap.end(), 0);
    off_t end = 0;
    for (;;) {
        const off_t begin = ::lseek(fd_.get(), end, SEEK_DATA);
        if (begin < 0 && errno == ENXIO) return {};  // nothing behind `end`
        if (begin >= 0) end = ::lseek(fd_.get(), begin, SEEK_HOLE);
        if (begin < 0 || end < 0) return kernel_failure("lseek in guest memory", errno);
        const auto stop = static_cast<std::uint64_t>(end) / kPageSize;
        for (auto page = static_cast<std::uint64_t>(begin) / kPageSize; page < stop; ++page)
            bitmap[page / 64] |= std::uint64_t{1} << (page % 64);
    }
}

GuestMemory::GuestMemory(GuestMemory&& other) noexcept
    : fd_{std::move(other.fd_)},
      host_{std::exchange(other.host_, nullptr)},
      ranges_{std::exchange(other.ranges_, {})},
      size_{std::exchange(other.size_, 0)} {}

GuestMemory& GuestMemory::operator=(GuestMemory&& other) noexcept {
    std::swap(fd_, other.fd_);
    std::swap(host_, other.host_);
    std::swap(ranges_, other.ranges_);
    std::swap(size_, other.size_);
    return *this;
}

GuestMemory::~GuestMemory() {
    if (host_ != nullptr) ::munmap(host_, size_);
}

std::optional<std::uint64_t> GuestMemory::offset_of(std::uint64_t gpa) const {
    std::uint64_t before = 0;
    for (const AddressRange& range : ranges()) {
        if (gpa >= range.begin && gpa - range.begin < range.bytes)
            return before + (gpa - range.begin);
        before += range.bytes;
    }
    return std::nullopt;
}

bool GuestMemory::contains(std::uint64_t gpa, std::uint64_t length) const {
    for (const AddressRange& range : ranges()) {
        const bool begins = gpa >= range.begin && gpa - range.begin <= range.bytes;
        if (begins && length <= range.bytes - (gpa - range.begin)) return true;
    }
    return false;
}

Result<std::span<std::byte>> GuestMemory::at(std::uint64_t gpa, std::uint64_t length) const {
    if (!contains(gpa, length)) {
        std::string memory;
        for (const AddressRange& range : ranges())
            memory += describe_range(memory.empty() ? "" : " and", range.begin, range.bytes);
        return state::fail(state::ErrorCode::kGuest, describe_range("access", gpa, length),
                           "the address lies outside the guest's memory, which is " + memory);
    }
    // No bytes, just behind the last one, are inside as well.
    return std::span{host_ + offset_of(gpa).value_or(size_), static_cast<std::size_t>(length)};
}

Status GuestMemory::read(std::uint64_t gpa, std::span<std::byte> into) const {
    return at(gpa, into.size()).map([&](std::span<std::byte> bytes) {
        std::memcpy(into.data(), bytes.data(), into.size());
    });
}

Status GuestMemory::write(std::uint64_t gpa, std::span<const std::byte> from) {
    return at(gpa, from.size()).map([&](std::span<std::byte> bytes) {
        std::memcpy(bytes.data(), from.data(), from.size());
    });
}

Result<std::byte*> GuestMemory::aligned_bytes(std::uint64_t gpa, std::uint64_t length) const {
    if (gpa % length != 0) {
        return state::fail(state::ErrorCode::kGuest, describe_range("access", gpa, length),
                           "a shared word must be aligned to its size");
    }
    return at(gpa, length).map([](std::span<std::byte> bytes) { return bytes.data(); });
}

}  // namespace continuo::kvm
