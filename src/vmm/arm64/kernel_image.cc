#include "kernel_image.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <string>

namespace continuo::vmm::arm64 {

namespace {

using state::ErrorCode;
using state::Result;
using state::Status;
using Bytes = std::span<const std::byte>;

struct Header {
    std::uint32_t code[2];
    std::uint64_t text_offset;
    std::uint64_t image_size;
    std::uint64_t flags;
    std::uint64_t reserved[3];
    std::uint32_t magic;
    std::uint32_t pe_header;  ///< offset in the file; 0: it is no PE file
};
static_assert(sizeof(Header) == 64);

constexpr std::uint32_t kMagic = 0x644d5241;  // "ARM\x64"
constexpr std::uint64_t kBigEndian = 1u << 0;
constexpr std::uint64_t kAlignment = 2ull << 20;
constexpr std::uint64_t kImageMax = 1ull << 30;

tl::unexpected<state::Error> bad(std::uint64_t offset, std::string what,
                                 ErrorCode code = ErrorCode::kMalformed) {
    return state::fail(code, "kernel image, byte " + std::to_string(offset), std::move(what),
                       "give an arm64 Image, unpacked (Debian's vmlinuz is one)");
}

tl::unexpected<state::Error> cut_off(Bytes file, const char* where) {
    return bad(file.size(), std::string{"the file ends within "} + where, ErrorCode::kTruncated);
}

/// A structure at an offset; nullopt where the file ends before it does.
template <class T>
std::optional<T> at(Bytes file, std::uint64_t offset) {
    if (offset > file.size() || file.size() - offset < sizeof(T)) return std::nullopt;
    T value;
    std::memcpy(&value, file.data() + offset, sizeof value);
    return value;
}

bool has(Bytes file, std::uint64_t offset, std::string_view text) {
    return offset <= file.size() && file.size() - offset >= text.size() &&
           std::memcmp(file.data() + offset, text.data(), text.size()) == 0;
}

// ---- Files that are no Image ----

struct OtherFormat {
    std::uint64_t offset;
    std::string_view bytes;
    const char* name;
};

using namespace std::string_view_literals;

constexpr OtherFormat kOtherFormats[] = {
    {0, "\x1f\x8b"sv, "a kernel packed by gzip"},
    {0, "BZh"sv, "a kernel packed by bzip2"},
    {0, "\xfd\x37zXZ\0"sv, "a kernel packed by xz"},
    {0, "\x28\xb5\x2f\xfd"sv, "a kernel packed by zstd"},
    {0, "\x02\x21\x4c\x18"sv, "a kernel packed by lz4"},
    {0, "\x04\x22\x4d\x18"sv, "a kernel packed by lz4"},
    {0, "\x89LZO"sv, "a kernel packed by lzop"},
    {0, "\x7f\x45LF"sv, "an ELF file, not its Image"},
    {0x202, "HdrS"sv, "a bzImage, which is x86-64's"},
};

constexpr std::uint64_t kZbootMagicAt = 4;
constexpr std::uint64_t kZbootPackerAt = 24;

/// The name of the packer in an EFI zboot file (drivers/firmware/efi/libstub/zboot-header.S).
std::string zboot_packer(Bytes file) {
    const auto text = at<std::array<char, 8>>(file, kZbootPackerAt);
    std::string packer;
    for (const char c : text.value_or(std::array<char, 8>{})) {
        if (c < '0' || c > 'z') break;
        packer.push_back(c);
    }
    return packer;
}

tl::unexpected<state::Error> not_an_image(Bytes file) {
    if (has(file, 0, "MZ") && has(file, kZbootMagicAt, "zimg")) {
        return bad(kZbootMagicAt, "an EFI zboot image, packed by " + zboot_packer(file),
                   ErrorCode::kUnsupported);
    }
    for (const OtherFormat& other : kOtherFormats) {
        if (has(file, other.offset, other.bytes))
            return bad(other.offset, other.name, ErrorCode::kUnsupported);
    }
    if (file.size() < sizeof(Header)) return cut_off(file, "the header");
    return bad(offsetof(Header, magic), "this is no arm64 Image");
}

// ---- The PE file that an Image is at the same time ----

struct PeHeader {
    std::uint32_t magic;
    std::uint16_t machine;
    std::uint16_t sections;
    std::uint32_t not_used[3];
    std::uint16_t optional_header_bytes;
    std::uint16_t characteristics;
};
static_assert(sizeof(PeHeader) == 24);

struct PeSection {
    char name[8];
    std::uint32_t memory_bytes;
    std::uint32_t address;
    std::uint32_t file_bytes;
    std::uint32_t file_offset;
    std::uint32_t not_used[4];
};
static_assert(sizeof(PeSection) == 40);

constexpr std::uint32_t kPeMagic = 0x4550;  // "PE\0\0"
constexpr std::uint16_t kPeArm64 = 0xaa64;

/// Does the file hold all the sections that it states?
Status check_sections(Bytes file, std::uint32_t pe_header) {
    const auto pe = at<PeHeader>(file, pe_header);
    if (!pe) return cut_off(file, "the PE header");
    if (pe->magic != kPeMagic || pe->machine != kPeArm64)
        return bad(pe_header, "the PE header is not an arm64 kernel's");
    std::uint64_t next = pe_header + sizeof(PeHeader) + std::uint64_t{pe->optional_header_bytes};
    for (std::uint16_t i = 0; i < pe->sections; ++i, next += sizeof(PeSection)) {
        const auto section = at<PeSection>(file, next);
        if (!section) return cut_off(file, "the PE headers");
        if (std::uint64_t{section->file_offset} + section->file_bytes > file.size())
            return cut_off(file, "the kernel");
    }
    return {};
}

}  // namespace

Result<KernelImage> parse_kernel_image(Bytes file) {
    const auto header = at<Header>(file, 0);
    if (!header || header->magic != kMagic) return not_an_image(file);
    if (header->image_size == 0) {
        return bad(offsetof(Header, image_size), "an Image without a size: older than Linux 3.17",
                   ErrorCode::kUnsupported);
    }
    if ((header->flags & kBigEndian) != 0)
        return bad(offsetof(Header, flags), "a big-endian kernel", ErrorCode::kUnsupported);
    if (header->text_offset >= kAlignment)
        return bad(offsetof(Header, text_offset), "it wants to lie 2 MiB or more from its base");
    if (header->image_size > kImageMax)
        return bad(offsetof(Header, image_size), "it states more than 1 GiB");
    if (header->pe_header != 0) {
        if (auto whole = check_sections(file, header->pe_header); !whole)
            return tl::unexpected(std::move(whole.error()));
    }
    // Behind what the kernel says that it takes lies what others have added: a signature.
    const std::size_t loaded = std::min<std::size_t>(file.size(), header->image_size);
    return KernelImage{header->text_offset, header->image_size, file.first(loaded)};
}

}  // namespace continuo::vmm::arm64
