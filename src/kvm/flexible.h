// Mirrors of KVM's structures that end in an array, with the ioctl numbers that C gives them: the
// kernel's macro for such arrays makes sizeof 12 instead of 8 in C++, and the ioctl numbers wrong.
#pragma once

#include <linux/ioctl.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace continuo::kvm {

struct CpuidHeader {
    std::uint32_t nent;
    std::uint32_t padding;
};
static_assert(sizeof(CpuidHeader) == 8);

struct MsrListHeader {
    std::uint32_t nmsrs;
};
static_assert(sizeof(MsrListHeader) == 4);

struct MsrsHeader {
    std::uint32_t nmsrs;
    std::uint32_t pad;
};
static_assert(sizeof(MsrsHeader) == 8);

inline constexpr unsigned kKvmIo = 0xae;
inline constexpr unsigned kXsaveBytes = 4096;
inline constexpr unsigned long kIoctlGetMsrIndexList =
    _IOC(_IOC_READ | _IOC_WRITE, kKvmIo, 0x02, sizeof(MsrListHeader));
inline constexpr unsigned long kIoctlGetSupportedCpuid =
    _IOC(_IOC_READ | _IOC_WRITE, kKvmIo, 0x05, sizeof(CpuidHeader));
inline constexpr unsigned long kIoctlSetCpuid2 =
    _IOC(_IOC_WRITE, kKvmIo, 0x90, sizeof(CpuidHeader));
inline constexpr unsigned long kIoctlGetCpuid2 =
    _IOC(_IOC_READ | _IOC_WRITE, kKvmIo, 0x91, sizeof(CpuidHeader));
inline constexpr unsigned long kIoctlGetMsrs =
    _IOC(_IOC_READ | _IOC_WRITE, kKvmIo, 0x88, sizeof(MsrsHeader));
inline constexpr unsigned long kIoctlSetMsrs = _IOC(_IOC_WRITE, kKvmIo, 0x89, sizeof(MsrsHeader));
inline constexpr unsigned long kIoctlGetXsave = _IOC(_IOC_READ, kKvmIo, 0xa4, kXsaveBytes);
inline constexpr unsigned long kIoctlSetXsave = _IOC(_IOC_WRITE, kKvmIo, 0xa5, kXsaveBytes);
inline constexpr unsigned long kIoctlGetXsave2 = _IOC(_IOC_READ, kKvmIo, 0xcf, kXsaveBytes);
static_assert(kIoctlSetCpuid2 == 0x4008ae90 && kIoctlGetMsrs == 0xc008ae88 &&
              kIoctlSetMsrs == 0x4008ae89 && kIoctlGetMsrIndexList == 0xc004ae02);

/// A header and `capacity` entries behind it, zeroed. For set-up calls only: it uses the heap.
template <class Header, class Entry>
class FlexibleBuffer {
  public:
    explicit FlexibleBuffer(std::uint32_t capacity)
        : capacity_{capacity}, bytes_(sizeof(Header) + capacity * sizeof(Entry)) {}

    void* data() { return bytes_.data(); }
    Header& header() { return *reinterpret_cast<Header*>(bytes_.data()); }
    /// The first `count` entries, or all where the kernel claims more than there is room for.
    std::vector<Entry> entries(std::uint32_t count) const {
        std::vector<Entry> out(std::min(count, capacity_));
        if (!out.empty())
            std::memcpy(out.data(), bytes_.data() + sizeof(Header), out.size() * sizeof(Entry));
        return out;
    }
    void set_entries(const std::vector<Entry>& from) {
        if (!from.empty())
            std::memcpy(bytes_.data() + sizeof(Header), from.data(),
                        std::min<std::size_t>(from.size(), capacity_) * sizeof(Entry));
    }

  private:
    std::uint32_t capacity_;
    std::vector<std::byte> bytes_;
};

}  // namespace continuo::kvm
