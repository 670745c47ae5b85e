// The protocol without KVM: fake VMs, real sockets, real processes. The one thing that must hold at
// every moment and after every accident: never two VMs run, and one does wherever a process that
// has the whole VM lives.
#include "continuo/vmm/migration.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <random>

#include "protocol.h"

namespace continuo::vmm {
namespace {

using namespace std::chrono_literals;
using state::ErrorCode;

constexpr std::size_t kPages = 24;

/// Where the VM runs; in shared memory, so that it outlives the processes.
struct World {
    std::atomic<int> source_runs{1};
    std::atomic<int> destination_runs{0};
    std::atomic<int> both_ran{0};
    std::atomic<int> source_done{0};       ///< outcome index + 1
    std::atomic<int> destination_done{0};  ///< outcome index + 1
    std::atomic<int> taken_over{0};
    std::byte source_memory[kPages * kPageBytes];
    std::byte destination_memory[kPages * kPageBytes];

    void look() {
        if (source_runs + destination_runs > 1) ++both_ran;
    }
};

class SharedWorld {
  public:
    SharedWorld()
        : world_{new (::mmap(nullptr, sizeof(World), PROT_READ | PROT_WRITE,
                             MAP_SHARED | MAP_ANONYMOUS, -1, 0)) World} {}
    ~SharedWorld() { ::munmap(world_, sizeof(World)); }
    SharedWorld(const SharedWorld&) = delete;
    SharedWorld& operator=(const SharedWorld&) = delete;
    World* operator->() { return world_; }
    World& operator*() { return *world_; }

  private:
    World* world_;
};

Status failure(const char* what) {
    return state::fail(ErrorCode::kKernel, "fake", what);
}

class FakeSource : public SourceVm {
  public:
    explicit FakeSource(World& world) : world_{world} {
        for (std::size_t page = 0; page < kPages; page += 2)
            std::memset(world_.source_memory + page * kPageBytes, static_cast<int>(page) + 1,
                        kPageBytes);
    }
    Bytes shape() override { return Bytes(3, std::byte{9}); }
    std::span<const std::byte> memory() override { return world_.source_memory; }
    Status fetch_touched_pages(std::vector<std::uint64_t>& bitmap) override {
        bitmap.assign(1, ~std::uint64_t{0});
        return {};
    }
    Status log_dirty_pages(bool on) override {
        logging = on;
        return {};
    }
    Status fetch_dirty_pages(std::vector<std::uint64_t>& bitmap) override {
        bitmap.assign(1, 0);
        if (!world_.source_runs && !last_write_) return {};
        // The guest writes: a page, and a page that becomes zero.
        const std::size_t page = random_() % kPages;
        std::memset(world_.source_memory + page * kPageBytes, static_cast<int>(random_()), 64);
        std::memset(world_.source_memory + 2 * kPageBytes, 0, kPageBytes);
        bitmap[0] = 1ull << page | 1ull << 2;
        last_write_ = false;
        return {};
    }
    Status stop() override {
        world_.source_runs = 0;
        if (fail_at == "stop") return failure("stop");
        return {};
    }
    Result<Bytes> capture_clocks() override {
        if (fail_at == "capture") return tl::unexpected(failure("capture").error());
        return Bytes(7, std::byte{1});
    }
    Result<Bytes> save_state() override {
        if (fail_at == "save") return tl::unexpected(failure("save").error());
        return Bytes(11, std::byte{2});
    }
    Status resume() override {
        EXPECT_FALSE(destroyed);
        world_.source_runs = 1;
        world_.look();
        return {};
    }
    void destroy() override {
        EXPECT_EQ(world_.source_runs, 0);
        destroyed = true;
    }
    std::string fail_at;
    bool destroyed = false;
    bool logging = false;

  private:
    World& world_;
    std::mt19937_64 random_{3};
    bool last_write_ = true;
};

class FakeDestination : public DestinationVm {
  public:
    explicit FakeDestination(World& world) : world_{world} {}
    Status create(std::span<const std::byte> shape) override {
        if (fail_at == "create" || shape.size() != 3) return failure("create");
        return {};
    }
    std::span<std::byte> memory() override { return world_.destination_memory; }
    Status load(std::span<const std::byte> state, std::span<const std::byte> clocks) override {
        if (fail_at == "load" || state.size() != 11 || clocks.size() != 7) return failure("load");
        return {};
    }
    void take_exchange(const state::Exchange& rounds) override { exchange = rounds; }
    bool more_rounds_help() override { return more_rounds; }
    Status run() override {
        if (fail_at == "run") return failure("run");
        EXPECT_FALSE(discarded);
        world_.destination_runs = 1;
        world_.look();
        return {};
    }
    void discard() override {
        EXPECT_EQ(world_.destination_runs, 0);
        discarded = true;
    }
    std::string fail_at;
    bool discarded = false;
    state::Exchange exchange;
    bool more_rounds = true;

