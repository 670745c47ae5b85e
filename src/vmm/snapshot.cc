#include "continuo/vmm/snapshot.h"

#include <sys/stat.h>

#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "protocol.h"
#include "snapshot_file.h"

namespace continuo::vmm {

namespace {

using state::Error;
using state::ErrorCode;
using Clock = std::chrono::steady_clock;

/// SNAPSHOT, the first frame.
struct Head {
    SnapshotId id{};
    std::uint64_t memory_bytes = 0;
    Bytes shape;
};

Bytes encode_head(const Head& head) {
    return PayloadWriter{}.put(head.id).put(head.memory_bytes).put_block(head.shape).take();
}

bool is_zero(std::span<const std::byte> page) {
    return page[0] == std::byte{0} &&
           std::memcmp(page.data(), page.data() + 1, page.size() - 1) == 0;
}

/// Puts pages of memory that stands still into PAGES frames, without copying them.
class PageWriter {
  public:
    PageWriter(FrameFileWriter& file, std::span<const std::byte> memory, SavedSnapshot& stats)
        : file_{file}, memory_{memory}, stats_{stats} {}

    Status add(std::uint64_t page) {
        const auto bytes = memory_.subspan(page * kPageBytes, kPageBytes);
        if (is_zero(bytes)) {
            ++stats_.zero_pages;
            return {};
        }
        ++stats_.pages;
        entries_.push_back(page << 1 | kPageHasData);
        const bool goes_on =
            !runs_.empty() && runs_.back().data() + runs_.back().size() == bytes.data();
        if (goes_on) {
            runs_.back() = {runs_.back().data(), runs_.back().size() + kPageBytes};
        } else {
            runs_.push_back(bytes);
        }
        return entries_.size() == kPagesAFrame ? flush() : Status{};
    }

    Status flush() {
        if (entries_.empty()) return {};
        const Bytes head = PayloadWriter{}
                               .put(static_cast<std::uint32_t>(entries_.size()))
                               .put(std::uint32_t{0})
                               .put_bytes(std::as_bytes(std::span{entries_}))
                               .take();
        runs_.insert(runs_.begin(), head);
        Status done = file_.put(FrameType::kPages, runs_);
        entries_.clear();
        runs_.clear();
        return done;
    }

  private:
    FrameFileWriter& file_;
    std::span<const std::byte> memory_;
    SavedSnapshot& stats_;
    std::vector<std::uint64_t> entries_;
    std::vector<std::span<const std::byte>> runs_;  ///< of pages side by side
};

Status write_memory(FrameFileWriter& file, SourceVm& vm, SavedSnapshot& stats) {
    std::vector<std::uint64_t> touched;
    if (auto done = vm.fetch_touched_pages(touched); !done) return done;
    PageWriter pages{file, vm.memory(), stats};
    const std::uint64_t count = vm.memory().size() / kPageBytes;
    for (std::size_t word = 0; word < touched.size(); ++word) {
        for (std::uint64_t bits = touched[word]; bits != 0; bits &= bits - 1) {
            const std::uint64_t page =
                word * 64 + static_cast<std::uint64_t>(std::countr_zero(bits));
            if (page >= count) break;
            if (auto done = pages.add(page); !done) return done;
        }
    }
    return pages.flush();
}

Status write_stopped(SourceVm& vm, int fd, SavedSnapshot& stats) {
    FrameFileWriter file{fd};
    const auto clocks = vm.capture_clocks();
    if (!clocks) return tl::unexpected(clocks.error());
    const Bytes head = encode_head({stats.id, vm.memory().size(), vm.shape()});
    if (auto done = file.put(FrameType::kSnapshot, head); !done) return done;
    if (auto done = file.put(FrameType::kClocks, *clocks); !done) return done;
    // Before memory: reading a vCPU's state may write into it.
    const auto state = vm.save_state();
    if (!state) return tl::unexpected(state.error());
    if (auto done = file.put(FrameType::kState, *state); !done) return done;
    if (auto done = write_memory(file, vm, stats); !done) return done;
    if (auto done = file.put_end(stats.pages); !done) return done;
    stats.bytes = file.bytes();
    return {};
}

Status check_empty_file(int fd) {
    struct stat info {};
    if (::fstat(fd, &info) != 0)
        return state::fail(ErrorCode::kIo, "fstat", "the file cannot be looked at", {}, errno);
    if (S_ISREG(info.st_mode) && info.st_size == 0) return {};
    return state::fail(ErrorCode::kInvalidArgument, "snapshot",
                       "what it is to be written into is no empty regular file",
                       "give the name of a new file");
}

/// One snapshot being read into a VM.
class Restore {
  public:
    Restore(FrameFileReader& file, DestinationVm& vm, const HostMemory& host,
            const ReadProgress& progress)
        : file_{file}, vm_{vm}, host_{host}, progress_{progress} {}

    Result<RestoredSnapshot> run() {
        const auto started = Clock::now();
        if (auto done = read_all(); !done) return give_up(std::move(done.error()));
        out_.reading = Clock::now() - started;
        if (auto done = vm_.load(state_, clocks_); !done) return give_up(std::move(done.error()));
        if (auto done = vm_.run(); !done) return give_up(std::move(done.error()));
        out_.total = Clock::now() - started;
        out_.bytes = file_.size();
        return out_;
    }

  private:
    tl::unexpected<Error> give_up(Error error) {
        if (created_) vm_.discard();
        return tl::unexpected(std::move(error));
    }

