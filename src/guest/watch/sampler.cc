#include "continuo/guest/watch/sampler.h"

#include <pthread.h>
#include <sched.h>
#include <sys/prctl.h>

#include <algorithm>
#include <cerrno>
#include <ctime>

#include "continuo/guest/counter.h"

namespace continuo::guest::watch {

namespace {

constexpr std::int64_t kNanosPerSecond = 1'000'000'000;
constexpr std::size_t kSamplesMax = 1U << 16U;
/// Two CPUs exchange counters so often; one waits for the other so long to come, and to answer.
constexpr std::int64_t kMeetEveryNs = 250'000'000;
constexpr std::int64_t kWaitNs = 2'000'000;
constexpr std::int64_t kRoundNs = 500'000;
constexpr std::uint64_t kRounds = 8;

std::int64_t monotonic_ns() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return std::int64_t{now.tv_sec} * kNanosPerSecond + now.tv_nsec;
}

void sleep_until(std::int64_t ns) {
    const timespec until{ns / kNanosPerSecond, ns % kNanosPerSecond};
    // A signal ends it early, which does no harm: the next pass is then early.
    (void)clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr);
}

int pin(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(static_cast<std::size_t>(cpu), &set);
    return pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
}

template <class Condition>
bool spin_until(std::int64_t longest_ns, Condition condition) {
    const std::int64_t until = monotonic_ns() + longest_ns;
    while (!condition()) {
        if (monotonic_ns() > until) return false;
        continuo_relax();
    }
    return true;
}

}  // namespace

/// The last pass of a CPU, for the others: written by that CPU alone, under a sequence number.
struct alignas(64) Sampler::Published {
    std::atomic<std::uint64_t> sequence{0};  ///< odd while it is written; 0: nothing yet
    std::atomic<std::uint64_t> end{0};
    std::array<std::atomic<std::uint64_t>, kClocks> value{};
    std::array<std::atomic<std::uint64_t>, kClocks> after{};

    Published() = default;
    Published(const Published&) {}  // before any thread is there
};

/// Where two CPUs meet to exchange counters. A ticket belongs to one round of one meeting.
struct Sampler::Meeting {
    alignas(64) std::atomic<std::uint64_t> there{0};
    alignas(64) std::atomic<std::uint64_t> ping{0};
    alignas(64) std::atomic<std::uint64_t> pong{0};
    std::atomic<std::uint64_t> heard{0};
};

Sampler::Sampler(ClockSource& clocks, std::vector<int> cpus, std::int64_t period_ns)
    : clocks_{clocks},
      cpus_{std::move(cpus)},
      period_ns_{period_ns},
      published_(cpus_.size()),
      meeting_{std::make_unique<Meeting>()} {}

Sampler::~Sampler() {
    stop();
}

int Sampler::start() {
    for (std::uint32_t cpu = 0; cpu < cpus_.size(); ++cpu)
        threads_.emplace_back([this, cpu] { run(cpu); });
    while (ready_.load() < cpus_.size() && error_.load() == 0)
        std::this_thread::sleep_for(std::chrono::milliseconds{1});
    if (error_.load() != 0) stop();
    return error_.load();
}

void Sampler::stop() {
    stop_.store(true);
    for (std::thread& thread : threads_)
        thread.join();
    threads_.clear();
}

// All CPUs wake at the same times, so that those which exchange counters meet. After a hole the
// next pass is at once, and the times go on as they were.
void Sampler::run(std::uint32_t cpu) {
    if (const int error = pin(cpus_[cpu]); error != 0) {
        error_.store(error);
        return;
    }
    prctl(PR_SET_TIMERSLACK, 1UL);
    ready_.fetch_add(1);
    std::int64_t slot = monotonic_ns() / period_ns_ + 1;
    const std::int64_t meet_every = std::max<std::int64_t>(kMeetEveryNs / period_ns_, 1);
    for (std::uint64_t number = 0; !stop_.load(std::memory_order_relaxed); ++number) {
        sleep_until(slot * period_ns_);
        Pass pass;
        pass.cpu = cpu;
        look_at_others(cpu, pass);
        clocks_.read(number, pass);
        publish(pass);
        hand_over(pass);
        if (cpus_.size() > 1 && slot % meet_every == 0)
            meet(cpu, static_cast<std::uint64_t>(slot / meet_every));
        slot = std::max(slot + 1, monotonic_ns() / period_ns_);
    }
}

