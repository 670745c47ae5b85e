// A multiboot payload on a real /dev/kvm, through every way in which a guest can end, and at the
// console; and what is refused before anything runs.
#include <gtest/gtest.h>
#include <poll.h>

#include <chrono>
#include <cstring>
#include <thread>

#include "continuo/vmm/guest_kernel.h"

extern "C" const std::byte continuo_multiboot_probe_begin[];
extern "C" const std::byte continuo_multiboot_probe_end[];

namespace continuo::vmm {
namespace {

using namespace std::chrono_literals;
using state::ErrorCode;

constexpr const char* kNoInterrupts =
    "this KVM delivers no interrupts in 32-bit protected mode without paging";

class GuestKernelOnKvm : public testing::Test {
  protected:
    void SetUp() override {
        auto system = kvm::System::open();
        if (!system) GTEST_SKIP() << "no usable /dev/kvm: " << system.error().message();
        system_.emplace(std::move(*system));
        kernel_.image.assign(continuo_multiboot_probe_begin, continuo_multiboot_probe_end);
        kernel_.name = "probe";
    }

    void boot(const std::string& command_line) {
        kernel_.command_line = command_line;
        auto machine = VirtualMachine::create(*system_, {.vcpus = 2, .memory_bytes = 16u << 20});
        ASSERT_TRUE(machine) << machine.error().message();
        machine_ = std::move(*machine);
        const auto format = load_guest_kernel(*machine_, kernel_);
        ASSERT_TRUE(format) << format.error().message();
        EXPECT_EQ(*format, KernelFormat::kMultiboot);
        const auto running = machine_->resume();
        ASSERT_TRUE(running) << running.error().message();
    }

    /// True once `done` says so; looks whenever the machine asks for attention.
    template <class Done>
    bool await(Done done, std::chrono::seconds limit = 60s) {
        const auto until = std::chrono::steady_clock::now() + limit;
        while (!done()) {
            if (std::chrono::steady_clock::now() > until) return false;
            pollfd fd{machine_->attention_fd(), POLLIN, 0};
            if (::poll(&fd, 1, 1000) > 0) machine_->clear_attention();
        }
        return true;
    }
    bool await_end() {
        return await([this] { return machine_->ended().has_value(); });
    }

    /// Whether this KVM can deliver exceptions and interrupts to a guest in 32-bit protected mode
    /// without paging. Software KVMs that emulate kernel-mode code were seen to hang instead.
    bool delivers_interrupts() {
        boot("b");
        const bool ended = await([this] { return machine_->ended().has_value(); }, 15s);
        EXPECT_TRUE(machine_->stop());
        return ended && machine_->exit_code() == 0u;
    }

    std::optional<kvm::System> system_;
    GuestKernel kernel_;
    std::unique_ptr<VirtualMachine> machine_;
};

TEST_F(GuestKernelOnKvm, APayloadIsToldItsLineAndItsModuleAndEndsWithItsCode) {
    const std::string module = "the module's text\n";
    kernel_.initrd.assign(reinterpret_cast<const std::byte*>(module.data()),
                          reinterpret_cast<const std::byte*>(module.data() + module.size()));
    boot("first second x");
    ASSERT_TRUE(await_end()) << machine_->console();
    EXPECT_EQ(machine_->ended(), GuestEnd::kExit);
    EXPECT_EQ(machine_->exit_code(), 7u);
    EXPECT_EQ(machine_->console(), "line: probe first second x\nthe module's text\n");
    ASSERT_TRUE(machine_->stop());
}

TEST_F(GuestKernelOnKvm, SwitchesItselfOff) {
    boot("o");
    ASSERT_TRUE(await_end());
    EXPECT_EQ(machine_->ended(), GuestEnd::kPowerOff);
    EXPECT_EQ(machine_->exit_code(), std::nullopt);
    EXPECT_TRUE(machine_->health());
    ASSERT_TRUE(machine_->stop());
}

TEST_F(GuestKernelOnKvm, ResetsItselfByEitherPort) {
    for (const char* way : {"r", "k"}) {
        boot(way);
        ASSERT_TRUE(await_end()) << way;
        EXPECT_EQ(machine_->ended(), GuestEnd::kReset) << way;
        EXPECT_TRUE(machine_->health()) << way;
        ASSERT_TRUE(machine_->stop());
    }
}

TEST_F(GuestKernelOnKvm, ATripleFaultIsAReset) {
    if (!delivers_interrupts()) GTEST_SKIP() << kNoInterrupts;
    boot("t");
    ASSERT_TRUE(await_end());
    EXPECT_EQ(machine_->ended(), GuestEnd::kReset);
    ASSERT_FALSE(machine_->health()) << "and a failure to those who did not expect it";
    EXPECT_EQ(machine_->health().error().code, ErrorCode::kGuest);
    ASSERT_TRUE(machine_->stop());
}

TEST_F(GuestKernelOnKvm, ReadsWhatIsTypedByInterrupts) {
    if (!delivers_interrupts()) GTEST_SKIP() << kNoInterrupts;
    boot("e");
    ASSERT_TRUE(await([this] { return machine_->console().ends_with("ready\n"); }))
        << machine_->console();
    EXPECT_EQ(machine_->take_console(), "line: probe e\nready\n");
    for (const std::string text : {"hello, ", "guest", "q"}) {
        EXPECT_EQ(machine_->type(std::as_bytes(std::span{text})), text.size());
        std::this_thread::sleep_for(20ms);  // so that it sleeps in between
    }
    ASSERT_TRUE(await_end()) << machine_->console();
    EXPECT_EQ(machine_->exit_code(), 0u);
    EXPECT_EQ(machine_->console(), "hello, guestq");
    ASSERT_TRUE(machine_->stop());
}

TEST_F(GuestKernelOnKvm, WhatDoesNotFitIsRefused) {
    const auto refused = [&](const GuestKernel& kernel) {
        auto machine = VirtualMachine::create(*system_, {.vcpus = 1, .memory_bytes = 4u << 20});
        EXPECT_TRUE(machine);
        const auto loaded = load_guest_kernel(**machine, kernel);
        EXPECT_FALSE(loaded);
        return loaded ? ErrorCode::kIo : loaded.error().code;
    };
    GuestKernel large_initrd = kernel_;
    large_initrd.initrd.resize(4u << 20);
    EXPECT_EQ(refused(large_initrd), ErrorCode::kInvalidArgument);
    GuestKernel long_line = kernel_;
    long_line.command_line.assign(70'000, 'x');
    EXPECT_EQ(refused(long_line), ErrorCode::kInvalidArgument);
    GuestKernel large = kernel_;
    // bss_end_addr of its header: beyond the memory.
    const std::uint32_t end = 8u << 20;
    std::memcpy(large.image.data() + 24, &end, sizeof end);
    EXPECT_EQ(refused(large), ErrorCode::kInvalidArgument);
    GuestKernel none = kernel_;
    none.image.clear();
    EXPECT_EQ(refused(none), ErrorCode::kMalformed);
}

}  // namespace
}  // namespace continuo::vmm