    Status read_all() {
        if (auto done = take_head(); !done) return done;
        if (auto done = take_block(FrameType::kClocks, clocks_); !done) return done;
        if (auto done = take_block(FrameType::kState, state_); !done) return done;
        return take_pages();
    }

    Result<FrameFileReader::View> expect(FrameType type) {
        auto frame = file_.next();
        if (!frame || frame->type == type) return frame;
        return wrong_frame(*frame, name(type));
    }

    static tl::unexpected<Error> wrong_frame(const FrameFileReader::View& frame,
                                             std::string_view due) {
        const bool migration = frame.offset == 0 && frame.type == FrameType::kHello;
        return bad_snapshot(ErrorCode::kMalformed, frame.offset,
                            "a " + std::string{name(frame.type)} + " frame stands where " +
                                std::string{due} + " is due",
                            migration ? "that is a migration's stream: `continuo vm receive`" : "");
    }

    Status take_head() {
        const auto frame = expect(FrameType::kSnapshot);
        if (!frame) return tl::unexpected(frame.error());
        PayloadReader in{frame->payload};
        out_.id = in.get<SnapshotId>();
        memory_bytes_ = in.get<std::uint64_t>();
        const auto shape = in.get_block();
        if (!in.complete())
            return bad_snapshot(ErrorCode::kMalformed, frame->offset, "its SNAPSHOT is wrong");
        if (auto fits = check_room(); !fits) return fits;
        if (auto created = vm_.create(shape); !created) return created;
        created_ = true;
        if (vm_.memory().size() == memory_bytes_) return {};
        return bad_snapshot(ErrorCode::kMalformed, frame->offset,
                            "the memory's size is not that of the VM's shape");
    }

    /// Memory is taken page by page as it is written to, and who takes too much is killed for it:
    /// so it is known before.
    Status check_room() const {
        if (memory_bytes_ > host_.total) {
            return too_large("the VM has " + std::to_string(memory_bytes_) +
                                 " bytes of memory, this host " + std::to_string(host_.total),
                             "restore it on a host with more memory");
        }
        if (file_.size() > host_.available) {
            return too_large("its pages take " + std::to_string(file_.size()) +
                                 " bytes of memory, of which this host has " +
                                 std::to_string(host_.available) + " left",
                             "end something, or restore it on another host");
        }
        return {};
    }

    static tl::unexpected<Error> too_large(std::string what, std::string advice) {
        return state::fail(ErrorCode::kTooLarge, "memory", std::move(what), std::move(advice));
    }

    Status take_block(FrameType type, Bytes& into) {
        const auto frame = expect(type);
        if (!frame) return tl::unexpected(frame.error());
        into.assign(frame->payload.begin(), frame->payload.end());
        return {};
    }

    Status take_pages() {
        MigrationStats stats;
        for (;;) {
            const auto frame = file_.next();
            if (!frame) return tl::unexpected(frame.error());
            if (progress_) progress_(file_.bytes_read(), file_.size());
            out_.pages = stats.pages_sent;
            if (frame->type == FrameType::kEnd) return file_.check_end(*frame, out_.pages);
            if (frame->type != FrameType::kPages) return wrong_frame(*frame, "PAGES or END");
            if (auto done = apply_pages(frame->payload, vm_.memory(), stats); !done)
                return at_byte(frame->offset, std::move(done.error()));
        }
    }

    FrameFileReader& file_;
    DestinationVm& vm_;
    const HostMemory& host_;
    const ReadProgress& progress_;
    RestoredSnapshot out_;
    std::uint64_t memory_bytes_ = 0;
    Bytes clocks_;
    Bytes state_;
    bool created_ = false;
};

}  // namespace

Result<SavedSnapshot> save_snapshot(SourceVm& vm, int fd, AfterSnapshot after) {
    if (auto empty = check_empty_file(fd); !empty) return tl::unexpected(std::move(empty.error()));
    SavedSnapshot stats;
    stats.id = new_migration_id();
    const auto stopped_at = Clock::now();
    Status done = vm.stop();
    if (done) done = write_stopped(vm, fd, stats);
    if (!done || after == AfterSnapshot::kGoOn) {
        if (auto resumed = vm.resume(); !resumed) return tl::unexpected(std::move(resumed.error()));
    }
    stats.stood_still = Clock::now() - stopped_at;
    if (!done) return tl::unexpected(std::move(done.error()));
    return stats;
}

Result<HostMemory> this_hosts_memory() {
    std::FILE* file = std::fopen("/proc/meminfo", "re");
    if (file == nullptr) return kvm::kernel_failure("/proc/meminfo", errno);
    unsigned long long total = 0;
    unsigned long long available = 0;
    char line[128];
    while (std::fgets(line, sizeof line, file) != nullptr) {
        (void)std::sscanf(line, "MemTotal: %llu kB", &total);
        (void)std::sscanf(line, "MemAvailable: %llu kB", &available);
    }
    std::fclose(file);
    if (total == 0 || available == 0)
        return state::fail(ErrorCode::kKernel, "/proc/meminfo",
                           "it does not say how much there is");
    return HostMemory{total << 10, available << 10};
}

Result<RestoredSnapshot> restore_snapshot(int fd, DestinationVm& vm, const HostMemory& host,
                                          const ReadProgress& progress) {
    auto file = FrameFileReader::open(fd);
    if (!file) return tl::unexpected(std::move(file.error()));
    return Restore{*file, vm, host, progress}.run();
}

}  // namespace continuo::vmm
