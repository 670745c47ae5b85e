#include "kernel_log.h"

#include <sys/klog.h>

#include <cerrno>
#include <cstring>

namespace continuo::vmm::counter_bench {

std::string kvm_mode(std::string_view log) {
    constexpr std::string_view kEnd = " mode initialized successfully";
    const std::size_t end = log.find(kEnd);
    if (end == std::string_view::npos) return {};
    const std::size_t line = log.rfind('\n', end);
    std::string_view said = log.substr(line == std::string_view::npos ? 0 : line + 1);
    said = said.substr(0, said.find(kEnd));
    const std::size_t name = said.rfind(": ");
    if (said.find("kvm") == std::string_view::npos || name == std::string_view::npos) return {};
    said.remove_prefix(name + 2);
    // "Hyp" alone up to Linux 6.2 or so, "Hyp nVHE" since.
    if (said == "Hyp" || said == "Hyp nVHE") return "nVHE";
    if (said == "Hyp hVHE") return "hVHE";
    return std::string{said};
}

bool has_cntpoff(std::string_view log) {
    return log.find("Enhanced Counter Virtualization (CNTPOFF)") != std::string_view::npos;
}

std::string read_kernel_log(std::string& why) {
    constexpr int kReadAll = 3;
    constexpr int kSizeBuffer = 10;
    const int size = ::klogctl(kSizeBuffer, nullptr, 0);
    std::string log(size > 0 ? static_cast<std::size_t>(size) : 0, '\0');
    const int got = size > 0 ? ::klogctl(kReadAll, log.data(), size) : size;
    if (got < 0) {
        why = std::string{"the kernel's log cannot be read: "} + strerrordesc_np(errno);
        return {};
    }
    log.resize(static_cast<std::size_t>(got));
    return log;
}

}  // namespace continuo::vmm::counter_bench
