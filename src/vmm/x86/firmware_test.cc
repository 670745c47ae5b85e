// What a guest finds instead of firmware: ACPI tables that add up, CPUID that says one package, and
// kernels' files, whole and damaged.
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "acpi.h"
#include "aml.h"
#include "boot_layout.h"
#include "cpu_topology.h"
#include "kernel_image.h"

namespace continuo::vmm {
namespace {

using Bytes = std::vector<std::byte>;
using state::ErrorCode;

template <class T>
T get(const Bytes& bytes, std::size_t offset) {
    T value{};
    EXPECT_LE(offset + sizeof value, bytes.size());
    std::memcpy(&value, bytes.data() + offset, sizeof value);
    return value;
}

template <class T>
void put(Bytes& bytes, std::size_t offset, T value) {
    if (bytes.size() < offset + sizeof value) bytes.resize(offset + sizeof value);
    std::memcpy(bytes.data() + offset, &value, sizeof value);
}

Bytes bytes_of(std::initializer_list<int> values) {
    Bytes out;
    for (const int value : values)
        out.push_back(static_cast<std::byte>(value));
    return out;
}

// ---- ACPI ----

unsigned sum(const Bytes& bytes, std::size_t from, std::size_t count) {
    unsigned total = 0;
    for (std::size_t i = from; i < from + count; ++i)
        total += std::to_integer<unsigned>(bytes.at(i));
    return total & 0xff;
}

/// The table at a GPA, with its checksum looked at.
Bytes table_at(const Bytes& all, std::uint64_t gpa, const std::string& signature) {
    const std::size_t at = gpa - acpi::kTables;
    const auto length = get<std::uint32_t>(all, at + 4);
    EXPECT_EQ(std::memcmp(all.data() + at, signature.data(), 4), 0) << signature;
    if (signature != "FACS") {
        EXPECT_EQ(sum(all, at, length), 0u) << signature;
    }
    return {all.begin() + static_cast<std::ptrdiff_t>(at),
            all.begin() + static_cast<std::ptrdiff_t>(at + length)};
}

TEST(Acpi, TablesAddUpAndLeadToEachOther) {
    for (const std::uint32_t vcpus : {1u, 2u, 64u}) {
        const Bytes all = acpi::tables(vcpus, {});
        EXPECT_EQ(std::memcmp(all.data(), "RSD PTR ", 8), 0);
        EXPECT_EQ(sum(all, 0, 20), 0u);
        EXPECT_EQ(sum(all, 0, 36), 0u);
        const Bytes xsdt = table_at(all, get<std::uint64_t>(all, 24), "XSDT");
        ASSERT_EQ(xsdt.size(), 36u + 16);
        const Bytes fadt = table_at(all, get<std::uint64_t>(xsdt, 36), "FACP");
        const Bytes madt = table_at(all, get<std::uint64_t>(xsdt, 44), "APIC");
        EXPECT_EQ(fadt.size(), 276u);
        EXPECT_EQ(get<std::uint32_t>(fadt, 56), acpi::kPm1Event);
        EXPECT_EQ(get<std::uint32_t>(fadt, 64), acpi::kPm1Control);
        EXPECT_EQ(get<std::uint64_t>(fadt, 120), acpi::kResetPort);
        EXPECT_EQ(get<std::uint64_t>(fadt, 152), acpi::kPm1Event);
        EXPECT_EQ(table_at(all, get<std::uint64_t>(fadt, 132), "FACS").size(), 64u);
        (void)table_at(all, get<std::uint64_t>(fadt, 140), "DSDT");
        std::uint32_t processors = 0;
        for (std::size_t at = 44; at < madt.size(); at += get<std::uint8_t>(madt, at + 1))
            if (get<std::uint8_t>(madt, at) == 0) {
                EXPECT_EQ(get<std::uint8_t>(madt, at + 3), processors) << "its APIC id";
                ++processors;
            }
        EXPECT_EQ(processors, vcpus);
    }
}

TEST(Acpi, SoftOffIsWhatTheDsdtSays) {
    const Bytes all = acpi::tables(1, {});
    const Bytes fadt = table_at(
        all, get<std::uint64_t>(table_at(all, get<std::uint64_t>(all, 24), "XSDT"), 36), "FACP");
    const Bytes dsdt = table_at(all, get<std::uint64_t>(fadt, 140), "DSDT");
    const Bytes code{dsdt.begin() + 36, dsdt.end()};
    EXPECT_EQ(code, bytes_of({0x08, '_', 'S', '5', '_', 0x12, 6, 4, 0, 0, 0, 0}));
}

TEST(Acpi, TimeDevicesAreDescribedAndNotified) {
    const auto code_of = [](const acpi::TimeDevices& devices) {
        const Bytes all = acpi::tables(1, devices);
        const Bytes xsdt = table_at(all, get<std::uint64_t>(all, 24), "XSDT");
        const Bytes fadt = table_at(all, get<std::uint64_t>(xsdt, 36), "FACP");
        const Bytes dsdt = table_at(all, get<std::uint64_t>(fadt, 140), "DSDT");
        return std::string{reinterpret_cast<const char*>(dsdt.data()), dsdt.size()};
    };
    const auto holds = [](const std::string& code, const std::string& part) {
        return code.find(part) != std::string::npos;
    };
    using namespace std::string_literals;
    const std::string notice = code_of({.notice_page = 0xd0000, .vmclock_page = {}});
    EXPECT_TRUE(holds(notice,
                      "\x08_HID\x0d"
                      "CTNO0001\0\x08_UID\x0d"
                      "0xd0000\0"s));
    EXPECT_TRUE(holds(notice, "\x86\x09\x00\x01\x00\x00\x0d\x00\x00\x10\x00\x00\x79\x00"s))
        << "_CRS";
    EXPECT_TRUE(holds(notice, "\xa0\x13\x7b\x60\x01\x00\x86\x5c\x2f\x02_SB_CTNO\x0a\x80"s))
        << "If (Local0 & 1) Notify (CTNO, 0x80)";
    EXPECT_TRUE(holds(notice, "\x89\x06\x00\x01\x01\x10\x00\x00\x00\x79\x00"s))
        << "the event device's";
    EXPECT_FALSE(holds(notice, "VMCLOCK"));
    const std::string both = code_of({.notice_page = 0xd0000, .vmclock_page = 0xd1000});
    EXPECT_TRUE(holds(both, "\xa0\x14\x7b\x60\x0a\x02\x00\x86\x5c\x2f\x02_SB_VCLK\x0a\x80"s));
    EXPECT_FALSE(holds(both, "VM_Gen_Counter"));
    const std::string generation =
        code_of({.notice_page = {}, .vmclock_page = {}, .generation_page = 0xd2000});
    EXPECT_TRUE(holds(generation,
                      "\x08_CID\x0d"
                      "VM_Gen_Counter\0"s));
    EXPECT_TRUE(holds(generation,
                      "\x08"
                      "ADDR\x12\x08\x02\x0c\x00\x20\x0d\x00\x00"s))
        << "its two halves";
    EXPECT_TRUE(holds(generation, "\x7b\x60\x0a\x04\x00\x86\x5c\x2f\x02_SB_VGEN\x0a\x80"s));
    EXPECT_FALSE(holds(generation, "CTNO0001"));
    EXPECT_EQ(code_of({}).size(), 36u + 12) << "nothing but the way to switch off";
}

TEST(Aml, EisaIds) {
    EXPECT_EQ(acpi::eisa_id("PNP0501"), bytes_of({0x0c, 0x41, 0xd0, 0x05, 0x01}));
}

TEST(Aml, Integers) {
    EXPECT_EQ(acpi::integer(0), bytes_of({0x00}));
    EXPECT_EQ(acpi::integer(1), bytes_of({0x01}));
    EXPECT_EQ(acpi::integer(0xff), bytes_of({0x0a, 0xff}));
    EXPECT_EQ(acpi::integer(0x100), bytes_of({0x0b, 0x00, 0x01}));
    EXPECT_EQ(acpi::integer(0xffffffff), bytes_of({0x0c, 0xff, 0xff, 0xff, 0xff}));
    EXPECT_EQ(acpi::integer(std::uint64_t{1} << 32), bytes_of({0x0e, 0, 0, 0, 0, 1, 0, 0, 0}));
}

TEST(Aml, LengthsCountThemselves) {
    // 61 bytes of elements and their number: 63 with the length's own byte, the most for one.
    const Bytes sixty_one(61, std::byte{0});
    const Bytes one = acpi::package({sixty_one});
    EXPECT_EQ(get<std::uint8_t>(one, 1), 63);
    // One more takes a second byte: 65 = 0x41, low four bits first.
    const Bytes two = acpi::package({Bytes(62, std::byte{0})});
    EXPECT_EQ(get<std::uint8_t>(two, 1), 0x41);
    EXPECT_EQ(get<std::uint8_t>(two, 2), 0x04);
    // 4092 + 1 + 2 = 4095 is the most for two bytes.
    EXPECT_EQ(get<std::uint8_t>(acpi::package({Bytes(4092, std::byte{0})}), 1), 0x4f);
    EXPECT_EQ(get<std::uint8_t>(acpi::package({Bytes(4093, std::byte{0})}), 1), 0x81);
}

// ---- CPUID ----

kvm::CpuidEntry leaf(std::uint32_t function, std::uint32_t index = 0) {
    kvm::CpuidEntry entry{};
    entry.function = function;
    entry.index = index;
    entry.eax = entry.ebx = entry.ecx = entry.edx = 0xffffffff;
    return entry;
}

TEST(CpuTopology, OnePackageWithACoreForEachVcpu) {
    kvm::CpuidEntries cpuid{leaf(1),      leaf(0xb, 0),     leaf(0xb, 1),
                            leaf(0xb, 2), leaf(0x80000008), leaf(0x8000001e)};
    set_topology(cpuid, 4, 5);
    EXPECT_EQ(cpuid[0].ebx, 0x0405ffffu);
    EXPECT_EQ(cpuid[0].edx, 0xffffffffu);
    EXPECT_EQ(cpuid[1].eax, 0u);
    EXPECT_EQ(cpuid[1].ebx, 1u);
    EXPECT_EQ(cpuid[1].ecx, 0x100u);
    EXPECT_EQ(cpuid[2].eax, 3u) << "bits of an APIC id below the package: 5 cores";
    EXPECT_EQ(cpuid[2].ebx, 5u);
    EXPECT_EQ(cpuid[2].ecx, 0x201u);
    EXPECT_EQ(cpuid[3].ebx, 0u);
    EXPECT_EQ(cpuid[3].ecx, 2u) << "no such level";
    EXPECT_EQ(cpuid[2].edx, 4u);
    EXPECT_EQ(cpuid[4].ecx, 0x3004u);
    EXPECT_EQ(cpuid[5].eax, 4u);
    EXPECT_EQ(cpuid[5].ebx, 4u);
}

TEST(CpuTopology, OneVcpuAlone) {
    kvm::CpuidEntries cpuid{leaf(1), leaf(4, 3), leaf(0xb, 1)};
    cpuid[1].eax = 0xfc03c163;  // last-level cache, unified
    set_topology(cpuid, 0, 1);
    EXPECT_EQ(cpuid[0].edx & (1u << 28), 0u);
    EXPECT_EQ(cpuid[1].eax, 0x163u);
    EXPECT_EQ(cpuid[2].eax, 0u);
    EXPECT_EQ(cpuid[2].ebx, 1u);
}

// ---- Kernels ----

constexpr std::uint32_t kCode = 0xabcdef01;

Bytes bzimage() {
    Bytes file(5 * 512 + 0x400);
    put(file, 0x1f1, std::uint8_t{4});
    put(file, 0x1f4, std::uint32_t{0x40});  // 16-byte units of code
    put(file, 0x1fe, std::uint16_t{0xaa55});
    put(file, 0x201, std::uint8_t{0x66});
    put(file, 0x202, std::uint32_t{0x53726448});
    put(file, 0x206, std::uint16_t{0x020f});
    put(file, 0x22c, std::uint32_t{0x7fffffff});
    put(file, 0x236, std::uint16_t{1});
    put(file, 0x238, std::uint32_t{2047});
    put(file, 0x258, std::uint64_t{0x1000000});
    put(file, 0x260, std::uint32_t{0x300000});
    put(file, 5 * 512, kCode);
    return file;
}

/// ELF with one loadable segment of 16 bytes at 16 MiB, entered at its fourth byte.
Bytes elf64() {
    Bytes file(64 + 2 * 56);
    std::memcpy(file.data(),
                "\x7f"
                "ELF\x02\x01\x01",
                7);
    put(file, 16, std::uint16_t{2});
    put(file, 18, std::uint16_t{62});
    put(file, 24, std::uint64_t{0x1000004});
    put(file, 32, std::uint64_t{64});
    put(file, 54, std::uint16_t{56});
    put(file, 56, std::uint16_t{1});
    put(file, 64, std::uint32_t{1});          // PT_LOAD
    put(file, 64 + 8, std::uint64_t{0x200});  // offset
    put(file, 64 + 16, std::uint64_t{0xffffffff81000000});
    put(file, 64 + 24, std::uint64_t{0x1000000});
    put(file, 64 + 32, std::uint64_t{16});
    put(file, 64 + 40, std::uint64_t{0x2000});
    put(file, 0x200, kCode);
    file.resize(0x210);
    return file;
}

/// The same with a note before which another stands.
Bytes elf64_with_pvh(std::uint32_t entry) {
    Bytes file = elf64();
    put(file, 56, std::uint16_t{2});
    put(file, 120, std::uint32_t{4});  // PT_NOTE
    put(file, 120 + 8, std::uint64_t{0x300});
    put(file, 120 + 32, std::uint64_t{20 + 20});
    const std::uint32_t notes[] = {4, 4, 1, 0x00554e47, 7, 4, 8, 18, 0x006e6558, entry};
    file.resize(0x300 + sizeof notes + 4);
    std::memcpy(file.data() + 0x300, notes, sizeof notes);
    put(file, 120 + 32, std::uint64_t{sizeof notes + 4});
    return file;
}

/// A flat payload of 1 KiB whose header at `offset` says where it goes.
Bytes multiboot(std::uint32_t offset = 0x40, std::uint32_t flags = 0x10003) {
    Bytes file(1024);
    const std::uint32_t load = 0x100000;
    const std::uint32_t header[] = {0x1badb002,    flags,      0u - 0x1badb002u - flags,
                                    load + offset, load,       load + 512,
                                    load + 0x3000, load + 0x80};
    std::memcpy(file.data() + offset, header, sizeof header);
    return file;
}

TEST(KernelImage, Bzimage) {
    const Bytes file = bzimage();
    const auto image = parse_kernel_image(file);
    ASSERT_TRUE(image) << image.error().message();
    EXPECT_EQ(image->format, KernelFormat::kBzImage);
    EXPECT_EQ(image->mode, EntryMode::kLong);
    EXPECT_EQ(image->entry, 0x1000200u);
    EXPECT_EQ(image->memory_end, 0x1300000u);
    EXPECT_EQ(image->initrd_end_max, 0x80000000u);
    EXPECT_EQ(image->command_line_max, 2047u);
    EXPECT_EQ(image->setup_header.size(), 0x202u + 0x66 - 0x1f1);
    ASSERT_EQ(image->segments.size(), 1u);
    EXPECT_EQ(image->segments[0].gpa, 0x1000000u);
    EXPECT_EQ(image->segments[0].bytes.data(), file.data() + 5 * 512);
}

TEST(KernelImage, ElfLinuxIsEnteredAsLinuxOrByItsPvhEntry) {
    const auto plain = parse_kernel_image(elf64());
    ASSERT_TRUE(plain) << plain.error().message();
    EXPECT_EQ(plain->format, KernelFormat::kElfLinux);
    EXPECT_EQ(plain->mode, EntryMode::kLong);
    EXPECT_EQ(plain->entry, 0x1000004u);
    EXPECT_EQ(plain->memory_end, 0x1002000u);
    const auto pvh = parse_kernel_image(elf64_with_pvh(0x1000008));
    ASSERT_TRUE(pvh) << pvh.error().message();
    EXPECT_EQ(pvh->format, KernelFormat::kPvh);
    EXPECT_EQ(pvh->mode, EntryMode::kProtected);
    EXPECT_EQ(pvh->entry, 0x1000008u);
}

TEST(KernelImage, MultibootByItsAddresses) {
    for (const std::uint32_t offset : {0u, 0x40u, 0x1e0u}) {
        const Bytes file = multiboot(offset);
        const auto image = parse_kernel_image(file);
        ASSERT_TRUE(image) << image.error().message();
        EXPECT_EQ(image->format, KernelFormat::kMultiboot);
        EXPECT_EQ(image->mode, EntryMode::kProtected);
        EXPECT_EQ(image->entry, 0x100080u);
        EXPECT_EQ(image->segments[0].bytes.size(), 512u);
        EXPECT_EQ(image->segments[0].bytes.data(), file.data());
        EXPECT_EQ(image->memory_end, 0x103000u);
    }
}

struct Damage {
    const char* name;
    Bytes file;
    ErrorCode code;
};

template <class T>
Bytes with(Bytes file, std::size_t offset, T value) {
    put(file, offset, value);
    return file;
}

TEST(KernelImage, WhatCannotBeLoadedIsNamed) {
    Bytes bz_cut = bzimage();
    bz_cut.resize(5 * 512 + 0x300);
    const Damage damages[] = {
        {"nothing", {}, ErrorCode::kMalformed},
        {"text", Bytes(4096, std::byte{'x'}), ErrorCode::kMalformed},
        {"bzImage, code cut off", bz_cut, ErrorCode::kTruncated},
        {"bzImage, 32 bits", with(bzimage(), 0x236, std::uint16_t{0}), ErrorCode::kUnsupported},
        {"bzImage, old", with(bzimage(), 0x206, std::uint16_t{0x020b}), ErrorCode::kUnsupported},
        {"bzImage at 64 KiB", with(bzimage(), 0x258, std::uint64_t{0x10000}),
         ErrorCode::kMalformed},
        {"bzImage that wraps", with(bzimage(), 0x258, ~std::uint64_t{0x1ff}),
         ErrorCode::kMalformed},
        {"ELF for arm64", with(elf64(), 18, std::uint16_t{183}), ErrorCode::kUnsupported},
        {"ELF library", with(elf64(), 16, std::uint16_t{3}), ErrorCode::kMalformed},
        {"ELF of 48 bits", with(elf64(), 4, std::uint8_t{3}), ErrorCode::kMalformed},
        {"ELF without program headers", with(elf64(), 56, std::uint16_t{0}), ErrorCode::kMalformed},
        {"ELF, program headers beyond", with(elf64(), 32, ~std::uint64_t{0} - 8),
         ErrorCode::kTruncated},
        {"ELF, segment beyond the file", with(elf64(), 64 + 8, std::uint64_t{0x20a}),
         ErrorCode::kTruncated},
        {"ELF, segment offset wraps", with(elf64(), 64 + 8, ~std::uint64_t{0}),
         ErrorCode::kTruncated},
        {"ELF, more in the file than in memory", with(elf64(), 64 + 40, std::uint64_t{8}),
         ErrorCode::kMalformed},
        {"ELF beyond 4 GiB", with(elf64(), 64 + 40, std::uint64_t{1} << 33), ErrorCode::kMalformed},
        {"ELF, memory wraps", with(elf64(), 64 + 40, ~std::uint64_t{0}), ErrorCode::kMalformed},
        {"ELF, entry elsewhere", with(elf64(), 24, std::uint64_t{0x3000000}),
         ErrorCode::kMalformed},
        {"PVH entry elsewhere", elf64_with_pvh(0x500), ErrorCode::kMalformed},
        {"multiboot that wants video", multiboot(0x40, 0x10007), ErrorCode::kUnsupported},
        {"multiboot, no addresses and no ELF", multiboot(0x40, 0x3), ErrorCode::kMalformed},
        {"multiboot, addresses contradict", with(multiboot(), 0x40 + 16, std::uint32_t{0x200000}),
         ErrorCode::kMalformed},
        {"multiboot, header before the file", with(multiboot(), 0x40 + 12, std::uint32_t{0x100041}),
         ErrorCode::kMalformed},
        {"multiboot, more than the file", with(multiboot(), 0x40 + 20, std::uint32_t{0x100401}),
         ErrorCode::kMalformed},
        {"multiboot, ends before it begins", with(multiboot(), 0x40 + 20, std::uint32_t{0x1}),
         ErrorCode::kMalformed},
    };
    for (const Damage& damage : damages) {
        const auto image = parse_kernel_image(damage.file);
        ASSERT_FALSE(image) << damage.name;
        EXPECT_EQ(image.error().code, damage.code)
            << damage.name << ": " << image.error().message();
        EXPECT_FALSE(image.error().where.empty()) << damage.name;
    }
}

TEST(KernelImage, AnyDamageIsRefusedOrLeavesSegmentsInsideTheFile) {
    std::mt19937_64 random{1};
    const Bytes originals[] = {bzimage(), elf64(), elf64_with_pvh(0x1000008), multiboot()};
    for (int i = 0; i < 40'000; ++i) {
        Bytes file = originals[static_cast<std::size_t>(i) % std::size(originals)];
        for (std::uint64_t hits = random() % 4 + 1; hits > 0; --hits)
            file[random() % std::min<std::size_t>(file.size(), 0x400)] =
                static_cast<std::byte>(random());
        if (random() % 4 == 0) file.resize(random() % file.size());
        const auto image = parse_kernel_image(file);
        if (!image) continue;
        for (const LoadSegment& segment : image->segments) {
            ASSERT_GE(segment.bytes.data(), file.data());
            ASSERT_LE(segment.bytes.data() + segment.bytes.size(), file.data() + file.size());
            ASSERT_LE(segment.bytes.size(), segment.memory_bytes);
            ASSERT_GE(segment.gpa, boot::kHighMemory);
            ASSERT_LE(segment.gpa + segment.memory_bytes, image->memory_end);
        }
    }
}

}  // namespace
}  // namespace continuo::vmm
