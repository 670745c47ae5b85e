#include "shared_page.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string_view>
#include <thread>

#include "continuo/kvm/fd.h"

namespace continuo::crosshost {

namespace {

using state::ErrorCode;

constexpr std::size_t kPageBytes = 4096;

std::string first_word(const std::filesystem::path& path) {
    std::ifstream file{path};
    std::string word;
    file >> word;
    return word;
}

bool is_ivshmem(const std::filesystem::path& device) {
    return first_word(device / "vendor") == "0x1af4" && first_word(device / "device") == "0x1110";
}

Result<std::string> find_bar() {
    std::error_code error;
    const std::filesystem::directory_iterator devices{"/sys/bus/pci/devices", error};
    for (const auto& device : devices)
        if (is_ivshmem(device.path())) return (device.path() / "resource2").string();
    return state::fail(ErrorCode::kUnsupported, "/sys/bus/pci/devices",
                       "there is no ivshmem device (1af4:1110)",
                       "Run this inside `continuo-lab pair`");
}

/// A device that nobody has enabled does not answer reads of its memory.
Status enable_memory(const std::string& bar) {
    const auto path = std::filesystem::path{bar}.parent_path() / "enable";
    if (first_word(path) != "0") return {};
    std::ofstream file{path};
    file << 1 << std::flush;
    if (file) return {};
    return state::fail(ErrorCode::kIo, path.string(), "the device cannot be enabled", "Run as root",
                       errno);
}

}  // namespace

Result<Side> this_side() {
    const char* text = std::getenv("CONTINUO_LAB_NAME");
    const std::string_view name{text != nullptr ? text : ""};
    if (name == "a") return Side::kA;
    if (name == "b") return Side::kB;
    return state::fail(ErrorCode::kUnsupported, "CONTINUO_LAB_NAME", "it is neither a nor b",
                       "Run this inside `continuo-lab pair`");
}

Result<SharedPage> SharedPage::open(Side side) {
    const auto bar = find_bar();
    if (!bar) return tl::unexpected(bar.error());
    if (auto enabled = enable_memory(*bar); !enabled)
        return tl::unexpected(std::move(enabled.error()));
    const kvm::Fd fd{::open(bar->c_str(), O_RDWR | O_CLOEXEC)};
    if (!fd) return state::fail(ErrorCode::kIo, *bar, "cannot be opened", "Run as root", errno);
    void* at = ::mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
    if (at == MAP_FAILED) return state::fail(ErrorCode::kIo, *bar, "cannot be mapped", {}, errno);
    return SharedPage{side, static_cast<PageLayout*>(at)};
}

Status SharedPage::meet(std::chrono::milliseconds timeout) {
    auto& mine = side_ == Side::kA ? words_->arrivals_a : words_->arrivals_b;
    auto& other = side_ == Side::kA ? words_->arrivals_b : words_->arrivals_a;
    const std::uint64_t arrival = mine.load() + 1;
    mine.store(arrival);
    const auto until = std::chrono::steady_clock::now() + timeout;
    while (other.load() < arrival) {
        if (std::chrono::steady_clock::now() > until)
            return state::fail(ErrorCode::kTimeout, "the other host",
                               "it did not come to meeting " + std::to_string(arrival));
        std::this_thread::sleep_for(std::chrono::microseconds{500});
    }
    return {};
}

void SharedPage::Unmap::operator()(PageLayout* words) const {
    ::munmap(words, kPageBytes);
}

}  // namespace continuo::crosshost
