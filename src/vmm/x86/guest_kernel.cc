// Puts a kernel, its initrd and what its boot protocol hands over into memory, and vCPU 0 at its
// entry.
#include "continuo/vmm/guest_kernel.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <vector>

#include "acpi.h"
#include "boot_layout.h"
#include "devices.h"
#include "flat_segment.h"
#include "guest_writer.h"
#include "kernel_image.h"

namespace continuo::vmm {

namespace {

using state::ErrorCode;

// ---- Memory ----

constexpr std::uint32_t kRam = 1;
constexpr std::uint32_t kReserved = 2;

struct MemoryRange {
    std::uint64_t begin;
    std::uint64_t bytes;
    std::uint32_t type;
};

/// What the VM has as RAM, but for what lies between a PC's 640 KiB and 1 MiB.
std::vector<MemoryRange> memory_map(std::span<const kvm::AddressRange> ram) {
    std::vector<MemoryRange> map{
        {0, boot::kLowMemoryEnd, kRam},
        {boot::kLowMemoryEnd, boot::kHighMemory - boot::kLowMemoryEnd, kReserved},
        {boot::kHighMemory, ram[0].bytes - boot::kHighMemory, kRam}};
    for (const kvm::AddressRange& range : ram.subspan(1))
        map.push_back({range.begin, range.bytes, kRam});
    return map;
}

/// What every boot protocol is told of.
struct Handover {
    std::span<const kvm::AddressRange> ram;  ///< the first of it from 0 on
    std::uint64_t initrd = 0;                ///< GPA; 0: none
    std::uint64_t initrd_bytes = 0;
    std::string command_line;
};

// ---- Linux's boot_params, by offset (Documentation/arch/x86/zero-page.rst) ----

void put_zero_page(GuestWriter& out, const KernelImage& image, const Handover& handover) {
    const auto field = [&](std::uint64_t offset, auto value) {
        out.put(boot::kZeroPage + offset, value);
    };
    if (image.setup_header.empty()) {
        // An ELF file has no setup header to begin with.
        field(0x1fe, std::uint16_t{0xaa55});
        field(0x202, std::uint32_t{0x53726448});
        field(0x206, std::uint16_t{0x020c});
        field(0x230, std::uint32_t{0x1000000});
    } else {
        out.put_bytes(boot::kZeroPage + 0x1f1, image.setup_header);
    }
    field(0x070, std::uint64_t{acpi::kTables});
    field(0x1fa, std::uint16_t{0xffff});  // video mode: the normal one
    field(0x210, std::uint8_t{0xff});     // a loader without a number
    field(0x218, static_cast<std::uint32_t>(handover.initrd));
    field(0x21c, static_cast<std::uint32_t>(handover.initrd_bytes));
    field(0x228, static_cast<std::uint32_t>(boot::kCommandLine));
    const auto map = memory_map(handover.ram);
    field(0x1e8, static_cast<std::uint8_t>(map.size()));
    for (std::size_t i = 0; i < map.size(); ++i) {
        const std::uint64_t entry = 0x2d0 + 20 * i;
        field(entry, map[i].begin);
        field(entry + 8, map[i].bytes);
        field(entry + 16, map[i].type);
    }
}

// ---- PVH (xen/include/public/arch-x86/hvm/start_info.h) ----

struct HvmStartInfo {
    std::uint32_t magic = 0x336ec578;
    std::uint32_t version = 1;
    std::uint32_t flags = 0;
    std::uint32_t modules = 0;
    std::uint64_t module_list = 0;
    std::uint64_t command_line = boot::kCommandLine;
    std::uint64_t rsdp = acpi::kTables;
    std::uint64_t memory_map = boot::kMemoryMap;
    std::uint32_t memory_map_entries = 0;
    std::uint32_t reserved = 0;
};
static_assert(sizeof(HvmStartInfo) == 56);

struct HvmModule {
    std::uint64_t gpa;
    std::uint64_t bytes;
    std::uint64_t command_line;
    std::uint64_t reserved;
};
static_assert(sizeof(HvmModule) == 32);

struct HvmMemoryRange {
    std::uint64_t begin;
    std::uint64_t bytes;
    std::uint32_t type;
    std::uint32_t reserved;
};
static_assert(sizeof(HvmMemoryRange) == 24);

void put_start_info(GuestWriter& out, const Handover& handover) {
    HvmStartInfo info;
    if (handover.initrd != 0) {
        info.modules = 1;
        info.module_list = boot::kStartInfo + sizeof info;
        out.put(info.module_list, HvmModule{handover.initrd, handover.initrd_bytes, 0, 0});
    }
    for (const MemoryRange& range : memory_map(handover.ram))
        out.put(boot::kMemoryMap + sizeof(HvmMemoryRange) * info.memory_map_entries++,
                HvmMemoryRange{range.begin, range.bytes, range.type, 0});
    out.put(boot::kStartInfo, info);
}

// ---- Multiboot 1 (its specification, 3.3) ----

constexpr std::uint32_t kMultibootLoaded = 0x2badb002;

struct MultibootInfo {
    std::uint32_t flags = 0;
    std::uint32_t memory_lower_kib = 0;
    std::uint32_t memory_upper_kib = 0;  ///< from 1 MiB up
    std::uint32_t boot_device = 0;
    std::uint32_t command_line = 0;
    std::uint32_t modules = 0;
    std::uint32_t module_list = 0;
    std::uint32_t symbols[4] = {};
    std::uint32_t memory_map_bytes = 0;
    std::uint32_t memory_map = 0;
    std::uint32_t rest[7] = {};
};
static_assert(sizeof(MultibootInfo) == 80);

constexpr std::uint32_t kInfoMemory = 1u << 0;
constexpr std::uint32_t kInfoCommandLine = 1u << 2;
constexpr std::uint32_t kInfoModules = 1u << 3;
constexpr std::uint32_t kInfoMemoryMap = 1u << 6;

struct MultibootModule {
    std::uint32_t begin;
    std::uint32_t end;
    std::uint32_t text;
    std::uint32_t reserved;
};
static_assert(sizeof(MultibootModule) == 16);

/// 24 bytes, of which the first four do not count themselves.
struct [[gnu::packed]] MultibootRange {
    std::uint32_t bytes_that_follow;
    std::uint64_t begin;
    std::uint64_t bytes;
    std::uint32_t type;
};
static_assert(sizeof(MultibootRange) == 24);

void put_multiboot_info(GuestWriter& out, const Handover& handover) {
    MultibootInfo info;
    info.flags = kInfoMemory | kInfoCommandLine | kInfoMemoryMap;
    info.memory_lower_kib = static_cast<std::uint32_t>(boot::kLowMemoryEnd >> 10);
    info.memory_upper_kib =
        static_cast<std::uint32_t>((handover.ram[0].bytes - boot::kHighMemory) >> 10);
    info.command_line = static_cast<std::uint32_t>(boot::kCommandLine);
    if (handover.initrd != 0) {
        info.flags |= kInfoModules;
        info.modules = 1;
        info.module_list = static_cast<std::uint32_t>(boot::kStartInfo + sizeof info);
        const std::uint64_t end = handover.initrd + handover.initrd_bytes;
        out.put(info.module_list, MultibootModule{static_cast<std::uint32_t>(handover.initrd),
                                                  static_cast<std::uint32_t>(end),
                                                  static_cast<std::uint32_t>(boot::kNames), 0});
        out.put_bytes(boot::kNames, std::as_bytes(std::span{"initrd"}));
    }
    info.memory_map = static_cast<std::uint32_t>(boot::kMemoryMap);
    for (const MemoryRange& range : memory_map(handover.ram)) {
        out.put(boot::kMemoryMap + info.memory_map_bytes,
                MultibootRange{sizeof(MultibootRange) - 4, range.begin, range.bytes, range.type});
        info.memory_map_bytes += sizeof(MultibootRange);
    }
    out.put(boot::kStartInfo, info);
}

// ---- Entering ----

constexpr std::uint16_t kCodeSelector = 0x10;  // __BOOT_CS
constexpr std::uint16_t kDataSelector = 0x18;  // __BOOT_DS
constexpr std::uint64_t kDescriptors32[] = {0, 0, 0x00cf9b000000ffff, 0x00cf93000000ffff};
constexpr std::uint64_t kDescriptors64[] = {0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff};
constexpr std::uint64_t kCr0Protected = 0x11;     // ET PE
constexpr std::uint64_t kCr0Paging = 0x80000011;  // PG ET PE
constexpr std::uint64_t kCr4Pae = 0x20;
constexpr std::uint64_t kEferLongMode = 0x500;  // LMA LME
constexpr std::uint64_t kPagePresentWrite = 0x3;
constexpr std::uint64_t kPageLarge = 0x80;
constexpr std::uint64_t kLargePage = 2ull << 20;
constexpr std::uint64_t kPageDirectories = 4;  // a GiB each

/// The first 4 GiB, identity-mapped in large pages.
void put_page_tables(GuestWriter& out) {
    constexpr std::uint64_t kPdpt = boot::kPageTables + kvm::kPageSize;
    constexpr std::uint64_t kDirectories = kPdpt + kvm::kPageSize;
    out.put(boot::kPageTables, kPdpt | kPagePresentWrite);
    for (std::uint64_t i = 0; i < kPageDirectories; ++i)
        out.put(kPdpt + 8 * i, (kDirectories + i * kvm::kPageSize) | kPagePresentWrite);
    for (std::uint64_t i = 0; i < kPageDirectories * 512; ++i)
        out.put(kDirectories + 8 * i, (i * kLargePage) | kPagePresentWrite | kPageLarge);
}

void put_descriptors(GuestWriter& out, EntryMode mode) {
    out.put_bytes(boot::kGdt, std::as_bytes(std::span{mode == EntryMode::kLong ? kDescriptors64
                                                                               : kDescriptors32}));
}

Status set_segments(kvm::Vcpu& vcpu, EntryMode mode) {
    auto sregs = vcpu.sregs();
    if (!sregs) return tl::unexpected(std::move(sregs.error()));
    const bool wide = mode == EntryMode::kLong;
    sregs->cs = flat_code(kCodeSelector, wide ? CodeWidth::k64 : CodeWidth::k32);
    sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = flat_data(kDataSelector);
    sregs->gdt.base = boot::kGdt;
    sregs->gdt.limit = sizeof kDescriptors32 - 1;
    sregs->idt.base = 0;
    sregs->idt.limit = 0;
    sregs->cr0 = wide ? kCr0Paging : kCr0Protected;
    sregs->cr3 = wide ? boot::kPageTables : 0;
    sregs->cr4 = wide ? kCr4Pae : 0;
    sregs->efer = wide ? kEferLongMode : 0;
    return vcpu.set_sregs(*sregs);
}

Status set_entry_registers(kvm::Vcpu& vcpu, const KernelImage& image) {
    kvm_regs regs{};
    regs.rip = image.entry;
    regs.rflags = 2;
    switch (image.format) {
        case KernelFormat::kBzImage:
        case KernelFormat::kElfLinux:
            regs.rsi = boot::kZeroPage;
            break;
        case KernelFormat::kPvh:
            regs.rbx = boot::kStartInfo;
            break;
        case KernelFormat::kMultiboot:
            regs.rax = kMultibootLoaded;
            regs.rbx = boot::kStartInfo;
            break;
        case KernelFormat::kArm64Image:
            break;  // not parsed here
    }
    return vcpu.set_regs(regs);
}

/// As firmware leaves it: MTRRs on, memory write-back.
Status set_memory_type(kvm::Vcpu& vcpu) {
    constexpr std::uint32_t kMtrrDefaultType = 0x2ff;
    constexpr std::uint64_t kEnabled = 1u << 11;
    constexpr std::uint64_t kWriteBack = 6;
    return vcpu.set_msr(kMtrrDefaultType, kEnabled | kWriteBack);
}

// ---- Placing ----

tl::unexpected<state::Error> no_room(const GuestKernel& kernel, std::string what) {
    return state::fail(ErrorCode::kInvalidArgument, kernel.name, std::move(what),
                       "give the VM more memory (--memory)");
}

/// The highest whole pages below the limit: far from where kernels unpack themselves.
Result<std::uint64_t> place_initrd(const GuestKernel& kernel, const KernelImage& image,
                                   std::uint64_t memory_bytes) {
    if (kernel.initrd.empty()) return std::uint64_t{0};
    const std::uint64_t limit = std::min(memory_bytes, image.initrd_end_max);
    const std::uint64_t bytes = kernel.initrd.size();
    if (bytes <= limit) {
        const std::uint64_t at = (limit - bytes) / kvm::kPageSize * kvm::kPageSize;
        if (at >= image.memory_end) return at;
    }
    return no_room(kernel, std::to_string(bytes) +
                               " bytes of initrd do not fit between the kernel's end, " +
                               std::to_string(image.memory_end) + ", and " + std::to_string(limit));
}

Result<Handover> make_handover(const GuestKernel& kernel, const KernelImage& image,
                               const kvm::GuestMemory& memory) {
    // What is loaded lies below the devices' addresses, where every boot protocol reaches it.
    const std::uint64_t memory_bytes = memory.ranges()[0].bytes;
    if (image.memory_end > memory_bytes)
        return no_room(kernel,
                       "it needs memory up to " + std::to_string(image.memory_end) + " bytes");
    Handover handover;
    handover.ram = memory.ranges();
    handover.command_line = image.format == KernelFormat::kMultiboot
                                ? kernel.name + " " + kernel.command_line
                                : kernel.command_line;
    const std::size_t room =
        std::min<std::size_t>(image.command_line_max, boot::kCommandLineBytes - 1);
    if (handover.command_line.size() > room)
        return state::fail(ErrorCode::kInvalidArgument, "command line",
                           std::to_string(handover.command_line.size()) +
                               " characters; this kernel takes " + std::to_string(room));
    const auto initrd = place_initrd(kernel, image, memory_bytes);
    if (!initrd) return tl::unexpected(initrd.error());
    handover.initrd = *initrd;
    handover.initrd_bytes = kernel.initrd.size();
    return handover;
}

acpi::TimeDevices time_devices(const GuestKernel& kernel) {
    acpi::TimeDevices devices;
    if (kernel.notice) devices.notice_page = boot::kNoticePage;
    devices.generation_page = boot::kGenerationPage;
    if (kernel.vmclock) devices.vmclock_page = boot::kVmclockPage;
    return devices;
}

Status add_time_devices(VirtualMachine& machine, const GuestKernel& kernel) {
    const GuestPages pages{machine.memory(),
                           [&machine](std::uint64_t gpa) { machine.mark_dirty(gpa); }};
    Devices& devices = machine.board().devices();
    if (auto done = devices.add_generation(pages, boot::kGenerationPage); !done) return done;
    if (kernel.notice) {
        auto done = devices.add_notice(pages, boot::kNoticePage, kernel.release_after_ns);
        if (!done) return done;
    }
    if (!kernel.vmclock) return {};
    if (auto done = devices.add_vmclock(pages, {boot::kVmclockPage, {}}); !done) return done;
    return devices.vmclock()->start(std::nullopt);
}

Status fill_memory(VirtualMachine& machine, const GuestKernel& kernel, const KernelImage& image,
                   const Handover& handover) {
    GuestWriter out{machine.memory()};
    for (const LoadSegment& segment : image.segments)
        out.put_bytes(segment.gpa, segment.bytes);
    if (handover.initrd != 0) out.put_bytes(handover.initrd, kernel.initrd);
    out.put_bytes(acpi::kTables, acpi::tables(machine.config().vcpus, time_devices(kernel)));
    const std::string& line = handover.command_line;
    out.put_bytes(boot::kCommandLine, std::as_bytes(std::span{line.c_str(), line.size() + 1}));
    put_descriptors(out, image.mode);
    if (image.mode == EntryMode::kLong) put_page_tables(out);
    if (image.format == KernelFormat::kPvh)
        put_start_info(out, handover);
    else if (image.format == KernelFormat::kMultiboot)
        put_multiboot_info(out, handover);
    else
        put_zero_page(out, image, handover);
    return out.status();
}

}  // namespace

Result<KernelFormat> load_guest_kernel(VirtualMachine& machine, const GuestKernel& kernel) {
    auto image = parse_kernel_image(kernel.image);
    if (!image) {
        image.error().where = kernel.name + ": " + image.error().where;
        return tl::unexpected(std::move(image.error()));
    }
    const auto handover = make_handover(kernel, *image, machine.memory());
    if (!handover) return tl::unexpected(handover.error());
    if (auto filled = fill_memory(machine, kernel, *image, *handover); !filled)
        return tl::unexpected(std::move(filled.error()));
    if (auto added = add_time_devices(machine, kernel); !added)
        return tl::unexpected(std::move(added.error()));
    kvm::Vcpu& first = machine.vcpus().front();
    if (auto set = set_segments(first, image->mode); !set)
        return tl::unexpected(std::move(set.error()));
    if (auto set = set_entry_registers(first, *image); !set)
        return tl::unexpected(std::move(set.error()));
    for (kvm::Vcpu& vcpu : machine.vcpus())
        if (auto set = set_memory_type(vcpu); !set) return tl::unexpected(std::move(set.error()));
    return image->format;
}

}  // namespace continuo::vmm
