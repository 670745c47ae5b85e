// The notice protocol as a whole: the host's state machine (abi/) against the guest's real code,
// with migrations and the host's looks falling between any two of the guest's accesses to the page.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <shared_mutex>
#include <thread>
#include <utility>
#include <vector>

#include "torn_page.h"
// After torn_page.h, which comes in before each access.
#include "continuo/abi/time_travel_host.h"
#include "continuo/guest/time_travel_page.h"

namespace continuo::guest {
namespace {

using abi::TimeTravelHost;
using test::for_each_placement;
using test::Interleaving;
using test::Stores;

static_assert(CONTINUO_TIME_TRAVEL_MAGIC == abi::kTimeTravelMagic);
static_assert(offsetof(continuo_time_travel_page, version) ==
              offsetof(abi::time_travel_page, version));
static_assert(offsetof(continuo_time_travel_page, migration_sequence) ==
              offsetof(abi::time_travel_page, migration_sequence));
static_assert(offsetof(continuo_time_travel_page, time_travelled_ns) ==
              offsetof(abi::time_travel_page, time_travelled_ns));
static_assert(offsetof(continuo_time_travel_page, released_sequence) ==
              offsetof(abi::time_travel_page, released_sequence));
static_assert(offsetof(continuo_time_travel_page, accounted_ns) ==
              offsetof(abi::time_travel_page, accounted_ns));
static_assert(offsetof(continuo_time_travel_page, intent_ns) ==
              offsetof(abi::time_travel_page, intent_ns));
static_assert(offsetof(continuo_time_travel_page, intent_offset_ns) ==
              offsetof(abi::time_travel_page, intent_offset_ns));

/// A VM whose REALTIME lags by what it was not told, or has not repaired.
struct World {
    TimeTravelHost host{1'000};
    continuo_time_travel_page page{};
    std::int64_t lag_ns = 0;
    std::uint64_t now = 0;

    World() { carry_out(host.reset()); }
    void carry_out(const abi::TimeTravelStores& stores) {
        for (const abi::TimeTravelStore& store : stores.list())
            std::memcpy(reinterpret_cast<char*>(&page) + store.offset, &store.value, 8);
    }
    /// A freezing migration: all of it happens between two instructions of the guest.
    void migrate(std::int64_t delta) {
        lag_ns += delta;
        carry_out(host.raise({delta, static_cast<std::uint64_t>(delta), 1}, page.migration_sequence,
                             now));
    }
    TimeTravelHost::Seen look() {
        const TimeTravelHost::Look look = host.look(page.migration_sequence, now);
        carry_out(look.stores);
        return look.seen;
    }
    void time_is_up() {
        now += 1'000;
        look();
    }
    /// What an interrupt handler does; the step takes its place among the accesses.
    void handle() {
        continuo_travel travel{};
        while (continuo_travel_pending(&page, &travel)) {
            test::access_hook();
            lag_ns -= travel.delta_ns;
            continuo_travel_answer(&page, &travel);
        }
    }
};

constexpr std::int64_t kFirst = 1'000'000'000, kSecond = 70'000, kThird = 333;

/// A page through which nobody reads a stale REALTIME as a right one.
void expect_gate_tells_the_truth(const World& world) {
    const auto hook = std::move(test::on_access);
    const continuo_gate gate = continuo_gate_look(&world.page);
    test::on_access = hook;
    if (gate.state == CONTINUO_GATE_OPEN) {
        ASSERT_EQ(world.lag_ns, 0) << "open, and stale";
    }
    if (gate.state == CONTINUO_GATE_HELD) {
        ASSERT_NE(world.page.released_sequence, world.page.migration_sequence);
    }
}

TEST(TimeTravelProtocol, NothingIsLostWhereverTwoMoreMigrationsAndTheTimeOutFall) {
    // Each loop of the handler has 6 accesses; three loops and the look that ends them: 19.
    constexpr std::size_t kAccesses = 19;
    // What happens, in all the orders that two migrations, a time-out and a look can have.
    using Event = void (*)(World&);
    const Event second = [](World& w) { w.migrate(kSecond); };
    const Event third = [](World& w) { w.migrate(kThird); };
    const Event late = [](World& w) { w.time_is_up(); };
    const Event look = [](World& w) { w.look(); };
    const std::array<std::array<Event, 4>, 6> orders{{
        {second, third, late, look},
        {second, late, third, look},
        {late, second, third, look},
        {second, third, look, late},
        {second, look, third, late},
        {look, second, late, third},
    }};
    std::size_t runs = 0, overtaken = 0, released = 0;
    for (const auto& order : orders) {
        World world;
        Stores stores;
        for (const Event event : order)
            stores.emplace_back([&world, event] {
                event(world);
                expect_gate_tells_the_truth(world);
            });
        for_each_placement(order.size(), kAccesses, [&](const std::vector<std::size_t>& at) {
            world = World{};
            world.migrate(kFirst);
            {
                const Interleaving interleaving{stores, at};
                world.handle();
                expect_gate_tells_the_truth(world);
                // What did not fall into the handler's run comes after it, and so its interrupt.
                for (std::size_t i = interleaving.done(); i < order.size(); ++i) {
                    order[i](world);
                    expect_gate_tells_the_truth(world);
                    test::on_access = nullptr;
                    world.handle();
                }
            }
            world.look();
            ASSERT_EQ(world.lag_ns, 0);
            ASSERT_FALSE(world.host.open());
            const abi::TimeTravelCounts counts = world.host.counts();
            ASSERT_EQ(counts.raised, 3u);
            ASSERT_EQ(counts.answered + counts.overtaken, 3u);
            ASSERT_EQ(counts.garbage, 0u);
            ASSERT_EQ(world.page.accounted_ns, world.page.time_travelled_ns);
            overtaken += counts.overtaken;
            released += counts.released;
            ++runs;
        });
    }
    EXPECT_EQ(runs, 6u * 8'855u);  // 23 over 4
    EXPECT_GT(overtaken, runs / 2);
    EXPECT_GT(released, runs / 8);
}

/// The handler of a guest that answers without comparing: it loses a migration, and the test must
/// see it.
void handle_carelessly(World& world) {
    continuo_travel travel{};
    while (continuo_travel_pending(&world.page, &travel)) {
        test::access_hook();
        world.lag_ns -= travel.delta_ns;
        CONTINUO_STORE_RELEASE(world.page.accounted_ns, travel.total_ns);
        const std::uint64_t sequence = CONTINUO_LOAD_ACQUIRE(world.page.migration_sequence);
        CONTINUO_STORE_RELEASE(world.page.migration_sequence, sequence + 1);
    }
}

TEST(TimeTravelProtocol, TheTestSeesAnAnswerWithoutCompareAndExchange) {
    std::size_t lost = 0;
    World world;
    const Stores stores{[&world] { world.migrate(kSecond); }};
    for_each_placement(1, 10, [&](const std::vector<std::size_t>& at) {
        world = World{};
        world.migrate(kFirst);
        const Interleaving interleaving{stores, at};
        handle_carelessly(world);
        if (interleaving.done() == 1 && world.lag_ns != 0) ++lost;
    });
    EXPECT_GE(lost, 2u);
}

TEST(TimeTravelGate, NoReadIsStaleWhereverMigrationRepairAndReleaseFall) {
    // A reader that has been let in makes up to 4 accesses a round: 2 of the gate, the clock,
    // retry.
    using Event = void (*)(World&);
    const Event migrate = [](World& w) { w.migrate(kFirst); };
    const Event repair = [](World& w) {
        const auto hook = std::move(test::on_access);
        w.handle();
        test::on_access = hook;
    };
    const Event late = [](World& w) { w.time_is_up(); };
    const std::array<std::array<Event, 4>, 4> orders{{
        {migrate, repair, migrate, repair},
        {migrate, migrate, repair, late},
        {migrate, late, repair, migrate},
        {migrate, late, migrate, late},
    }};
    std::size_t right = 0, told_stale = 0;
    for (const auto& order : orders) {
        World world;
        Stores stores;
        for (const Event event : order)
            stores.emplace_back([&world, event] { event(world); });
        for_each_placement(order.size(), 12, [&](const std::vector<std::size_t>& at) {
            world = World{};
            continuo_gate gate{};
            std::int64_t lag = 0;
            {
                const Interleaving interleaving{stores, at};
                do {
                    // An order may end with a migration that nobody repairs: the host releases.
                    for (int looks = 0;
                         (gate = continuo_gate_look(&world.page)).state == CONTINUO_GATE_HELD;)
                        if (++looks > 40) world.time_is_up();
                    test::access_hook();
                    lag = world.lag_ns;
                } while (continuo_gate_retry(&world.page, gate));
            }
            ASSERT_TRUE(gate.state == CONTINUO_GATE_RELEASED || lag == 0) << "a stale read";
            ASSERT_NE(gate.state, CONTINUO_GATE_HELD);
            ++(lag == 0 ? right : told_stale);
        });
    }
    EXPECT_GT(right, 1000u);
    EXPECT_GT(told_stale, 100u);
}

TEST(TimeTravelGate, WithoutADeviceItIsOpen) {
    EXPECT_EQ(continuo_gate_enter(nullptr).state, CONTINUO_GATE_OPEN);
    EXPECT_FALSE(continuo_gate_retry(nullptr, continuo_gate{}));
    continuo_time_travel_page none{};
    EXPECT_FALSE(continuo_travel_page_valid(nullptr));
    EXPECT_FALSE(continuo_travel_page_valid(&none));
    std::memset(&none, 0xff, sizeof(none));
    EXPECT_FALSE(continuo_travel_page_valid(&none));
    World world;
    EXPECT_TRUE(continuo_travel_page_valid(&world.page));
    world.page.size = 127;
    EXPECT_FALSE(continuo_travel_page_valid(&world.page));
    world.page.size = 4096;
    EXPECT_TRUE(continuo_travel_page_valid(&world.page)) << "a later version may be longer";
    world.page.version = 2;
    EXPECT_FALSE(continuo_travel_page_valid(&world.page));
}

TEST(TimeTravelProtocol, AGuestThatWritesGarbageLosesNothingOfTheHosts) {
    World world;
    world.migrate(kFirst);
    for (const int byte : {0x00, 0x5a, 0xff}) {
        std::memset(&world.page, byte, sizeof(world.page));
        world.look();
        world.time_is_up();
        world.migrate(kSecond);
    }
    // The guest comes to its senses: of its own words nothing is left, so it accounts from scratch.
    world.page.accounted_ns = 0;
    world.handle();
    EXPECT_EQ(world.lag_ns, 0) << "every delta is still in the sum";
    EXPECT_EQ(world.look(), TimeTravelHost::Seen::kAnswered);
}

/// Threads that stand for vCPUs: stop() returns when each stands still before one of its accesses.
class Vcpus {
  public:
    Vcpus() {
        test::on_access = [this] { park(); };
    }
    Vcpus(const Vcpus&) = delete;
    Vcpus& operator=(const Vcpus&) = delete;
    ~Vcpus() { test::on_access = nullptr; }

    std::thread run(std::function<void()> guest) {
        return std::thread{[this, guest = std::move(guest)] {
            running_.lock_shared();
            guest();
            running_.unlock_shared();
        }};
    }
    void stop() {
        stopping_ = true;
        running_.lock();
    }
    void resume() {
        stopping_ = false;
        running_.unlock();
    }

  private:
    void park() {
        if (!stopping_) return;
        running_.unlock_shared();
        while (stopping_)
            std::this_thread::yield();
        running_.lock_shared();
    }

    std::atomic<bool> stopping_{false};
    std::shared_mutex running_;
};

TEST(TimeTravelGate, NoReaderOnAnyCpuSeesTheLagOfALiveMigration) {
    World world;
    std::atomic<std::int64_t> lag{0};
    std::atomic<bool> over{false};
    std::atomic<std::uint64_t> reads{0};
    Vcpus vcpus;
    const auto reader = [&] {
        while (!over) {
            continuo_gate gate{};
            std::int64_t seen = 0;
            do {
                gate = continuo_gate_enter(&world.page);
                seen = lag;
            } while (continuo_gate_retry(&world.page, gate));
            ASSERT_EQ(seen, 0);
            ++reads;
        }
    };
    const auto agent = [&] {
        while (!over) {
            continuo_travel travel{};
            while (continuo_travel_pending(&world.page, &travel)) {
                lag -= travel.delta_ns;
                continuo_travel_answer(&world.page, &travel);
            }
        }
    };
    std::array<std::thread, 3> guests{vcpus.run(reader), vcpus.run(reader), vcpus.run(agent)};
    constexpr std::uint64_t kMigrations = 300;
    for (std::uint64_t i = 0; i < kMigrations; ++i) {
        vcpus.stop();
        world.migrate(kFirst);
        lag += kFirst;
        vcpus.resume();
        if (i % 3 == 0) std::this_thread::yield();
    }
    for (bool open = true; open; vcpus.resume()) {
        vcpus.stop();
        world.look();
        open = world.host.open();
    }
    over = true;
    for (std::thread& guest : guests)
        guest.join();
    EXPECT_EQ(lag, 0);
    EXPECT_GT(reads, 0u);
    EXPECT_EQ(world.host.counts().answered + world.host.counts().overtaken, kMigrations);
}

}  // namespace
}  // namespace continuo::guest
