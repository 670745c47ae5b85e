// A snapshot of a VM's memory, written and read back, against the least that the job needs: the
// same bytes written to such a file and read from it in large pieces, as dd does. In turn, pair by
// pair, on a file in memory: a disk would hide what we cost. No KVM: the VM is its memory.
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "continuo/vmm/snapshot.h"

namespace {

using namespace continuo;
using Clock = std::chrono::steady_clock;

constexpr std::size_t kPage = 4096;
constexpr std::size_t kPiece = 512 << 10;

[[noreturn]] void give_up(const std::string& why) {
    fmt::print(stderr, "snapshot_bench: {}\n", why);
    std::exit(1);
}

/// Memory as a guest's is: of a memfd, without pages before they are touched.
class Memory {
  public:
    explicit Memory(std::size_t size) : fd_{::memfd_create("memory", MFD_CLOEXEC)}, size_{size} {
        void* at = MAP_FAILED;
        if (::ftruncate(fd_.get(), static_cast<off_t>(size)) == 0)
            at = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
        if (at == MAP_FAILED) give_up("no memory");
        at_ = static_cast<std::byte*>(at);
    }
    ~Memory() { ::munmap(at_, size_); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    std::span<std::byte> bytes() const { return {at_, size_}; }

  private:
    kvm::Fd fd_;
    std::size_t size_;
    std::byte* at_;
};

/// Every `stride`th page holds something.
void fill(std::span<std::byte> memory, std::size_t stride) {
    for (std::size_t page = 0; page < memory.size() / kPage; page += stride)
        for (std::size_t word = 0; word < kPage; word += 8) {
            const std::uint64_t value = (page + 1) * 0x9e3779b97f4a7c15 + word;
            std::memcpy(memory.data() + page * kPage + word, &value, sizeof value);
        }
}

class StillVm final : public vmm::SourceVm {
  public:
    StillVm(std::span<const std::byte> memory, std::size_t stride)
        : memory_{memory}, stride_{stride} {}
    vmm::Bytes shape() override { return vmm::Bytes(2048); }
    std::span<const std::byte> memory() override { return memory_; }
    state::Status fetch_touched_pages(std::vector<std::uint64_t>& bitmap) override {
        bitmap.assign((memory_.size() / kPage + 63) / 64, 0);
        for (std::size_t page = 0; page < memory_.size() / kPage; page += stride_)
            bitmap[page / 64] |= std::uint64_t{1} << page % 64;
        return {};
    }
    state::Status log_dirty_pages(bool) override { return {}; }
    state::Status fetch_dirty_pages(std::vector<std::uint64_t>&) override { return {}; }
    state::Status stop() override { return {}; }
    state::Result<vmm::Bytes> capture_clocks() override { return vmm::Bytes(500); }
    state::Result<vmm::Bytes> save_state() override { return vmm::Bytes(20'000); }
    state::Status resume() override { return {}; }
    void destroy() override {}

  private:
    std::span<const std::byte> memory_;
    std::size_t stride_;
};

class NewVm final : public vmm::DestinationVm {
  public:
    explicit NewVm(std::span<std::byte> memory) : memory_{memory} {}
    state::Status create(std::span<const std::byte>) override { return {}; }
    std::span<std::byte> memory() override { return memory_; }
    state::Status load(std::span<const std::byte>, std::span<const std::byte>) override {
        return {};
    }
    state::Status run() override { return {}; }
    void discard() override {}

  private:
    std::span<std::byte> memory_;
};

kvm::Fd new_file() {
    return kvm::Fd{::memfd_create("snapshot", MFD_CLOEXEC)};
}

double ms_since(Clock::time_point start) {
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

double median(std::vector<double> values) {
    std::ranges::sort(values);
    return values[values.size() / 2];
}

/// The floor of writing: the pages that hold something, from where they lie.
double write_plainly(std::span<const std::byte> memory, std::size_t stride) {
    const kvm::Fd file = new_file();
    const std::size_t piece = stride == 1 ? kPiece : kPage;
    const auto start = Clock::now();
    for (std::size_t at = 0; at < memory.size(); at += piece * stride)
        if (::write(file.get(), memory.data() + at, piece) != static_cast<ssize_t>(piece))
            give_up("a file in memory takes no more");
    return ms_since(start);
}

/// The floor of reading: a file of that size into memory that nobody has touched.
double read_plainly(int file, std::size_t size, std::span<std::byte> memory) {
    const auto start = Clock::now();
    for (std::size_t at = 0; at < size;) {
        const std::size_t room = std::min({kPiece, memory.size() - at, size - at});
        const ssize_t got = ::pread(file, memory.data() + at, room, static_cast<off_t>(at));
        if (got <= 0) break;
        at += static_cast<std::size_t>(got);
    }
    return ms_since(start);
}

struct Times {
    std::vector<double> ours;
    std::vector<double> floor;
    std::vector<double> ratios;
    void take(double our_ms, double floor_ms) {
        ours.push_back(our_ms);
        floor.push_back(floor_ms);
        ratios.push_back(our_ms / floor_ms);
    }
    void print(const char* what) const {
        fmt::print("  {:<10}{:>10.1f} ms{:>12.1f} ms{:>8.2f}\n", what, median(ours), median(floor),
                   median(ratios));
    }
};

void measure(std::size_t size, std::size_t stride, int pairs) {
    const Memory memory{size};
    fill(memory.bytes(), stride);
    StillVm still{memory.bytes(), stride};
    Times saves;
    Times restores;
    vmm::SavedSnapshot saved;
    for (int pair = 0; pair < pairs; ++pair) {
        const kvm::Fd file = new_file();
        auto start = Clock::now();
        const auto done = vmm::save_snapshot(still, file.get(), vmm::AfterSnapshot::kStandStill);
        const double save_ms = ms_since(start);
        if (!done) give_up(done.error().message());
        saved = *done;
        saves.take(save_ms, write_plainly(memory.bytes(), stride));

        const Memory there{size};
        NewVm vm{there.bytes()};
        start = Clock::now();
        const auto restored = vmm::restore_snapshot(file.get(), vm, {UINT64_MAX, UINT64_MAX}, {});
        const double restore_ms = ms_since(start);
        if (!restored) give_up(restored.error().message());
        if (!std::ranges::equal(there.bytes(), memory.bytes())) give_up("another memory came back");
        const Memory plain{size};
        restores.take(restore_ms, read_plainly(file.get(), saved.bytes, plain.bytes()));
    }
    const std::uint64_t held = saved.pages * kPage;
    fmt::print(
        "{} MiB of memory, {} MiB hold something: a file of {} bytes, {:.3f} times what it "
        "holds\n",
        size >> 20, held >> 20, saved.bytes,
        static_cast<double>(saved.bytes) / static_cast<double>(held));
    saves.print("save");
    restores.print("restore");
}

}  // namespace

int main(int argc, char** argv) {
    const int pairs = argc > 1 ? std::max(1, std::atoi(argv[1])) : 11;
    fmt::print("medians of {} pairs {:>15}{:>15}{:>8}\n", pairs, "snapshot", "bare copy", "ratio");
    measure(std::size_t{512} << 20, 1, pairs);
    measure(std::size_t{512} << 20, 8, pairs);
    return 0;
}
