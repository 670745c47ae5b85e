// A snapshot's file without KVM: fake VMs, real files. Whatever is done to the file, a VM that is
// not the one which was saved never runs; whatever happens to the writing, the VM goes on.
#include "continuo/vmm/snapshot.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <set>

#include "protocol.h"
#include "snapshot_file.h"

namespace continuo::vmm {
namespace {

using state::ErrorCode;

constexpr std::size_t kPages = 300;
constexpr HostMemory kRoomy{1ull << 40, 1ull << 40};

Status failure(const std::string& what) {
    return state::fail(ErrorCode::kKernel, "fake", what);
}

class FakeSource : public SourceVm {
  public:
    /// Pages 1, 2, 5 and so on hold something; most others were touched and are zero.
    explicit FakeSource(std::vector<std::size_t> pages) : memory_(kPages * kPageBytes) {
        for (const std::size_t page : pages)
            fill(page, static_cast<int>(page) + 1);
    }
    void fill(std::size_t page, int value) {
        std::memset(memory_.data() + page * kPageBytes, value, kPageBytes);
    }

    Bytes shape() override { return Bytes(3, std::byte{9}); }
    std::span<const std::byte> memory() override { return memory_; }
    Status fetch_touched_pages(std::vector<std::uint64_t>& bitmap) override {
        bitmap.assign((kPages + 63) / 64, ~std::uint64_t{0});
        return fail_at == "touched" ? failure("touched") : Status{};
    }
    Status log_dirty_pages(bool) override { return failure("log"); }
    Status fetch_dirty_pages(std::vector<std::uint64_t>&) override { return failure("log"); }
    Status stop() override {
        running = false;
        return fail_at == "stop" ? failure("stop") : Status{};
    }
    Result<Bytes> capture_clocks() override {
        EXPECT_FALSE(running);
        if (fail_at == "capture") return tl::unexpected(failure("capture").error());
        return Bytes(7, std::byte{1});
    }
    Result<Bytes> save_state() override {
        EXPECT_FALSE(running);
        if (fail_at == "save") return tl::unexpected(failure("save").error());
        fill(0, 77);  // as KVM may, when it is asked for a vCPU's state
        return Bytes(11, std::byte{2});
    }
    Status resume() override {
        running = true;
        return {};
    }
    void destroy() override { FAIL() << "a snapshot destroys nothing"; }

    std::string fail_at;
    bool running = true;

  private:
    Bytes memory_;
};

class FakeDestination : public DestinationVm {
  public:
    Status create(std::span<const std::byte> shape) override {
        if (fail_at == "create" || shape.size() != 3) return failure("create");
        memory_.assign(memory_pages * kPageBytes, std::byte{0});
        return {};
    }
    std::span<std::byte> memory() override { return memory_; }
    Status load(std::span<const std::byte> state, std::span<const std::byte> clocks) override {
        if (fail_at == "load" || state.size() != 11 || clocks.size() != 7) return failure("load");
        return {};
    }
    Status run() override {
        if (fail_at == "run") return failure("run");
        running = true;
        return {};
    }
    void discard() override { discarded = true; }

    std::string fail_at;
    std::size_t memory_pages = kPages;
    bool running = false;
    bool discarded = false;

