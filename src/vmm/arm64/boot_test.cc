// What an arm64 guest finds at its boot: its kernel's file, whole and damaged, and the device tree,
// which is read by dtc, the compiler of the format's authors. Runs on every architecture.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "arm64/boot_plan.h"
#include "arm64/device_tree.h"
#include "arm64/kernel_image.h"
#include "continuo/vmm/arm64_board.h"

namespace continuo::vmm::arm64 {
namespace {

using Bytes = std::vector<std::byte>;
using state::ErrorCode;

template <class T>
void put(Bytes& bytes, std::size_t offset, T value) {
    if (bytes.size() < offset + sizeof value) bytes.resize(offset + sizeof value);
    std::memcpy(bytes.data() + offset, &value, sizeof value);
}

void put_text(Bytes& bytes, std::size_t offset, std::string_view text) {
    if (bytes.size() < offset + text.size()) bytes.resize(offset + text.size());
    std::memcpy(bytes.data() + offset, text.data(), text.size());
}

// ---- Kernels ----

constexpr std::size_t kTextOffset = 8;
constexpr std::size_t kImageSize = 16;
constexpr std::size_t kFlags = 24;
constexpr std::size_t kMagic = 56;
constexpr std::size_t kPe = 0x40;
constexpr std::size_t kFileBytes = 0x3000;

/// As Linux builds one: 12 KiB of file, 20 KiB of memory, two PE sections.
Bytes sample_image() {
    Bytes image(kFileBytes, std::byte{0x5a});
    std::memset(image.data(), 0, 0x400);
    put_text(image, 0, "MZ");
    put(image, kImageSize, std::uint64_t{0x5000});
    put(image, kFlags, std::uint64_t{0xa});  // little-endian, 4 KiB pages, anywhere
    put(image, kMagic, std::uint32_t{0x644d5241});
    put(image, kMagic + 4, std::uint32_t{kPe});
    put_text(image, kPe, "PE");
    put(image, kPe + 4, std::uint16_t{0xaa64});
    put(image, kPe + 6, std::uint16_t{2});
    put(image, kPe + 20, std::uint16_t{0xa0});
    constexpr std::size_t kSections = kPe + 24 + 0xa0;
    put(image, kSections + 16, std::uint32_t{0x1000});
    put(image, kSections + 20, std::uint32_t{0x1000});
    put(image, kSections + 40 + 16, std::uint32_t{0x1000});
    put(image, kSections + 40 + 20, std::uint32_t{0x2000});
    return image;
}

template <class T>
state::Error refusal(std::size_t offset, T value) {
    Bytes image = sample_image();
    put(image, offset, value);
    const auto parsed = parse_kernel_image(image);
    EXPECT_FALSE(parsed) << offset;
    return parsed ? state::Error{} : parsed.error();
}

TEST(Arm64KernelImage, SaysWhereItGoesAndWhatItNeeds) {
    Bytes image = sample_image();
    put(image, kTextOffset, std::uint64_t{0x8'0000});
    const auto parsed = parse_kernel_image(image);
    ASSERT_TRUE(parsed) << parsed.error().message();
    EXPECT_EQ(parsed->text_offset, 0x8'0000u);
    EXPECT_EQ(parsed->memory_bytes, 0x5000u);
    EXPECT_EQ(parsed->bytes.size(), kFileBytes);
    EXPECT_EQ(parsed->bytes.data(), image.data());
}

TEST(Arm64KernelImage, ASignatureBehindItIsNotLoaded) {
    Bytes image = sample_image();
    image.resize(0x5000 + 2000);
    const auto parsed = parse_kernel_image(image);
    ASSERT_TRUE(parsed) << parsed.error().message();
    EXPECT_EQ(parsed->bytes.size(), 0x5000u);
}

TEST(Arm64KernelImage, EveryTruncationIsTyped) {
    const Bytes image = sample_image();
    for (std::size_t length = 0; length < image.size(); ++length) {
        const auto parsed = parse_kernel_image(std::span{image}.first(length));
        ASSERT_FALSE(parsed) << length;
        ASSERT_EQ(parsed.error().code, ErrorCode::kTruncated)
            << length << ": " << parsed.error().message();
    }
}

TEST(Arm64KernelImage, WhatItCannotBeIsNamed) {
    auto error = refusal(kMagic, std::uint32_t{0x12345678});
    EXPECT_EQ(error.code, ErrorCode::kMalformed);
    EXPECT_EQ(error.what, "this is no arm64 Image");
    error = refusal(kFlags, std::uint64_t{0xb});
    EXPECT_EQ(error.code, ErrorCode::kUnsupported);
    EXPECT_EQ(error.what, "a big-endian kernel");
    error = refusal(kImageSize, std::uint64_t{0});
    EXPECT_EQ(error.code, ErrorCode::kUnsupported);
    EXPECT_EQ(error.what, "an Image without a size: older than Linux 3.17");
    EXPECT_EQ(refusal(kImageSize, ~std::uint64_t{0}).code, ErrorCode::kMalformed);
    EXPECT_EQ(refusal(kTextOffset, std::uint64_t{2} << 20).code, ErrorCode::kMalformed);
    EXPECT_EQ(refusal(kTextOffset, ~std::uint64_t{0}).code, ErrorCode::kMalformed);
    EXPECT_EQ(refusal(kMagic + 4, ~std::uint32_t{0}).code, ErrorCode::kTruncated);
    EXPECT_EQ(refusal(kPe + 4, std::uint16_t{0x8664}).code, ErrorCode::kMalformed);
    EXPECT_EQ(refusal(kPe + 6, std::uint16_t{0xffff}).code, ErrorCode::kTruncated);
    // The sum of offset and size does not wrap.
    EXPECT_EQ(refusal(kPe + 24 + 0xa0 + 16, ~std::uint32_t{0}).code, ErrorCode::kTruncated);
}

TEST(Arm64KernelImage, APackedKernelIsNamedByItsPacker) {
    const std::pair<std::string_view, const char*> packed[] = {
        {{"\x1f\x8b\x08", 3}, "a kernel packed by gzip"},
        {{"\xfd\x37zXZ\0", 6}, "a kernel packed by xz"},
        {{"\x28\xb5\x2f\xfd", 4}, "a kernel packed by zstd"},
        {{"\x7f\x45LF", 4}, "an ELF file, not its Image"},
        {{"MZ\0\0zimg\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0gzip\0", 29},
         "an EFI zboot image, packed by gzip"},
    };
    for (const auto& [bytes, name] : packed) {
        Bytes file(4096);
        put_text(file, 0, bytes);
        const auto parsed = parse_kernel_image(file);
        ASSERT_FALSE(parsed) << name;
        EXPECT_EQ(parsed.error().code, ErrorCode::kUnsupported) << name;
        EXPECT_EQ(parsed.error().what, name);
    }
    Bytes bzimage(4096);
    put_text(bzimage, 0x202, "HdrS");
    EXPECT_EQ(parse_kernel_image(bzimage).error().what, "a bzImage, which is x86-64's");
}

TEST(Arm64KernelImage, FlippedBitsNeverCrash) {
    std::mt19937_64 random{7};
    for (int round = 0; round < 20'000; ++round) {
        Bytes image = sample_image();
        for (int flips = 0; flips < 3; ++flips)
            image[random() % 0x200] ^= static_cast<std::byte>(1u << (random() % 8));
        const auto parsed = parse_kernel_image(image);
        if (!parsed) continue;
        EXPECT_LE(parsed->bytes.size(), image.size());
        EXPECT_LE(parsed->bytes.size(), parsed->memory_bytes);
        EXPECT_LT(parsed->text_offset, 2u << 20);
    }
}

// ---- Where it all goes ----

GuestKernel sample_kernel(std::size_t initrd_bytes) {
    GuestKernel kernel;
    kernel.image = sample_image();
    kernel.initrd.resize(initrd_bytes);
    kernel.name = "vmlinuz";
    kernel.command_line = "quiet";
    return kernel;
}

constexpr std::uint64_t kMemory = 4ull << 20;
constexpr std::uint64_t kKernelEnd = (2ull << 20) + 0x5000;

TEST(Arm64BootPlan, TheKernelLiesAt2MibAndTheInitrdAsHighAsItMay) {
    const GuestKernel kernel = sample_kernel(5000);
    const auto plan = plan_boot(kernel, 3, kMemory);
    ASSERT_TRUE(plan) << plan.error().message();
    EXPECT_EQ(plan->entry, 2u << 20);
    EXPECT_EQ(plan->image.data(), kernel.image.data());
    EXPECT_EQ(plan->machine.vcpus, 3u);
    EXPECT_EQ(plan->machine.memory_bytes, kMemory);
    EXPECT_EQ(plan->machine.initrd, kMemory - 2 * kvm::kPageSize);
    EXPECT_EQ(plan->machine.initrd_bytes, 5000u);
    EXPECT_TRUE(plan->machine.notice && plan->machine.vmclock);
    // The window that is shared with the kernel ends at 32 GiB.
    EXPECT_EQ(plan_boot(kernel, 1, 40ull << 30)->machine.initrd,
              (32ull << 30) - 2 * kvm::kPageSize);
    EXPECT_EQ(plan_boot(sample_kernel(0), 1, kMemory)->machine.initrd_bytes, 0u);
}

TEST(Arm64BootPlan, WhatDoesNotFitIsNamed) {
    EXPECT_TRUE(plan_boot(sample_kernel(kMemory - kKernelEnd), 1, kMemory));
    for (const std::size_t initrd : {kMemory - kKernelEnd + 1, kMemory, kMemory + 1}) {
        const auto plan = plan_boot(sample_kernel(initrd), 1, kMemory);
        ASSERT_FALSE(plan) << initrd;
        EXPECT_EQ(plan.error().code, ErrorCode::kInvalidArgument);
        EXPECT_EQ(plan.error().what, std::to_string(initrd) +
                                         " bytes of initrd do not fit between the kernel's end, "
                                         "2117632, and 4194304");
    }
    EXPECT_TRUE(plan_boot(sample_kernel(0), 1, kKernelEnd));
    EXPECT_EQ(plan_boot(sample_kernel(0), 1, kKernelEnd - 1).error().what,
              "it needs memory up to 2117632 bytes");
    GuestKernel kernel = sample_kernel(0);
    kernel.command_line.assign(kCommandLineMax, 'x');
    EXPECT_TRUE(plan_boot(kernel, 1, kMemory));
    kernel.command_line += 'x';
    EXPECT_EQ(plan_boot(kernel, 1, kMemory).error().where, "command line");
    kernel.image.resize(100);
    EXPECT_EQ(plan_boot(kernel, 1, kMemory).error().where, "vmlinuz: kernel image, byte 100");
}

// ---- The device tree ----

/// What dtc makes of the tree, as source; each of its warnings is an error.
std::string decompiled(const Bytes& blob) {
    if (std::system("dtc --version >/dev/null 2>&1") != 0) return {};
    char folder[] = "/tmp/continuo-tree-XXXXXX";
    if (::mkdtemp(folder) == nullptr) return "no folder";
    const std::filesystem::path at{folder};
    std::ofstream{at / "blob", std::ios::binary}.write(reinterpret_cast<const char*>(blob.data()),
                                                       static_cast<std::streamsize>(blob.size()));
    const std::string command = "cd " + at.string() + " && dtc -I dtb -O dts -o source blob 2>said";
    const int status = std::system(command.c_str());
    const auto text = [&](const char* name) {
        std::ifstream file{at / name};
        return std::string{std::istreambuf_iterator<char>{file}, {}};
    };
    const std::string said = text("said");
    std::string source = status == 0 && said.empty() ? text("source") : "dtc: " + said;
    std::filesystem::remove_all(at);
    return source;
}

std::size_t count(const std::string& text, std::string_view what) {
    std::size_t found = 0;
    for (auto at = text.find(what); at != std::string::npos; at = text.find(what, at + 1))
        ++found;
    return found;
}

TEST(Arm64DeviceTree, SaysWhatTheBoardHas) {
    const Bytes blob = device_tree({.vcpus = 2,
                                    .memory_bytes = 0x1'1000'0000,
                                    .command_line = "console=ttyS0 quiet",
                                    .initrd = 0x0ff0'0000,
                                    .initrd_bytes = 0x1234});
    const std::string source = decompiled(blob);
    if (source.empty()) GTEST_SKIP() << "dtc is not installed: scripts/install-packages";
    for (const char* line : {
             "compatible = \"linux,dummy-virt\";",
             "bootargs = \"console=ttyS0 quiet\";",
             "stdout-path = \"/serial@fc0010000\";",
             "linux,initrd-start = <0x00 0xff00000>;",
             "linux,initrd-end = <0x00 0xff01234>;",
             "memory@0 {",
             "reg = <0x00 0x00 0x01 0x10000000>;",
             "cpu@0 {",
             "cpu@1 {",
             "compatible = \"arm,psci-1.0\\0arm,psci-0.2\";",
             "method = \"hvc\";",
             "compatible = \"arm,armv8-timer\";",
             "interrupts = <0x01 0x0d 0x04 0x01 0x0e 0x04 0x01 0x0b 0x04 0x01 0x0a 0x04>;",
             "interrupt-controller@fc0000000 {",
             "reg = <0x0f 0xc0000000 0x00 0x10000 0x0f 0xc1000000 0x00 0x40000>;",
             "serial@fc0010000 {",
             "compatible = \"ns16550a\";",
             "reg = <0x0f 0xc0010000 0x00 0x1000>;",
             "interrupts = <0x00 0x00 0x04>;",
         })
        EXPECT_EQ(count(source, line), 1u) << line << "\n" << source;
}

TEST(Arm64DeviceTree, DevicesThatTellTheTimeHaveAPageThatIsNoMemoryAndAnEdge) {
    const std::string source = decompiled(device_tree({.vcpus = 1,
                                                       .memory_bytes = 64u << 20,
                                                       .command_line = "",
                                                       .notice = true,
                                                       .vmclock = true}));
    if (source.empty()) GTEST_SKIP() << "dtc is not installed: scripts/install-packages";
    for (const char* line : {
             "reserved-memory {",
             "page@30000 {",
             "page@31000 {",
             "time-travel@30000 {",
             "compatible = \"continuo,time-travel\";",
             "interrupts = <0x00 0x01 0x01>;",
             "ptp@31000 {",
             "compatible = \"amazon,vmclock\";",
             "interrupts = <0x00 0x02 0x01>;",
         })
        EXPECT_EQ(count(source, line), 1u) << line << "\n" << source;
    EXPECT_EQ(count(source, "reg = <0x00 0x30000 0x00 0x1000>;"), 2u);
    EXPECT_EQ(count(source, "no-map;"), 2u);
}

TEST(Arm64DeviceTree, EveryCpuHasItsAffinityAndItsRedistributor) {
    const std::string source =
        decompiled(device_tree({.vcpus = 64, .memory_bytes = 64u << 20, .command_line = ""}));
    if (source.empty()) GTEST_SKIP() << "dtc is not installed: scripts/install-packages";
    EXPECT_EQ(count(source, "device_type = \"cpu\";"), 64u) << source;
    EXPECT_EQ(count(source, "enable-method = \"psci\";"), 64u);
    EXPECT_EQ(count(source, "cpu@f {"), 1u);
    EXPECT_EQ(count(source, "cpu@100 {"), 1u);
    EXPECT_EQ(count(source, "cpu@30f {"), 1u);
    EXPECT_EQ(count(source, "0x0f 0xc1000000 0x00 0x800000>;"), 1u);
    EXPECT_EQ(count(source, "initrd"), 0u);
    EXPECT_EQ(count(source, "reserved-memory"), 0u) << "no devices that have pages";
}

}  // namespace
}  // namespace continuo::vmm::arm64