void Sampler::publish(const Pass& pass) {
    Published& own = published_[pass.cpu];
    const std::uint64_t sequence = own.sequence.load(std::memory_order_relaxed);
    own.sequence.store(sequence + 1, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_release);
    for (std::size_t i = 0; i < kClocks; ++i) {
        own.value[i].store(pass.clocks[i].at.raw(), std::memory_order_relaxed);
        own.after[i].store(pass.clocks[i].after.raw(), std::memory_order_relaxed);
    }
    own.end.store(pass.end.raw(), std::memory_order_relaxed);
    own.sequence.store(sequence + 2, std::memory_order_release);
}

void Sampler::look_at_others(std::uint32_t cpu, Pass& pass) const {
    for (std::uint32_t other = 0; other < published_.size(); ++other) {
        if (other == cpu) continue;
        const Published& from = published_[other];
        const std::uint64_t sequence = from.sequence.load(std::memory_order_acquire);
        std::array<Seen, kClocks> clocks;
        for (std::size_t i = 0; i < kClocks; ++i)
            clocks[i] = {other, Instant::from_raw(from.value[i].load(std::memory_order_relaxed)),
                         Count::from_raw(from.after[i].load(std::memory_order_relaxed))};
        const Seen end{other, {}, Count::from_raw(from.end.load(std::memory_order_relaxed))};
        std::atomic_thread_fence(std::memory_order_acquire);
        // One that is being written is left out: the next pass looks again.
        const bool torn = sequence != from.sequence.load(std::memory_order_relaxed);
        if (torn || sequence == 0 || sequence % 2 != 0) continue;
        for (std::size_t i = 0; i < kClocks; ++i)
            if (!pass.seen[i] || clocks[i].value - pass.seen[i]->value > Nanos{})
                pass.seen[i] = clocks[i];
        if (!pass.counter_seen || end.after - pass.counter_seen->after > Ticks{})
            pass.counter_seen = end;
    }
}

void Sampler::meet(std::uint32_t cpu, std::uint64_t slot) {
    const std::uint32_t other = 1 + static_cast<std::uint32_t>(slot % (cpus_.size() - 1));
    const std::uint64_t ticket = slot * (kRounds + 1);
    if (cpu == 0) ask(other, ticket);
    if (cpu == other) answer(ticket);
}

void Sampler::ask(std::uint32_t other, std::uint64_t ticket) {
    Meeting& at = *meeting_;
    if (!spin_until(kWaitNs, [&] { return at.there.load(std::memory_order_acquire) == ticket; }))
        return;
    for (std::uint64_t round = 1; round <= kRounds; ++round) {
        Exchange exchange;
        exchange.cpu = other;
        exchange.sent = clocks_.counter();
        at.ping.store(ticket + round, std::memory_order_release);
        if (!spin_until(kRoundNs,
                        [&] { return at.pong.load(std::memory_order_acquire) == ticket + round; }))
            return;
        exchange.back = clocks_.counter();
        exchange.heard = Count::from_raw(at.heard.load(std::memory_order_relaxed));
        hand_over(exchange);
    }
}

void Sampler::answer(std::uint64_t ticket) {
    Meeting& at = *meeting_;
    at.there.store(ticket, std::memory_order_release);
    for (std::uint64_t round = 1; round <= kRounds; ++round) {
        // The first CPU may come late; once it is there, it answers at once.
        const std::int64_t longest_ns = round == 1 ? kWaitNs : kRoundNs;
        const auto asked = [&] {
            return at.ping.load(std::memory_order_acquire) == ticket + round;
        };
        if (!spin_until(longest_ns, asked)) return;
        at.heard.store(clocks_.counter().raw(), std::memory_order_relaxed);
        at.pong.store(ticket + round, std::memory_order_release);
    }
}

void Sampler::hand_over(const Sample& sample) {
    const std::lock_guard lock{mutex_};
    if (samples_.size() < kSamplesMax)
        samples_.push_back(sample);
    else
        lost_.fetch_add(1, std::memory_order_relaxed);
}

std::vector<Sample> Sampler::take() {
    std::vector<Sample> taken;
    const std::lock_guard lock{mutex_};
    taken.swap(samples_);
    return taken;
}

std::vector<int> Sampler::allowed_cpus() {
    cpu_set_t set;
    CPU_ZERO(&set);
    std::vector<int> cpus;
    if (sched_getaffinity(0, sizeof(set), &set) != 0) return cpus;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
        if (CPU_ISSET(static_cast<std::size_t>(cpu), &set)) cpus.push_back(cpu);
    return cpus;
}

}  // namespace continuo::guest::watch