  private:
    Bytes memory_;
};

kvm::Fd new_file() {
    return kvm::Fd{::memfd_create("snapshot", MFD_CLOEXEC)};
}

Bytes contents(const kvm::Fd& file) {
    struct stat info {};
    EXPECT_EQ(::fstat(file.get(), &info), 0);
    Bytes bytes(static_cast<std::size_t>(info.st_size));
    EXPECT_EQ(::pread(file.get(), bytes.data(), bytes.size(), 0),
              static_cast<ssize_t>(bytes.size()));
    return bytes;
}

void overwrite(const kvm::Fd& file, std::size_t at, std::span<const std::byte> bytes) {
    ASSERT_EQ(::pwrite(file.get(), bytes.data(), bytes.size(), static_cast<off_t>(at)),
              static_cast<ssize_t>(bytes.size()));
}

kvm::Fd file_of(std::span<const std::byte> bytes) {
    kvm::Fd file = new_file();
    overwrite(file, 0, bytes);
    return file;
}

kvm::Fd snapshot_of(FakeSource& source) {
    kvm::Fd file = new_file();
    const auto saved = save_snapshot(source, file.get(), AfterSnapshot::kGoOn);
    EXPECT_TRUE(saved) << saved.error().message();
    return file;
}

Result<RestoredSnapshot> restore(const kvm::Fd& file, FakeDestination& vm,
                                 const HostMemory& host = kRoomy) {
    return restore_snapshot(file.get(), vm, host, {});
}

/// The error of a file that must not become a VM.
state::Error refusal_of(const kvm::Fd& file, const HostMemory& host = kRoomy) {
    FakeDestination vm;
    const auto restored = restore(file, vm, host);
    EXPECT_FALSE(vm.running);
    if (!restored) return restored.error();
    ADD_FAILURE() << "it was restored";
    return {};
}

/// Where each frame begins, and where the last one ends.
std::vector<std::size_t> frames_of(const Bytes& bytes) {
    std::vector<std::size_t> at{0};
    while (at.back() < bytes.size()) {
        FrameHeader header;
        std::memcpy(&header, bytes.data() + at.back(), sizeof header);
        at.push_back(at.back() + sizeof header + header.length);
    }
    return at;
}

TEST(Snapshot, AnyNumberOfVmsAreMadeOfOne) {
    std::vector<std::size_t> pages;
    for (std::size_t page = 3; page < kPages; page += page < 200 ? 1 : 7)
        pages.push_back(page);
    FakeSource source{pages};
    const kvm::Fd file = new_file();
    const auto saved = save_snapshot(source, file.get(), AfterSnapshot::kGoOn);
    ASSERT_TRUE(saved) << saved.error().message();
    EXPECT_TRUE(source.running);
    EXPECT_EQ(saved->pages, pages.size() + 1) << "with the page that came with the state";
    EXPECT_EQ(saved->pages + saved->zero_pages, kPages);
    // 212 pages are two frames; no page that is zero is in them.
    EXPECT_EQ(saved->bytes,
              24 + 31 + 24 + 7 + 24 + 11 + 2 * (24 + 8) + saved->pages * (4096 + 8) + 24 + 24);
    EXPECT_EQ(contents(file).size(), saved->bytes);
    for (int i = 0; i < 3; ++i) {
        FakeDestination vm;
        const auto restored = restore(file, vm);
        ASSERT_TRUE(restored) << restored.error().message();
        EXPECT_TRUE(vm.running);
        EXPECT_TRUE(std::ranges::equal(vm.memory(), source.memory()));
        EXPECT_EQ(restored->id, saved->id);
        EXPECT_EQ(restored->pages, saved->pages);
        EXPECT_EQ(restored->bytes, saved->bytes);
    }
}

TEST(Snapshot, ItStandsStillWhereThatIsWanted) {
    FakeSource source{{1}};
    const kvm::Fd file = new_file();
    ASSERT_TRUE(save_snapshot(source, file.get(), AfterSnapshot::kStandStill));
    EXPECT_FALSE(source.running);
}

TEST(Snapshot, AVmThatCannotBeSavedGoesOn) {
    for (const char* at : {"stop", "capture", "save", "touched"}) {
        FakeSource source{{1}};
        source.fail_at = at;
        const kvm::Fd file = new_file();
        const auto saved = save_snapshot(source, file.get(), AfterSnapshot::kStandStill);
        ASSERT_FALSE(saved);
        EXPECT_EQ(saved.error().what, at);
        EXPECT_TRUE(source.running) << at;
        (void)refusal_of(file);
    }
}

TEST(Snapshot, AFullDiskLosesNothing) {
    FakeSource source{{1, 2, 9}};
    const std::size_t whole = contents(snapshot_of(source)).size();
    // A limit of a file's size is met like the end of a disk: part of a write is done, then none.
    rlimit before{};
    ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
    const auto old = std::signal(SIGXFSZ, SIG_IGN);
    for (std::size_t room = 0; room < whole; room += room < 300 ? 7 : 1009) {
        const kvm::Fd file = new_file();
        const rlimit limit{room, before.rlim_max};
        ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
        const auto saved = save_snapshot(source, file.get(), AfterSnapshot::kStandStill);
        ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
        ASSERT_FALSE(saved);
        EXPECT_EQ(saved.error().code, ErrorCode::kIo);
        EXPECT_EQ(saved.error().sys_errno, EFBIG);
        EXPECT_EQ(saved.error().where, "byte " + std::to_string(room));
        EXPECT_TRUE(source.running);
        EXPECT_EQ(refusal_of(file).code, ErrorCode::kTruncated);
    }
    std::signal(SIGXFSZ, old);
}

TEST(Snapshot, OnlyAnEmptyRegularFileIsWrittenInto) {
    FakeSource source{{1}};
    const kvm::Fd used = file_of(Bytes(1, std::byte{0}));
    int pipe[2];
    ASSERT_EQ(::pipe(pipe), 0);
    const kvm::Fd in{pipe[0]};
    const kvm::Fd out{pipe[1]};
    for (const int fd : {used.get(), out.get()}) {
        const auto saved = save_snapshot(source, fd, AfterSnapshot::kGoOn);
        ASSERT_FALSE(saved);
        EXPECT_EQ(saved.error().code, ErrorCode::kInvalidArgument);
        EXPECT_TRUE(source.running);
    }
    EXPECT_EQ(refusal_of(in).code, ErrorCode::kInvalidArgument);
}

TEST(Snapshot, EveryPrefixIsCutOff) {
    FakeSource source{{1, 2, 9}};
    const Bytes bytes = contents(snapshot_of(source));
    const kvm::Fd file = file_of(bytes);
    for (std::size_t size = bytes.size(); size-- > 0;) {
        ASSERT_EQ(::ftruncate(file.get(), static_cast<off_t>(size)), 0);
        const state::Error error = refusal_of(file);
        ASSERT_EQ(error.code, ErrorCode::kTruncated) << size << ": " << error.message();
        ASSERT_EQ(error.where, "byte " + std::to_string(size));
    }
}

TEST(Snapshot, EveryFlippedBitIsSeen) {
    FakeSource source{{1}};
    const Bytes bytes = contents(snapshot_of(source));
    const kvm::Fd file = file_of(bytes);
    std::set<ErrorCode> codes;
    const std::size_t pages = frames_of(bytes)[4] - 2 * kPageBytes;
    for (std::size_t bit = 0; bit < bytes.size() * 8; ++bit) {
        // One bit of each byte of the pages is enough.
        if (bit / 8 >= pages && bit / 8 < pages + 2 * kPageBytes && bit % 8 != bit / 8 % 8)
            continue;
        const std::byte flipped = bytes[bit / 8] ^ static_cast<std::byte>(1u << bit % 8);
        overwrite(file, bit / 8, {&flipped, 1});
        codes.insert(refusal_of(file).code);
        overwrite(file, bit / 8, {&bytes[bit / 8], 1});
        if (HasFailure()) FAIL() << "bit " << bit;
    }
    const std::set<ErrorCode> expected{ErrorCode::kMalformed, ErrorCode::kTruncated,
                                       ErrorCode::kIntegrity, ErrorCode::kVersion,
                                       ErrorCode::kTooLarge};
    EXPECT_EQ(codes, expected);
}

TEST(Snapshot, FramesOfTwoSnapshotsMakeNoThird) {
    FakeSource source{{1, 2}};
    const Bytes first = contents(snapshot_of(source));
    source.fill(1, 99);
    const Bytes second = contents(snapshot_of(source));
    const std::vector<std::size_t> at = frames_of(first);
    ASSERT_EQ(at, frames_of(second));
    ASSERT_EQ(at.size(), 6u) << "SNAPSHOT, CLOCKS, STATE, PAGES, END";
    // Each frame by itself is whole, and in its place.
    for (const std::size_t frame : {std::size_t{0}, std::size_t{3}, std::size_t{4}}) {
        Bytes mixed = first;
        std::copy(second.begin() + static_cast<std::ptrdiff_t>(at[frame]),
                  second.begin() + static_cast<std::ptrdiff_t>(at[frame + 1]),
                  mixed.begin() + static_cast<std::ptrdiff_t>(at[frame]));
        const state::Error error = refusal_of(file_of(mixed));
        EXPECT_EQ(error.code, ErrorCode::kIntegrity) << frame << error.message();
        EXPECT_NE(error.what.find("another snapshot"), std::string::npos);
    }
}

TEST(Snapshot, MissingDoubledAndStrangeFramesAreNamed) {
    FakeSource source{{1, 2}};
    const Bytes bytes = contents(snapshot_of(source));
    const std::vector<std::size_t> at = frames_of(bytes);
    for (std::size_t frame = 0; frame + 1 < at.size(); ++frame) {
        const auto begin = bytes.begin() + static_cast<std::ptrdiff_t>(at[frame]);
        const auto end = bytes.begin() + static_cast<std::ptrdiff_t>(at[frame + 1]);
        Bytes without{bytes.begin(), begin};
        without.insert(without.end(), end, bytes.end());
        const bool last = frame + 2 == at.size();
        EXPECT_EQ(refusal_of(file_of(without)).code,
                  last ? ErrorCode::kTruncated : ErrorCode::kMalformed);
        Bytes twice{bytes.begin(), end};
        twice.insert(twice.end(), begin, bytes.end());
        EXPECT_EQ(refusal_of(file_of(twice)).code, ErrorCode::kMalformed);
    }
    Bytes longer = bytes;
    longer.push_back(std::byte{0});
    EXPECT_NE(refusal_of(file_of(longer)).what.find("left over"), std::string::npos);

    const kvm::Fd stream = new_file();
    FrameFileWriter writer{stream.get()};
    ASSERT_TRUE(writer.put(FrameType::kHello, encode_hello({})));
    EXPECT_NE(refusal_of(stream).advice.find("vm receive"), std::string::npos);
    EXPECT_EQ(refusal_of(file_of(Bytes(4096, std::byte{0}))).what,
              "no snapshot has such bytes here");
}

TEST(Snapshot, ANewerFormatIsNamed) {
    FakeSource source{{1}};
    Bytes bytes = contents(snapshot_of(source));
    bytes[offsetof(FrameHeader, version)] = std::byte{kFrameVersion + 1};
    const state::Error error = refusal_of(file_of(bytes));
    EXPECT_EQ(error.code, ErrorCode::kVersion);
    EXPECT_NE(error.what.find("version " + std::to_string(kFrameVersion + 1)), std::string::npos);
    EXPECT_EQ(error.advice, "use the release that wrote it");
}

TEST(Snapshot, AHostWithoutTheMemoryIsNamedBeforeAnyIsTaken) {
    FakeSource source{{1}};
    const kvm::Fd file = snapshot_of(source);
    const std::uint64_t memory = kPages * kPageBytes;
    const state::Error total = refusal_of(file, {memory - 1, memory - 1});
    EXPECT_EQ(total.code, ErrorCode::kTooLarge);
    EXPECT_NE(total.what.find(std::to_string(memory)), std::string::npos);
    const state::Error available = refusal_of(file, {memory, 4096});
    EXPECT_EQ(available.code, ErrorCode::kTooLarge);
    EXPECT_NE(available.what.find("4096"), std::string::npos);
    const auto here = this_hosts_memory();
    ASSERT_TRUE(here);
    EXPECT_GE(here->total, here->available);
    EXPECT_GT(here->available, 1u << 20);
}

TEST(Snapshot, AVmThatCannotBeMadeIsDiscarded) {
    FakeSource source{{1}};
    const kvm::Fd file = snapshot_of(source);
    for (const char* at : {"create", "load", "run"}) {
        FakeDestination vm;
        vm.fail_at = at;
        const auto restored = restore(file, vm);
        ASSERT_FALSE(restored);
        EXPECT_EQ(restored.error().what, at);
        EXPECT_FALSE(vm.running);
        EXPECT_EQ(vm.discarded, vm.fail_at != "create");
    }
    FakeDestination smaller;
    smaller.memory_pages = kPages - 1;
    EXPECT_EQ(restore(file, smaller).error().code, ErrorCode::kMalformed);
    EXPECT_TRUE(smaller.discarded);
    FakeDestination whole;
    EXPECT_TRUE(restore(file, whole)) << "and the file is as it was";
}

TEST(Snapshot, NoGenerationComesTwice) {
    std::set<std::string> seen;
    std::set<std::uint64_t> counters;
    for (int i = 0; i < 1000; ++i) {
        const Generation generation = new_generation();
        EXPECT_NE(generation.counter(), 0u);
        EXPECT_TRUE(seen.insert(text_of(generation.id)).second);
        EXPECT_TRUE(counters.insert(generation.counter()).second);
    }
    EXPECT_EQ(text_of({0x01, 0xab}), "01ab" + std::string(28, '0'));
    EXPECT_EQ((Generation{{0x01, 0xab}}.counter()), 0xab01u);
}

}  // namespace
}  // namespace continuo::vmm