  private:
    World& world_;
};

MigrationOptions quick() {
    MigrationOptions options;
    options.io_timeout = 2s;
    options.ready_timeout = 2s;
    options.commit_timeout = 2s;
    options.decide_timeout = 3s;
    options.death_grace = 30ms;
    options.rounds_max = 3;
    options.downtime_max = 0ms;
    options.exchange_rounds = 3;
    return options;
}

Address test_address(const std::string& tag) {
    return *parse_address("unix:/tmp/continuo-migration-" + std::to_string(::getpid()) + tag);
}

std::pair<kvm::Fd, kvm::Fd> pair() {
    int fds[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    return {kvm::Fd{fds[0]}, kvm::Fd{fds[1]}};
}

struct Both {
    SourceOutcome source;
    DestinationOutcome destination;
};

/// Both sides over a socketpair, without a way to ask again.
Both migrate(FakeSource& source, FakeDestination& destination, const MigrationOptions& options) {
    auto [a, b] = pair();
    std::optional<DestinationOutcome> arrived;
    std::thread other{[&, fd = std::move(b)]() mutable {
        arrived = receive_vm(std::move(fd), destination, {}, options);
    }};
    SourceOutcome sent = send_vm(std::move(a), source, {}, options);
    other.join();
    return {std::move(sent), std::move(*arrived)};
}

void expect_one_runs(const World& world) {
    EXPECT_EQ(world.both_ran, 0);
    EXPECT_EQ(world.source_runs + world.destination_runs, 1);
}

TEST(Migration, AGuestThatWritesTooMuchStaysWhereItIsUnlessForced) {
    SharedWorld world;
    FakeSource source{*world};
    FakeDestination destination{*world};
    MigrationOptions options = quick();
    options.force = false;
    std::vector<MigrationProgress> told;
    options.progress = [&](const MigrationProgress& now) { told.push_back(now); };
    const Both both = migrate(source, destination, options);
    ASSERT_TRUE(std::holds_alternative<Kept>(both.source));
    const state::Error& reason = std::get<Kept>(both.source).reason;
    EXPECT_EQ(reason.code, ErrorCode::kTimeout);
    EXPECT_EQ(reason.where, "pre-copy");
    EXPECT_NE(reason.what.find("after 3 passes"), std::string::npos) << reason.what;
    EXPECT_TRUE(std::holds_alternative<Discarded>(both.destination));
    EXPECT_EQ(world->source_runs, 1) << "it was never stopped";
    EXPECT_FALSE(source.logging);
    expect_one_runs(*world);
    // Each pass at its begin and at its end, by which the next one's pages are known.
    ASSERT_EQ(told.size(), 6u);
    for (std::size_t i = 0; i < told.size(); ++i) {
        EXPECT_EQ(told[i].round, i / 2 + 1);
        EXPECT_EQ(told[i].pages_done, i % 2 == 0 ? 0 : i == 1 ? kPages : told[i].pages);
        EXPECT_EQ(told[i].expected_downtime.has_value(), i != 0);
    }
    // The two pages that the guest writes take two pages' time at
    // 100 MB/s, the speed before any is known: 2 x 4096 / 1e8 s = 81920 ns.
    EXPECT_EQ(told.back().expected_downtime, 81'920ns);
}

TEST(Migration, ALimitThatTheRestFitsEndsPreCopy) {
    SharedWorld world;
    FakeSource source{*world};
    FakeDestination destination{*world};
    MigrationOptions options = quick();
    options.force = false;
    options.downtime_max = 1ms;
    const Both both = migrate(source, destination, options);
    ASSERT_TRUE(std::holds_alternative<Moved>(both.source));
    const MigrationStats& stats = std::get<Moved>(both.source).stats;
    EXPECT_EQ(stats.rounds, 1u);
    EXPECT_EQ(stats.expected_downtime, 81'920ns);
    expect_one_runs(*world);
}

TEST(Migration, MovesAllMemoryAndOneVmRuns) {
    SharedWorld world;
    FakeSource source{*world};
    FakeDestination destination{*world};
    const Both both = migrate(source, destination, quick());
    ASSERT_TRUE(std::holds_alternative<Moved>(both.source));
    ASSERT_TRUE(std::holds_alternative<Arrived>(both.destination));
    EXPECT_EQ(std::memcmp(world->source_memory, world->destination_memory, kPages * kPageBytes), 0);
    EXPECT_EQ(world->destination_runs, 1);
    EXPECT_TRUE(source.destroyed);
    expect_one_runs(*world);
    const MigrationStats& stats = std::get<Moved>(both.source).stats;
    EXPECT_EQ(stats.rounds, 3u);
    EXPECT_GT(stats.zero_pages, 0u);
    EXPECT_GT(stats.last_pages, 0u);
}

TEST(Migration, AFailureOfEitherVmLeavesTheSourceRunning) {
    for (const char* at : {"stop", "capture", "save", "create", "load", "run"}) {
        SharedWorld world;
        FakeSource source{*world};
        FakeDestination destination{*world};
        source.fail_at = destination.fail_at = at;
        const Both both = migrate(source, destination, quick());
        ASSERT_TRUE(std::holds_alternative<Kept>(both.source)) << at;
        const std::string reason = std::get<Kept>(both.source).reason.message();
        EXPECT_NE(reason.find(at), std::string::npos) << reason;
        EXPECT_TRUE(std::holds_alternative<Discarded>(both.destination)) << at;
        EXPECT_EQ(world->source_runs, 1) << at;
        EXPECT_FALSE(source.logging) << at;
        expect_one_runs(*world);
    }
}

/// Relays a connection; closes both directions after `limit` bytes in one of them.
class Proxy {
  public:
    Proxy(kvm::Fd source, kvm::Fd destination, bool limit_from_source, std::size_t limit)
        : source_{std::move(source)},
          destination_{std::move(destination)},
          limit_from_source_{limit_from_source},
          limit_{limit},
          thread_{[this] { run(); }} {}
    ~Proxy() { thread_.join(); }
    std::size_t from_source = 0;
    std::size_t from_destination = 0;

  private:
    bool relay(const kvm::Fd& from, const kvm::Fd& to, std::size_t& count, bool limited) {
        char buffer[2048];
        std::size_t room = sizeof buffer;
        if (limited) room = std::min(room, limit_ - count);
        if (room == 0) return false;
        const ssize_t got = ::recv(from.get(), buffer, room, 0);
        if (got <= 0) return false;
        const auto size = static_cast<std::size_t>(got);
        if (::send(to.get(), buffer, size, MSG_NOSIGNAL) != got) return false;
        count += size;
        return !limited || count < limit_;
    }
    void run() {
        for (;;) {
            pollfd fds[] = {{source_.get(), POLLIN, 0}, {destination_.get(), POLLIN, 0}};
            ::poll(fds, 2, 5000);
            if (fds[0].revents == 0 && fds[1].revents == 0) break;
            if (fds[0].revents != 0 &&
                !relay(source_, destination_, from_source, limit_from_source_))
                break;
            if (fds[1].revents != 0 &&
                !relay(destination_, source_, from_destination, !limit_from_source_))
                break;
        }
        source_.reset();
        destination_.reset();
    }
    kvm::Fd source_;
    kvm::Fd destination_;
    bool limit_from_source_;
    std::size_t limit_;
    std::thread thread_;
};

/// What the two sides are connected by, and by what they prove a death.
enum class Wire { kUnix, kTcpFromAnotherHost };

Address address_for(Wire wire, const std::string& tag) {
    return wire == Wire::kUnix ? test_address(tag) : *parse_address("tcp:127.0.0.1:0");
}

std::pair<kvm::Fd, kvm::Fd> pair_on(Wire wire) {
    if (wire == Wire::kUnix) return pair();
    auto listener = listen_on(*parse_address("tcp:127.0.0.1:0"));
    auto mine =
        connect_to(*parse_address("tcp:127.0.0.1:" + std::to_string(*port_of(*listener))), 1s);
    EXPECT_TRUE(mine);
    kvm::Fd theirs{::accept4(listener->get(), nullptr, nullptr, SOCK_CLOEXEC)};
    return {std::move(*mine), std::move(theirs)};
}

struct CutResult {
    std::size_t from_source = 0;
    std::size_t from_destination = 0;
    bool undecided = false;
};

/// One migration through a proxy that closes at a byte.
CutResult cut_at(bool from_source, std::size_t limit, bool may_ask, Wire wire = Wire::kUnix) {
    SharedWorld world;
    FakeSource source{*world};
    FakeDestination destination{*world};
    MigrationOptions options = quick();
    options.rounds_max = 2;
    options.exchange_rounds = 1;
    // Every destination that loses its source looks at its life port, whose queue is short: where
    // one process is the source of all of them, as few as will do.
    destination.more_rounds = wire == Wire::kUnix;
    if (!may_ask) options.decide_timeout = 60ms;
    options.watch_processes = wire == Wire::kUnix;
    auto receiver = Receiver::open(address_for(wire, "-cut"));
    EXPECT_TRUE(receiver) << receiver.error().message();
    const Address address = (*receiver)->address();
    std::optional<Result<DestinationOutcome>> arrived;
    std::thread other{[&] { arrived = (*receiver)->receive(destination, options, 500ms); }};
    CutResult result;
    std::optional<SourceOutcome> sent;
    {
        auto [mine, proxied] = pair_on(wire);
        auto onward = connect_to(address, 1s);
        EXPECT_TRUE(onward);
        Proxy proxy{std::move(proxied), std::move(*onward), from_source, limit};
        std::function<Result<kvm::Fd>()> again;
        if (may_ask) again = [&] { return connect_to(address, 1s); };
        sent = send_vm(std::move(mine), source, again, options);
        result.undecided = std::holds_alternative<Undecided>(*sent);
        other.join();
        result.from_source = proxy.from_source;
        result.from_destination = proxy.from_destination;
    }
    EXPECT_EQ(world->both_ran, 0) << limit;
    const int running = world->source_runs + world->destination_runs;
    if (result.undecided) {
        EXPECT_LE(running, 1) << limit;
        EXPECT_FALSE(may_ask) << limit;
        EXPECT_FALSE(source.destroyed) << "kept whole for the operator";
    } else {
        EXPECT_EQ(running, 1) << "cut at byte " << limit << " from "
                              << (from_source ? "source" : "destination");
        EXPECT_EQ(std::holds_alternative<Moved>(*sent), world->destination_runs == 1);
    }
    if (world->destination_runs == 1) {
        EXPECT_EQ(std::memcmp(world->source_memory, world->destination_memory, kPages * kPageBytes),
                  0);
    }
    return result;
}

TEST(Migration, AStreamThatEndsAtAnyByteLeavesOneVm) {
    const CutResult whole = cut_at(true, std::size_t{1} << 40, true);
    ASSERT_GT(whole.from_source, 1000u);
    // Everything near the hand-over, byte by byte; the long middle in strides.
    const std::size_t end = whole.from_source;
    for (std::size_t limit = 30; limit + 150 < end; limit += 3001)
        cut_at(true, limit, true);
    for (std::size_t limit = end - 150; limit <= end; ++limit)
        cut_at(true, limit, true);
    for (std::size_t limit = 1; limit <= whole.from_destination; ++limit)
        cut_at(false, limit, true);
}

TEST(Migration, ALivingSourceOnAnotherHostIsNeverTakenForDead) {
    // A source that gives up goes on with its VM, and its migration is over: what proves its life
    // to the destination must not be. Its FAIL is lost with the rest of the stream.
    const CutResult whole = cut_at(true, std::size_t{1} << 40, true, Wire::kTcpFromAnotherHost);
    for (std::size_t limit = whole.from_source - 60; limit <= whole.from_source; limit += 2)
        cut_at(true, limit, true, Wire::kTcpFromAnotherHost);
    for (std::size_t limit = 1; limit <= whole.from_destination; limit += 5)
        cut_at(false, limit, true, Wire::kTcpFromAnotherHost);
}

/// A source of another host by hand: everything up to COMPLETE, then silence and an end.
DestinationOutcome lose_source_after_complete(FakeDestination& destination, std::uint16_t life) {
    auto [mine, theirs] = pair_on(Wire::kTcpFromAnotherHost);
    MigrationOptions options = quick();
    std::optional<DestinationOutcome> outcome;
    std::thread other{[&, fd = std::move(theirs)]() mutable {
        outcome = receive_vm(std::move(fd), destination, {}, options);
    }};
    FrameStream source{std::move(mine)};
    ProcessIdentity elsewhere;  // no boot known: nothing to watch here
    elsewhere.life_port = life;
    const Bytes hello = encode_hello({new_migration_id(), elsewhere, Bytes(3)});
    EXPECT_TRUE(source.send(FrameType::kHello, hello, after(1s)));
    EXPECT_TRUE(expect_frame(source, FrameType::kWelcome, after(1s)));
    EXPECT_TRUE(source.send(FrameType::kStopped, {}, after(1s)));
    EXPECT_TRUE(source.send(FrameType::kState, Bytes(11), after(1s)));
    EXPECT_TRUE(source.send(FrameType::kClocks, Bytes(7), after(1s)));
    EXPECT_TRUE(source.send(FrameType::kComplete, {}, after(1s)));
    EXPECT_TRUE(expect_frame(source, FrameType::kReady, after(1s)));
    source.close();
    other.join();
    return std::move(*outcome);
}

TEST(Migration, TheLifePortDecidesForASourceOnAnotherHost) {
    const std::uint16_t alive = life_port(false);
    ASSERT_NE(alive, 0);
    EXPECT_EQ(life_port(false), alive) << "one for the whole life of a process";
    {
        SharedWorld world;
        FakeDestination destination{*world};
        const auto outcome = lose_source_after_complete(destination, alive);
        EXPECT_TRUE(std::holds_alternative<Discarded>(outcome)) << "it lives: it has its VM";
        EXPECT_EQ(world->destination_runs, 0);
    }
    std::uint16_t dead = 0;
    {
        auto gone = listen_on(*parse_address("tcp:127.0.0.1:0"));
        ASSERT_TRUE(gone);
        dead = *port_of(*gone);
    }
    SharedWorld world;
    world->source_runs = 0;
    FakeDestination destination{*world};
    const auto outcome = lose_source_after_complete(destination, dead);
    ASSERT_TRUE(std::holds_alternative<Arrived>(outcome)) << "refused: the process is gone";
    EXPECT_TRUE(std::get<Arrived>(outcome).taken_over);
    EXPECT_EQ(world->destination_runs, 1);
    // Without a life port nothing can be proven.
    SharedWorld third;
    FakeDestination cautious{*third};
    EXPECT_TRUE(std::holds_alternative<Discarded>(lose_source_after_complete(cautious, 0)));
}

/// A destination by hand that takes COMMIT and is never heard again; nobody listens any more.
SourceOutcome lose_destination_after_commit(FakeSource& source, const ProcessIdentity& who) {
    auto [mine, theirs] = pair();
    std::thread other{[&, fd = std::move(theirs)]() mutable {
        FrameStream stream{std::move(fd)};
        const auto hello = stream.receive(after(1s));
        ASSERT_TRUE(hello);
        const Bytes welcome = encode_welcome({decode_hello(hello->payload)->id, who});
        ASSERT_TRUE(stream.send(FrameType::kWelcome, welcome, after(1s)));
        for (auto frame = stream.receive(after(1s)); frame; frame = stream.receive(after(1s))) {
            if (frame->type == FrameType::kCommit) return;
            if (frame->type == FrameType::kConverged) {
                ASSERT_TRUE(stream.send(FrameType::kProceed, {}, after(1s)));
            }
            if (frame->type == FrameType::kComplete) {
                ASSERT_TRUE(stream.send(FrameType::kReady, {}, after(1s)));
            }
        }
    }};
    MigrationOptions options = quick();
    options.decide_timeout = 200ms;
    const auto refused = [] { return connect_to(test_address("-nobody"), 10ms); };
    { const auto stale = listen_on(test_address("-nobody")); }
    auto outcome = send_vm(std::move(mine), source, refused, options);
    other.join();
    ::unlink(test_address("-nobody").path.c_str());
    return outcome;
}

TEST(Migration, ARefusalOverAUnixSocketProvesNothingOfAnotherBoot) {
    ProcessIdentity there = this_process();
    there.pid_namespace += 1;  // cannot be watched
    SharedWorld near;
    FakeSource of_this_boot{*near};
    EXPECT_TRUE(std::holds_alternative<Kept>(lose_destination_after_commit(of_this_boot, there)));
    EXPECT_EQ(near->source_runs, 1);
    there.boot_id[3] ^= 1;
    SharedWorld far;
    FakeSource of_another{*far};
    EXPECT_TRUE(
        std::holds_alternative<Undecided>(lose_destination_after_commit(of_another, there)));
    EXPECT_EQ(far->source_runs, 0) << "what refused may be a forwarder";
    EXPECT_FALSE(of_another.destroyed);
}

TEST(Migration, AChildProcessHasALifeOfItsOwn) {
    const std::uint16_t ours = life_port(false);
    const pid_t child = ::fork();
    if (child == 0) _exit(life_port(false) != ours && life_port(false) != 0 ? 0 : 1);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
}

TEST(Migration, WithoutAWayToAskTheSourceWaitsForTheOperator) {
    const CutResult whole = cut_at(true, std::size_t{1} << 40, false);
    int undecided = 0;
    for (std::size_t limit = whole.from_destination - 30; limit < whole.from_destination; ++limit)
        undecided += cut_at(false, limit, false).undecided ? 1 : 0;
    EXPECT_GT(undecided, 0);
}

TEST(Migration, ASecondSourceIsToldThatTheSocketIsBusy) {
    SharedWorld world;
    FakeSource source{*world};
    FakeDestination destination{*world};
    const Address address = test_address("-busy");
    auto receiver = Receiver::open(address);
    ASSERT_TRUE(receiver);
    EXPECT_EQ((*receiver)->receive(destination, quick(), 10ms).error().code, ErrorCode::kTimeout);
    std::thread other{[&] { (void)(*receiver)->receive(destination, quick(), 5s); }};
    auto first = connect_to(address, 1s);
    ASSERT_TRUE(first);
    SourceOutcome sent = send_vm(std::move(*first), source, {}, quick());
    other.join();
    ASSERT_TRUE(std::holds_alternative<Moved>(sent));

    SharedWorld second_world;
    FakeSource second{*second_world};
    auto late = connect_to(address, 1s);
    ASSERT_TRUE(late);
    const SourceOutcome refused = send_vm(std::move(*late), second, {}, quick());
    ASSERT_TRUE(std::holds_alternative<Kept>(refused));
    EXPECT_EQ(std::get<Kept>(refused).reason.code, ErrorCode::kBusy);
    EXPECT_EQ(second_world->source_runs, 1);
}

TEST(Migration, OfTwoSourcesAtOnceOneIsTakenAndOneIsTold) {
    const Address address = test_address("-two");
    auto receiver = Receiver::open(address);
    ASSERT_TRUE(receiver);
    SharedWorld world;
    FakeDestination destination{*world};
    std::thread other{[&] { (void)(*receiver)->receive(destination, quick(), 5s); }};
    std::atomic<int> moved{0};
    std::atomic<int> busy{0};
    const auto send = [&] {
        SharedWorld own;
        FakeSource source{*own};
        auto connection = connect_to(address, 1s);
        ASSERT_TRUE(connection);
        const auto sent = send_vm(std::move(*connection), source, {}, quick());
        if (std::holds_alternative<Moved>(sent)) {
            ++moved;
        } else if (std::get<Kept>(sent).reason.code == ErrorCode::kBusy) {
            ++busy;
            EXPECT_EQ(own->source_runs, 1);
        }
    };
    std::thread first{send};
    std::thread second{send};
    first.join();
    second.join();
    other.join();
    EXPECT_EQ(moved, 1);
    EXPECT_EQ(busy, 1);
}

TEST(Migration, APeerThatSaysNothingKeepsNobodyOut) {
    const Address address = test_address("-silent");
    auto receiver = Receiver::open(address);
    ASSERT_TRUE(receiver);
    auto silent = connect_to(address, 1s);
    auto half = connect_to(address, 1s);
    ASSERT_TRUE(silent && half);
    ASSERT_EQ(::send(half->get(), "CMIG", 4, MSG_NOSIGNAL), 4);
    SharedWorld world;
    FakeSource source{*world};
    FakeDestination destination{*world};
    std::thread other{[&] { (void)(*receiver)->receive(destination, quick(), 8s); }};
    MigrationOptions patient = quick();
    patient.ready_timeout = 8s;
    auto connection = connect_to(address, 1s);
    ASSERT_TRUE(connection);
    const auto sent = send_vm(std::move(*connection), source, {}, patient);
    other.join();
    EXPECT_TRUE(std::holds_alternative<Moved>(sent));
}

/// A destination that gets `frames` behind HELLO, and why it gave up.
state::Error refusal_of(const std::vector<std::pair<FrameType, Bytes>>& frames) {
    SharedWorld world;
    FakeDestination destination{*world};
    auto [a, b] = pair();
    MigrationOptions options = quick();
    options.io_timeout = 300ms;
    std::optional<DestinationOutcome> outcome;
    std::thread other{[&, fd = std::move(b)]() mutable {
        outcome = receive_vm(std::move(fd), destination, {}, options);
    }};
    FrameStream stream{std::move(a)};
    const Bytes hello = encode_hello({new_migration_id(), this_process(), Bytes(3)});
    (void)stream.send(FrameType::kHello, hello, after(1s));
    for (const auto& [type, payload] : frames)
        if (!stream.send(type, payload, after(1s))) break;
    other.join();
    EXPECT_EQ(world->destination_runs, 0);
    const auto* discarded = std::get_if<Discarded>(&*outcome);
    return discarded != nullptr ? discarded->reason : state::Error{};
}

TEST(Migration, ASourceThatNeverEndsIsEnded) {
    const Bytes page = PayloadWriter{}
                           .put(std::uint32_t{1})
                           .put(std::uint32_t{0})
                           .put(std::uint64_t{3 << 1})
                           .take();
    const std::vector<std::pair<FrameType, Bytes>> one_page(kPages + 1, {FrameType::kPages, page});
    EXPECT_EQ(refusal_of(one_page).what, "more pages in one pass than the memory has");
    std::vector<std::pair<FrameType, Bytes>> passes;
    for (std::uint32_t i = 0; i <= kRoundsMax; ++i) {
        passes.emplace_back(FrameType::kPages, page);
        passes.emplace_back(FrameType::kRoundEnd, PayloadWriter{}.put(i).take());
    }
    EXPECT_EQ(refusal_of(passes).what, "the passes do not end");
    passes.erase(passes.begin(), passes.begin() + 2);
    EXPECT_EQ(refusal_of(passes).where, "ROUND_END frame") << "the first has number 0";
    EXPECT_EQ(refusal_of({}).code, ErrorCode::kTimeout) << "nothing at all";
}

TEST(Migration, AnIdThatWasHereBeforeCannotTakeBackWhatWasSaidOfIt) {
    const Address address = test_address("-again");
    auto receiver = Receiver::open(address);
    ASSERT_TRUE(receiver);
    SharedWorld world;
    const Bytes hello = encode_hello({MigrationId{7}, this_process(), Bytes(3)});
    for (int time = 0; time < 2; ++time) {
        FakeDestination destination{*world};
        auto connection = connect_to(address, 1s);
        ASSERT_TRUE(connection);
        FrameStream stream{std::move(*connection)};
        ASSERT_TRUE(stream.send(FrameType::kHello, hello, after(1s)));
        ASSERT_TRUE(stream.send(FrameType::kFail, {}, after(1s)));
        const auto outcome = (*receiver)->receive(destination, quick(), 2s);
        ASSERT_TRUE(outcome && std::holds_alternative<Discarded>(*outcome));
        const std::string why = std::get<Discarded>(*outcome).reason.message();
        EXPECT_EQ(why.find("been here before") != std::string::npos, time == 1) << why;
        auto question = connect_to(address, 1s);
        ASSERT_TRUE(question);
        const auto status = ask_status(std::move(*question), MigrationId{7}, 2s);
        ASSERT_TRUE(status) << status.error().message();
        EXPECT_EQ(*status, DestinationStatus::kDiscarded);
    }
}

TEST(Migration, FramesThatMayNotComeAreRefused) {
    // Whatever order a hostile source chooses, the destination never runs without COMMIT.
    std::mt19937_64 random{17};
    MigrationOptions options = quick();
    options.commit_timeout = options.io_timeout = 200ms;
    for (int round = 0; round < 60; ++round) {
        SharedWorld world;
        FakeDestination destination{*world};
        auto [a, b] = pair();
        std::thread other{[&, fd = std::move(b)]() mutable {
            const auto outcome = receive_vm(std::move(fd), destination, {}, options);
            EXPECT_TRUE(std::holds_alternative<Discarded>(outcome));
        }};
        FrameStream stream{std::move(a)};
        const Bytes hello = encode_hello({new_migration_id(), this_process(), Bytes(3)});
        if (round % 4 != 0) (void)stream.send(FrameType::kHello, hello, after(1s));
        for (int i = 0; i < 6; ++i) {
            auto type = static_cast<FrameType>(1 + random() % 17);
            if (type == FrameType::kComplete) type = FrameType::kCommit;
            (void)stream.send(type, Bytes(random() % 20), after(1s));
        }
        stream.close();
        other.join();
        EXPECT_EQ(world->destination_runs, 0);
    }
}

// ---- The exchange ----

TEST(Exchange, BothEndsOnOneHostReadOneCounterInTheOrderOfCauseAndEffect) {
    for (const Wire wire : {Wire::kUnix, Wire::kTcpFromAnotherHost}) {
        SharedWorld world;
        FakeSource source{*world};
        FakeDestination destination{*world};
        auto [a, b] = pair_on(wire);
        const MigrationOptions options = quick();
        std::thread other{[&, fd = std::move(b)]() mutable {
            (void)receive_vm(std::move(fd), destination, {}, options);
        }};
        ASSERT_TRUE(std::holds_alternative<Moved>(send_vm(std::move(a), source, {}, options)));
        other.join();
        ASSERT_EQ(destination.exchange.size(), 3u + 8u)
            << "before the stop, and again while stopped";
        EXPECT_TRUE(state::check(destination.exchange));
        auto last = destination.exchange.front().asked;
        for (const state::ExchangeRound& round : destination.exchange) {
            for (const auto stamp : {round.asked, time::same_boot_counter(round.received),
                                     time::same_boot_counter(round.answered), round.heard}) {
                EXPECT_GE((stamp - last).raw(), 0);
                last = stamp;
            }
        }
    }
}

TEST(Exchange, NoRoundsWhereTheVmDoesNotWantThemAndNoneWhereNobodyAsks) {
    for (const bool asks : {false, true}) {
        SharedWorld world;
        FakeSource source{*world};
        FakeDestination destination{*world};
        destination.more_rounds = !asks;
        MigrationOptions options = quick();
        options.exchange_rounds = asks ? 5 : 0;
        const Both both = migrate(source, destination, options);
        ASSERT_TRUE(std::holds_alternative<Moved>(both.source));
        EXPECT_EQ(destination.exchange.size(), options.exchange_rounds);
    }
}

TEST(Exchange, TimeIsUpAfterARoundAtLeast) {
    SharedWorld world;
    FakeSource source{*world};
    FakeDestination destination{*world};
    destination.more_rounds = false;
    MigrationOptions options = quick();
    options.exchange_rounds = 1'000'000;
    options.exchange_time = 0ms;
    ASSERT_TRUE(std::holds_alternative<Moved>(migrate(source, destination, options).source));
    EXPECT_EQ(destination.exchange.size(), 1u);
    options.exchange_time = 10s;
    SharedWorld again;
    FakeSource patient{*again};
    FakeDestination curious{*again};
    curious.more_rounds = false;
    ASSERT_TRUE(std::holds_alternative<Moved>(migrate(patient, curious, options).source));
    EXPECT_EQ(curious.exchange.size(), kProbesMax);
}

/// A source by hand: everything up to CONVERGED, then `answer` to the first question.
Discarded refused_exchange(FrameType type, const Bytes& answer) {
    SharedWorld world;
    FakeDestination destination{*world};
    auto [mine, theirs] = pair();
    MigrationOptions options = quick();
    options.io_timeout = 300ms;
    std::optional<DestinationOutcome> outcome;
    std::thread other{[&, fd = std::move(theirs)]() mutable {
        outcome = receive_vm(std::move(fd), destination, {}, options);
    }};
    FrameStream source{std::move(mine)};
    const Bytes hello = encode_hello({new_migration_id(), this_process(), Bytes(3)});
    EXPECT_TRUE(source.send(FrameType::kHello, hello, after(1s)));
    EXPECT_TRUE(expect_frame(source, FrameType::kWelcome, after(1s)));
    EXPECT_TRUE(source.send(FrameType::kConverged, {}, after(1s)));
    EXPECT_TRUE(expect_frame(source, FrameType::kProbe, after(1s)));
    EXPECT_TRUE(source.send(type, answer, after(1s)));
    other.join();
    EXPECT_TRUE(destination.discarded);
    EXPECT_TRUE(destination.exchange.empty());
    return std::get<Discarded>(*outcome);
}

TEST(Exchange, AnAnswerThatCannotBeIsRefused) {
    const auto stamps = [](std::uint64_t received, std::uint64_t answered) {
        return PayloadWriter{}.put(received).put(answered).take();
    };
    const auto backwards = refused_exchange(FrameType::kEcho, stamps(1000, 999));
    EXPECT_EQ(backwards.reason.code, ErrorCode::kMalformed);
    EXPECT_EQ(backwards.reason.where, "ECHO frame");
    EXPECT_NE(backwards.reason.what.find("before it was received"), std::string::npos);
    const auto half_way_round = refused_exchange(FrameType::kEcho, stamps(0, 1ull << 63));
    EXPECT_EQ(half_way_round.reason.code, ErrorCode::kMalformed);
    const auto cut = refused_exchange(FrameType::kEcho, Bytes(15));
    EXPECT_EQ(cut.reason.code, ErrorCode::kMalformed);
    const auto pages = refused_exchange(FrameType::kStopped, {});
    EXPECT_EQ(pages.reason.code, ErrorCode::kPeer);
    EXPECT_NE(pages.reason.what.find("ECHO"), std::string::npos);
}

TEST(Exchange, ASourceAnswersSoManyQuestionsAndNoMore) {
    SharedWorld world;
    FakeSource source{*world};
    auto [mine, theirs] = pair();
    std::thread other{[fd = std::move(theirs)]() mutable {
        FrameStream stream{std::move(fd)};
        const auto hello = stream.receive(after(1s));
        ASSERT_TRUE(hello);
        const Bytes welcome = encode_welcome({decode_hello(hello->payload)->id, this_process()});
        ASSERT_TRUE(stream.send(FrameType::kWelcome, welcome, after(1s)));
        for (auto frame = stream.receive(after(1s)); frame; frame = stream.receive(after(1s)))
            if (frame->type == FrameType::kConverged || frame->type == FrameType::kEcho)
                (void)stream.send(FrameType::kProbe, {}, after(1s));
    }};
    const auto outcome = send_vm(std::move(mine), source, {}, quick());
    other.join();
    ASSERT_TRUE(std::holds_alternative<Kept>(outcome));
    EXPECT_EQ(std::get<Kept>(outcome).reason.what, "the questions do not end");
    EXPECT_EQ(world->source_runs, 1) << "it was not stopped for them";
}

// ---- Death of a process at every step ----

bool wait_until(const std::function<bool()>& holds, std::chrono::milliseconds limit) {
    const auto until = after(limit);
    while (!holds()) {
        if (std::chrono::steady_clock::now() > until) return false;
        std::this_thread::sleep_for(2ms);
    }
    return true;
}

/// Dies at a step, and its VM with it.
StepObserver die_at(Step step, std::atomic<int>& own_vm_runs) {
    return [step, &own_vm_runs](Step now) {
        if (now != step) return;
        own_vm_runs = 0;
        ::raise(SIGKILL);
    };
}

[[noreturn]] void destination_process(World& world, const Address& address, int port_pipe,
                                      std::optional<Step> die, bool watch) {
    MigrationOptions options = quick();
    options.death_grace = 3s;
    options.watch_processes = watch;
    if (die) options.observer = die_at(*die, world.destination_runs);
    FakeDestination vm{world};
    auto receiver = Receiver::open(address);
    if (!receiver) _exit(3);
    const auto port = static_cast<std::uint16_t>(
        address.kind == Address::Kind::kTcp ? std::stoul((*receiver)->address().port) : 0);
    if (::write(port_pipe, &port, sizeof port) != sizeof port) _exit(4);
    auto outcome = (*receiver)->receive(vm, options, 700ms);
    if (outcome) {
        if (const auto* arrived = std::get_if<Arrived>(&*outcome))
            world.taken_over = arrived->taken_over ? 1 : 0;
        world.destination_done = static_cast<int>(outcome->index()) + 1;
    } else {
        world.destination_done = 99;
    }
    for (;;)
        ::pause();
}

[[noreturn]] void source_process(World& world, const Address& address, std::optional<Step> die,
                                 bool may_ask, bool watch) {
    MigrationOptions options = quick();
    options.watch_processes = watch;
    if (die) options.observer = die_at(*die, world.source_runs);
    FakeSource vm{world};
    auto connection = connect_to(address, 2s);
    if (!connection) _exit(5);
    std::function<Result<kvm::Fd>()> again;
    if (may_ask) again = [&] { return connect_to(address, 1s); };
    const auto outcome = send_vm(std::move(*connection), vm, again, options);
    world.source_done = static_cast<int>(outcome.index()) + 1;
    for (;;)
        ::pause();
}

bool is_source_step(Step step) {
    return step < Step::kDestinationWelcome;
}

/// Two processes; one of them kills itself at `step`.
void kill_at(Step step, Address address, bool may_ask = true, bool watch = true) {
    SharedWorld world;
    int port_pipe[2];
    ASSERT_EQ(::pipe(port_pipe), 0);
    const auto die = [&](bool source) {
        return is_source_step(step) == source ? std::optional{step} : std::nullopt;
    };
    const pid_t destination = ::fork();
    if (destination == 0) destination_process(*world, address, port_pipe[1], die(false), watch);
    std::uint16_t port = 0;
    ASSERT_EQ(::read(port_pipe[0], &port, sizeof port), static_cast<ssize_t>(sizeof port));
    if (port != 0) address.port = std::to_string(port);
    const pid_t source = ::fork();
    if (source == 0) source_process(*world, address, die(true), may_ask, watch);

    const pid_t victim = is_source_step(step) ? source : destination;
    int status = 0;
    ASSERT_TRUE(wait_until([&] { return ::waitpid(victim, &status, WNOHANG) == victim; }, 10s))
        << name(step) << " was never reached";
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << name(step);
    std::atomic<int>& done = victim == source ? world->destination_done : world->source_done;
    ASSERT_TRUE(wait_until([&] { return done != 0; }, 10s)) << name(step);
    const int survivors = victim == source ? world->destination_runs : world->source_runs;

    EXPECT_EQ(world->both_ran, 0) << name(step);
    if (victim == source) {
        // Before COMPLETE was sent the destination has not the whole VM: it dies with its process,
        // as it would have without a migration. From then on it goes on at the destination.
        const bool whole = step > Step::kSourceComplete;
        EXPECT_EQ(survivors, whole ? 1 : 0) << name(step);
        if (whole) {
            EXPECT_EQ(
                std::memcmp(world->source_memory, world->destination_memory, kPages * kPageBytes),
                0)
                << name(step);
        }
    } else {
        // Until the source has heard that it runs, the source's VM is kept.
        EXPECT_EQ(survivors, step == Step::kDestinationAwaitDone ? 0 : 1) << name(step);
    }
    const pid_t survivor = victim == source ? destination : source;
    ::kill(survivor, SIGKILL);
    ::waitpid(survivor, nullptr, 0);
    ::close(port_pipe[0]);
    ::close(port_pipe[1]);
    if (address.kind == Address::Kind::kUnix) ::unlink(address.path.c_str());
}

class DeathAtEachStep : public testing::TestWithParam<int> {};

TEST_P(DeathAtEachStep, OverAUnixSocket) {
    kill_at(static_cast<Step>(GetParam()), test_address("-kill"));
}

TEST_P(DeathAtEachStep, OverTcp) {
    kill_at(static_cast<Step>(GetParam()), *parse_address("tcp:127.0.0.1:0"));
}

TEST_P(DeathAtEachStep, OverTcpFromAnotherHost) {
    kill_at(static_cast<Step>(GetParam()), *parse_address("tcp:127.0.0.1:0"), true, false);
}

TEST(Migration, ADestinationsDeathIsProvenWithoutAskingAnybody) {
    for (const Step step :
         {Step::kDestinationAwaitCommit, Step::kDestinationRun, Step::kDestinationRunning})
        kill_at(step, test_address("-proof"), false);
}

INSTANTIATE_TEST_SUITE_P(Steps, DeathAtEachStep,
                         testing::Range(0, static_cast<int>(Step::kStepCount)),
                         [](const auto& step) {
                             std::string text{name(static_cast<Step>(step.param))};
                             std::replace(text.begin(), text.end(), '-', '_');
                             return text;
                         });

}  // namespace
}  // namespace continuo::vmm
