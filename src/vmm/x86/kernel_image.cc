#include "kernel_image.h"

#include <elf.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <optional>
#include <string>

#include "boot_layout.h"

namespace continuo::vmm {

namespace {

using state::ErrorCode;
using Bytes = std::span<const std::byte>;

constexpr std::uint64_t kFourGib = std::uint64_t{1} << 32;

tl::unexpected<state::Error> bad(std::uint64_t offset, std::string what,
                                 ErrorCode code = ErrorCode::kMalformed) {
    return state::fail(code, "kernel image, byte " + std::to_string(offset), std::move(what),
                       "give a bzImage, an ELF vmlinux or a multiboot payload");
}

/// A structure at an offset; nullopt where the file ends before it does.
template <class T>
std::optional<T> at(Bytes file, std::uint64_t offset) {
    if (offset > file.size() || file.size() - offset < sizeof(T)) return std::nullopt;
    T value;
    std::memcpy(&value, file.data() + offset, sizeof value);
    return value;
}

std::string hex(std::uint64_t value) {
    char text[24];
    std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
    return text;
}

// ---- Linux's setup header ----

constexpr std::uint64_t kSetupHeader = 0x1f1;
constexpr std::uint32_t kHdrS = 0x53726448;
constexpr std::uint16_t kProtocol64 = 0x020c;  // the first with xloadflags
constexpr std::uint16_t kHas64BitEntry = 1u << 0;
constexpr std::uint64_t k64BitEntry = 0x200;
constexpr std::uint64_t kSectorBytes = 512;

bool is_bzimage(Bytes file) {
    return at<std::uint32_t>(file, 0x202) == kHdrS;
}

Result<KernelImage> parse_bzimage(Bytes file) {
    const auto version = at<std::uint16_t>(file, 0x206);
    const auto flags = at<std::uint16_t>(file, 0x236);
    const auto preferred = at<std::uint64_t>(file, 0x258);
    const auto init_size = at<std::uint32_t>(file, 0x260);
    if (!version || !flags || !preferred || !init_size)
        return bad(file.size(), "the setup header is cut off", ErrorCode::kTruncated);
    if (*version < kProtocol64 || (*flags & kHas64BitEntry) == 0)
        return bad(0x206, "a Linux without a 64-bit entry (boot protocol below 2.12, or 32 bits)",
                   ErrorCode::kUnsupported);
    const std::uint64_t sectors = std::max<std::uint64_t>(*at<std::uint8_t>(file, kSetupHeader), 4);
    const std::uint64_t setup_bytes = (sectors + 1) * kSectorBytes;
    const std::uint64_t header_end = 0x202 + std::uint64_t{*at<std::uint8_t>(file, 0x201)};
    if (file.size() <= setup_bytes || file.size() < header_end)
        return bad(file.size(), "the file ends within its real-mode part", ErrorCode::kTruncated);
    const std::uint64_t code_bytes = std::uint64_t{*at<std::uint32_t>(file, 0x1f4)} * 16;
    const Bytes code = file.subspan(setup_bytes);
    if (code.size() < std::max<std::uint64_t>(code_bytes, k64BitEntry + 1))
        return bad(file.size(), "the file ends within its code", ErrorCode::kTruncated);
    KernelImage image;
    image.format = KernelFormat::kBzImage;
    const std::uint64_t memory_bytes = std::max<std::uint64_t>(*init_size, code.size());
    image.segments.push_back({*preferred, code, memory_bytes});
    image.entry = *preferred + k64BitEntry;
    image.mode = EntryMode::kLong;
    image.initrd_end_max = std::uint64_t{*at<std::uint32_t>(file, 0x22c)} + 1;
    image.command_line_max = *at<std::uint32_t>(file, 0x238);
    image.setup_header = file.subspan(kSetupHeader, header_end - kSetupHeader);
    return image;
}

// ---- ELF ----

constexpr std::uint32_t kNoteXenPhys32Entry = 18;

/// A program header of either class.
struct ElfSegment {
    std::uint32_t type;
    std::uint64_t offset;
    std::uint64_t gpa;
    std::uint64_t file_bytes;
    std::uint64_t memory_bytes;
    std::uint64_t align;
};

struct ElfFile {
    bool wide = false;
    std::uint64_t entry = 0;
    std::vector<ElfSegment> segments;
};

bool is_elf(Bytes file) {
    return file.size() >= SELFMAG && std::memcmp(file.data(), ELFMAG, SELFMAG) == 0;
}

template <class Header, class Program>
Result<ElfFile> read_elf_as(Bytes file, std::uint16_t machine) {
    const auto header = at<Header>(file, 0);
    if (!header) return bad(file.size(), "the ELF header is cut off", ErrorCode::kTruncated);
    if (header->e_machine != machine || header->e_ident[EI_DATA] != ELFDATA2LSB)
        return bad(offsetof(Header, e_machine), "an ELF file for another processor than x86",
                   ErrorCode::kUnsupported);
    if (header->e_type != ET_EXEC || header->e_phentsize != sizeof(Program))
        return bad(offsetof(Header, e_type), "an ELF file that is no executable");
    ElfFile elf;
    elf.entry = header->e_entry;
    for (std::uint64_t i = 0; i < header->e_phnum; ++i) {
        const auto offset = header->e_phoff + i * sizeof(Program);
        const auto program = at<Program>(file, offset);
        if (!program) return bad(offset, "the program headers are cut off", ErrorCode::kTruncated);
        elf.segments.push_back({program->p_type, program->p_offset, program->p_paddr,
                                program->p_filesz, program->p_memsz, program->p_align});
    }
    return elf;
}

Result<ElfFile> read_elf(Bytes file) {
    const auto kind = at<std::uint8_t>(file, EI_CLASS);
    if (kind == ELFCLASS64) {
        auto elf = read_elf_as<Elf64_Ehdr, Elf64_Phdr>(file, EM_X86_64);
        if (elf) elf->wide = true;
        return elf;
    }
    if (kind == ELFCLASS32) return read_elf_as<Elf32_Ehdr, Elf32_Phdr>(file, EM_386);
    return bad(EI_CLASS, "an ELF file of neither 32 nor 64 bits");
}

/// The bytes of a segment in the file.
Result<Bytes> bytes_of(Bytes file, const ElfSegment& segment) {
    if (segment.offset > file.size() || file.size() - segment.offset < segment.file_bytes)
        return bad(segment.offset, "a segment reaches past the file's end", ErrorCode::kTruncated);
    return file.subspan(segment.offset, segment.file_bytes);
}

/// The entry in one PT_NOTE segment. Names and descriptors are padded to four bytes.
std::optional<std::uint64_t> pvh_entry_in(Bytes notes) {
    const auto padded = [](std::uint32_t bytes) { return (std::uint64_t{bytes} + 3) / 4 * 4; };
    std::uint64_t offset = 0;
    while (const auto note = at<Elf32_Nhdr>(notes, offset)) {
        const std::uint64_t name = offset + sizeof *note;
        const std::uint64_t value = name + padded(note->n_namesz);
        const auto owner = at<std::uint32_t>(notes, name);
        constexpr std::uint32_t kXen = 0x006e6558;  // "Xen" and its end
        if (note->n_type == kNoteXenPhys32Entry && note->n_namesz == 4 && owner == kXen)
            return at<std::uint32_t>(notes, value);
        offset = value + padded(note->n_descsz);
    }
    return std::nullopt;
}

Result<std::optional<std::uint64_t>> find_pvh_entry(Bytes file, const ElfFile& elf) {
    for (const ElfSegment& segment : elf.segments) {
        if (segment.type != PT_NOTE) continue;
        const auto notes = bytes_of(file, segment);
        if (!notes) return tl::unexpected(notes.error());
        if (const auto entry = pvh_entry_in(*notes)) return entry;
    }
    return std::optional<std::uint64_t>{};
}

Result<KernelImage> load_elf(Bytes file, const ElfFile& elf) {
    KernelImage image;
    for (const ElfSegment& segment : elf.segments) {
        if (segment.type != PT_LOAD || segment.memory_bytes == 0) continue;
        const auto bytes = bytes_of(file, segment);
        if (!bytes) return tl::unexpected(bytes.error());
        if (segment.file_bytes > segment.memory_bytes)
            return bad(segment.offset, "a segment has more bytes in the file than in memory");
        image.segments.push_back({segment.gpa, *bytes, segment.memory_bytes});
    }
    image.initrd_end_max = kFourGib;
    image.command_line_max = boot::kCommandLineBytes - 1;
    return image;
}

// ---- Multiboot 1 ----

constexpr std::uint32_t kMultibootMagic = 0x1badb002;
constexpr std::uint64_t kMultibootSearch = 8192;
constexpr std::uint32_t kMultibootKnown = 0x3;  // of the mandatory flags: aligned modules, memory
constexpr std::uint32_t kMultibootMandatory = 0xffff;
constexpr std::uint32_t kMultibootAddresses = 1u << 16;

struct MultibootHeader {
    std::uint32_t magic;
    std::uint32_t flags;
    std::uint32_t checksum;
    // Valid with kMultibootAddresses:
    std::uint32_t header_address;
    std::uint32_t load_address;
    std::uint32_t load_end;
    std::uint32_t bss_end;
    std::uint32_t entry;
};
static_assert(sizeof(MultibootHeader) == 32);

/// The header's offset: in the first 8192 bytes, on a boundary of four, its first three words
/// adding up to 0.
std::optional<std::uint64_t> find_multiboot(Bytes file) {
    for (std::uint64_t offset = 0; offset + 12 <= kMultibootSearch; offset += 4) {
        const auto magic = at<std::uint32_t>(file, offset);
        const auto flags = at<std::uint32_t>(file, offset + 4);
        const auto checksum = at<std::uint32_t>(file, offset + 8);
        if (!checksum) return std::nullopt;
        if (*magic == kMultibootMagic && *magic + *flags + *checksum == 0) return offset;
    }
    return std::nullopt;
}

Result<KernelImage> load_by_addresses(Bytes file, std::uint64_t offset) {
    const auto header = at<MultibootHeader>(file, offset);
    if (!header) return bad(offset, "the multiboot header is cut off", ErrorCode::kTruncated);
    const std::uint64_t before = std::uint64_t{header->header_address} - header->load_address;
    if (header->header_address < header->load_address || before > offset)
        return bad(offset + 12, "the multiboot header's addresses contradict each other");
    const Bytes rest = file.subspan(offset - before);
    const std::uint64_t load = header->load_address;
    const std::uint64_t end = header->load_end == 0 ? load + rest.size() : header->load_end;
    if (end < load || end - load > rest.size())
        return bad(offset + 20, "the file ends before the multiboot header's load_end_addr");
    const std::uint64_t memory_end = std::max<std::uint64_t>(end, header->bss_end);
    KernelImage image;
    image.segments.push_back({load, rest.first(end - load), memory_end - load});
    image.entry = header->entry;
    return image;
}

Result<KernelImage> parse_multiboot(Bytes file, std::uint64_t offset) {
    const std::uint32_t flags = *at<std::uint32_t>(file, offset + 4);
    if ((flags & kMultibootMandatory & ~kMultibootKnown) != 0)
        return bad(offset + 4,
                   "the payload demands of its loader what this one lacks, flags " + hex(flags),
                   ErrorCode::kUnsupported);
    auto image = [&]() -> Result<KernelImage> {
        if ((flags & kMultibootAddresses) != 0) return load_by_addresses(file, offset);
        const auto elf = read_elf(file);
        if (!elf) return tl::unexpected(elf.error());
        auto loaded = load_elf(file, *elf);
        if (loaded) loaded->entry = elf->entry;
        return loaded;
    }();
    if (!image) return image;
    image->format = KernelFormat::kMultiboot;
    image->initrd_end_max = kFourGib;
    image->command_line_max = boot::kCommandLineBytes - 1;
    return image;
}

Result<KernelImage> parse_elf(Bytes file) {
    const auto elf = read_elf(file);
    if (!elf) return tl::unexpected(elf.error());
    const auto pvh = find_pvh_entry(file, *elf);
    if (!pvh) return tl::unexpected(pvh.error());
    const auto multiboot = find_multiboot(file);
    if (!*pvh && multiboot) return parse_multiboot(file, *multiboot);
    if (!*pvh && !elf->wide)
        return bad(0, "an ELF file of 32 bits with neither a PVH entry nor a multiboot header");
    auto image = load_elf(file, *elf);
    if (!image) return image;
    image->format = *pvh ? KernelFormat::kPvh : KernelFormat::kElfLinux;
    image->entry = *pvh ? **pvh : elf->entry;
    image->mode = *pvh ? EntryMode::kProtected : EntryMode::kLong;
    return image;
}

// ---- What holds for all ----

Status check_segments(KernelImage& image) {
    auto& segments = image.segments;
    std::sort(segments.begin(), segments.end(),
              [](const LoadSegment& a, const LoadSegment& b) { return a.gpa < b.gpa; });
    if (segments.empty()) return bad(0, "there is nothing to load");
    bool entered = false;
    std::uint64_t end = boot::kHighMemory;
    for (const LoadSegment& segment : segments) {
        if (segment.gpa < end)
            return bad(0, "the segment at " + hex(segment.gpa) + " begins below " + hex(end) +
                              ", where the boot tables or another segment lie");
        if (segment.gpa >= kFourGib || segment.memory_bytes > kFourGib - segment.gpa)
            return bad(0, "the segment at " + hex(segment.gpa) + " ends beyond 4 GiB");
        end = segment.gpa + segment.memory_bytes;
        entered = entered || (image.entry >= segment.gpa && image.entry < end);
    }
    if (!entered) return bad(0, "the entry " + hex(image.entry) + " is in no segment");
    image.memory_end = end;
    return {};
}

Result<KernelImage> parse_any(Bytes file) {
    if (is_bzimage(file)) return parse_bzimage(file);
    if (is_elf(file)) return parse_elf(file);
    if (const auto offset = find_multiboot(file)) return parse_multiboot(file, *offset);
    return bad(0, "neither a bzImage nor ELF, and without a multiboot header");
}

}  // namespace

Result<KernelImage> parse_kernel_image(std::span<const std::byte> file) {
    auto image = parse_any(file);
    if (!image) return image;
    if (auto good = check_segments(*image); !good) return tl::unexpected(std::move(good.error()));
    return image;
}

}  // namespace continuo::vmm
