// KVM's lines in the logs of several kernels.
#include "kernel_log.h"

#include <gtest/gtest.h>

namespace continuo::vmm::counter_bench {
namespace {

TEST(KernelLog, NamesTheMode) {
    const std::pair<std::string_view, std::string_view> lines[] = {
        {"<6>[    0.4] kvm [1]: VHE mode initialized successfully\n", "VHE"},
        {"<6>[    0.4] kvm [1]: VHE+NV2 mode initialized successfully\n", "VHE+NV2"},
        {"<6>[    0.4] kvm [1]: Hyp mode initialized successfully\n", "nVHE"},
        {"<6>[    0.4] kvm [1]: Hyp nVHE mode initialized successfully\n", "nVHE"},
        {"<6>[    0.4] kvm [1]: Hyp hVHE mode initialized successfully\n", "hVHE"},
        {"<6>[    0.4] kvm [1]: Protected nVHE mode initialized successfully\n", "Protected nVHE"},
    };
    for (const auto& [line, mode] : lines) {
        EXPECT_EQ(kvm_mode(line), mode);
        const std::string among = "<6>[    0.1] x: a\n" + std::string{line} + "<6>[    9.9] y: b";
        EXPECT_EQ(kvm_mode(among), mode);
    }
}

TEST(KernelLog, SaysNothingWhereItHasNoLine) {
    for (const std::string_view log :
         {"", "\n", "kvm [1]: HYP mode not available\n", " mode initialized successfully",
          "usb 1-1: host mode initialized successfully\n"})
        EXPECT_EQ(kvm_mode(log), "") << log;
}

TEST(KernelLog, NamesCntpoff) {
    EXPECT_TRUE(has_cntpoff("CPU features: detected: Enhanced Counter Virtualization (CNTPOFF)\n"));
    EXPECT_FALSE(has_cntpoff("CPU features: detected: Enhanced Counter Virtualization\n"));
    EXPECT_FALSE(has_cntpoff(""));
}

}  // namespace
}  // namespace continuo::vmm::counter_bench
