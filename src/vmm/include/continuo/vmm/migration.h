// Live migration of one VM over a connected stream socket: pre-copy by dirty log, stop, the rest,
// state, clocks; then the hand-over, in which at no moment two VMs may run and, as long as one
// process that holds the whole VM lives, one does. docs/formats/migration.md has the bytes and the
// reasoning. The VM is behind two small interfaces, so that every step of this runs without KVM.
#pragma once

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <variant>
#include <vector>

#include "continuo/state/exchange.h"
#include "continuo/vmm/address.h"
#include "continuo/vmm/frame.h"
#include "continuo/vmm/process.h"

namespace continuo::vmm {

/// Names one migration; random.
using MigrationId = std::array<std::uint8_t, 16>;
MigrationId new_migration_id();

/// What a migration needs of a running VM.
class SourceVm {
  public:
    virtual ~SourceVm() = default;
    /// What the destination must create: opaque bytes for DestinationVm::create().
    virtual Bytes shape() = 0;
    /// All guest memory, in whole pages. Read while the VM runs, like DMA.
    virtual std::span<const std::byte> memory() = 0;
    /// The pages that may hold anything but zeroes, one bit each, for the first pass; the log is
    /// on.
    virtual Status fetch_touched_pages(std::vector<std::uint64_t>& bitmap) = 0;
    virtual Status log_dirty_pages(bool on) = 0;
    virtual Status fetch_dirty_pages(std::vector<std::uint64_t>& bitmap) = 0;
    virtual Status stop() = 0;
    /// The clocks of the stopped VM, for DestinationVm::load().
    virtual Result<Bytes> capture_clocks() = 0;
    virtual Result<Bytes> save_state() = 0;
    /// Goes on as if nothing had been; also where it was not stopped.
    virtual Status resume() = 0;
    /// Gives the VM up for good.
    virtual void destroy() = 0;
};

/// What a migration needs of a VM to be.
class DestinationVm {
  public:
    virtual ~DestinationVm() = default;
    virtual Status create(std::span<const std::byte> shape) = 0;
    /// All guest memory; zeroes after create().
    virtual std::span<std::byte> memory() = 0;
    /// Loads state, plans the clocks and tries them on. After it, only run() may fail for a reason
    /// that could have been known.
    virtual Status load(std::span<const std::byte> state, std::span<const std::byte> clocks) = 0;
    /// What the exchange told of the source's counter, in all its rounds so far; before load(), and
    /// again before run() where more_rounds_help().
    virtual void take_exchange(const state::Exchange& /*rounds*/) {}
    /// After load(), while the VM stands still: whether some more rounds, now, would tell more than
    /// they cost.
    virtual bool more_rounds_help() { return false; }
    /// Sets the clocks for an instant ahead and lets the vCPUs enter at it.
    virtual Status run() = 0;
    /// Throws the VM away; it has not run.
    virtual void discard() = 0;
};

/// Named steps, for those who watch or break a migration. Told before the step is done.
enum class Step : std::uint8_t {
    kSourceHello,
    kSourceRound,     ///< each pass of pre-copy
    kSourceExchange,  ///< pre-copy is done; the destination may ask for the counter
    kSourceStop,
    kSourceLastPages,
    kSourceState,
    kSourceComplete,
    kSourceAwaitReady,
    kSourceCommit,
    kSourceAwaitRunning,
    kSourceDestroy,
    kSourceDone,
    kDestinationWelcome,
    kDestinationReceive,  ///< each frame of pages
    kDestinationExchange,
    kDestinationStopped,
    kDestinationLoad,
    kDestinationExchangeAgain,
    kDestinationReady,
    kDestinationAwaitCommit,
    kDestinationRun,
    kDestinationRunning,
    kDestinationAwaitDone,
    kStepCount,
};
std::string_view name(Step step);
using StepObserver = std::function<void(Step)>;

/// How far a source is, while its guest still runs.
struct MigrationProgress {
    std::uint32_t round = 0;           ///< the pass over dirty pages that is under way, from 1
    std::uint64_t pages = 0;           ///< to look at in this pass
    std::uint64_t pages_done = 0;      ///< of them
    std::uint64_t bytes = 0;           ///< on the stream, in all
    std::uint64_t bytes_a_second = 0;  ///< as this and the last passes went
    /// What sending the pages that are dirty now would take with the guest stopped; the hand-over
    /// itself comes on top. Known from the end of the first pass on.
    std::optional<std::chrono::nanoseconds> expected_downtime;
};

struct MigrationOptions {
    std::chrono::milliseconds io_timeout{10'000};      ///< for each frame
    std::chrono::milliseconds ready_timeout{60'000};   ///< from COMPLETE to READY
    std::chrono::milliseconds commit_timeout{30'000};  ///< from READY to COMMIT
    std::chrono::milliseconds decide_timeout{
        30'000};                                   ///< to find out, after COMMIT, who has the VM
    std::chrono::milliseconds death_grace{3'000};  ///< an end of stream may be a death under way
    /// Pre-copy ends when the rest takes less.
    std::chrono::nanoseconds downtime_max{std::chrono::milliseconds{50}};
    /// Passes over dirty pages after which the guest is stopped all the same, or, where it is not
    /// to be forced, stays where it is.
    std::uint32_t rounds_max = 8;
    bool force = true;
    /// Told at each pass's begin and end, and some times a second meanwhile; on the sender's
    /// thread.
    std::function<void(const MigrationProgress&)> progress;
    /// Rounds of the exchange that the destination asks for before the stop; 0: none, ever.
    std::uint32_t exchange_rounds = 32;
    std::chrono::milliseconds exchange_time{20};  ///< for all of them, but one at least
    /// Prove a peer's death by a pidfd where it is a process of this host. Off: always as from
    /// another host, by a refused connection; for tests of that.
    bool watch_processes = true;
    StepObserver observer;
};

struct MigrationStats {
    std::uint32_t rounds = 0;
    std::uint64_t pages_sent = 0;
    std::uint64_t zero_pages = 0;
    std::uint64_t last_pages = 0;  ///< sent while the VM stood still
    std::uint64_t bytes = 0;
    std::chrono::nanoseconds total{};
    /// What the last pages were going to take when the source stopped its guest for them.
    std::chrono::nanoseconds expected_downtime{};
    std::chrono::nanoseconds downtime{};  ///< as the source sees it: from stop() to RUNNING
};

/// How it ended for the source: the VM runs there and is gone here, ...
struct Moved {
    MigrationStats stats;
};
/// ... or it runs here, as it did, and the destination has none, ...
struct Kept {
    state::Error reason;
};
/// ... or nobody could tell in time which: the VM stands still here, whole, until somebody decides.
struct Undecided {
    state::Error reason;
};
using SourceOutcome = std::variant<Moved, Kept, Undecided>;

/// What a destination knows of a migration.
enum class DestinationStatus : std::uint32_t {
    kUnknown = 0,
    kReceiving = 1,  ///< nothing is decided
    kReady = 2,      ///< whole, waiting for COMMIT; nothing is decided
    kStarting = 3,   ///< COMMIT has arrived, or the source is dead: it will run or discard
    kRunning = 4,
    kDiscarded = 5,  ///< it does not run here and never will
};
std::string_view name(DestinationStatus status);

/// Asks what became of a migration. kPeer with sys_errno ECONNREFUSED: nobody listens there any
/// more.
Result<DestinationStatus> ask_status(kvm::Fd connection, const MigrationId& id,
                                     std::chrono::milliseconds timeout);

/// Sends `vm` over `connection`. `reconnect` opens another connection to the same destination, to
/// ask it for the status where this one breaks after COMMIT; may be empty. Runs in the caller's
/// thread until the end.
SourceOutcome send_vm(kvm::Fd connection, SourceVm& vm,
                      const std::function<Result<kvm::Fd>()>& reconnect,
                      const MigrationOptions& options);

struct Arrived {
    MigrationId id{};
    MigrationStats stats;
    bool taken_over = false;  ///< without COMMIT, because the source is proven dead
};
struct Discarded {
    state::Error reason;
};
using DestinationOutcome = std::variant<Arrived, Discarded>;

/// Told each change of a migration's status, before it takes effect. To kReceiving it answers false
/// where this migration was here before: what was said of it once is never taken back.
using StatusSink = std::function<bool(const MigrationId&, DestinationStatus)>;

/// Receives a VM into `vm`. Comes back when the VM runs and the source has said DONE (or is not
/// heard any more), or when it is discarded.
DestinationOutcome receive_vm(kvm::Fd connection, DestinationVm& vm, const StatusSink& sink,
                              const MigrationOptions& options);

/// Listens for migrations, one at a time, and answers what became of them at any time. Keep it for
/// as long as the process may run the VM: to a source on another host, a port where nobody listens
/// any more means that this process is dead.
class Receiver {
  public:
    static Result<std::unique_ptr<Receiver>> open(const Address& address);
    ~Receiver();
    Receiver(const Receiver&) = delete;
    Receiver& operator=(const Receiver&) = delete;

    /// Where it listens; with the port that the kernel chose.
    const Address& address() const { return address_; }
    /// Waits for a source and receives its VM; one that came since open() is served at once.
    /// kTimeout where none comes. While a VM is on its way, and once one has arrived, other sources
    /// are told kBusy; after a discarded one the next may come.
    Result<DestinationOutcome> receive(DestinationVm& vm, const MigrationOptions& options,
                                       std::chrono::milliseconds wait);

  private:
    Receiver() = default;
    void serve();
    void greet(kvm::Fd connection);
    void answer_status(kvm::Fd connection);
    bool set_status(const MigrationId& id, DestinationStatus status);

    Address address_;
    kvm::Fd listener_;
    kvm::Fd wake_;
    std::thread thread_;
    std::mutex mutex_;
    std::condition_variable arrived_;
    bool free_ = true;  ///< the next source is taken: no VM is here or on its way
    std::optional<kvm::Fd> incoming_;
    std::vector<std::pair<MigrationId, DestinationStatus>> statuses_;
};

}  // namespace continuo::vmm
