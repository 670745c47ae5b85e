// One thread on each CPU that sleeps, reads its clocks, and sleeps again; and now and then two of
// them exchange counters. What is read is handed over in batches. A CPU is never held for longer
// than a pass, but for an exchange: four times a second two of them wait up to 2 ms for each other.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <variant>
#include <vector>

#include "continuo/guest/watch/clock_source.h"
#include "continuo/guest/watch/reading.h"

namespace continuo::guest::watch {

using Sample = std::variant<Pass, Exchange>;

class Sampler {
  public:
    /// `cpus`: the kernel's numbers of the CPUs to watch; samples name them by their place here.
    Sampler(ClockSource& clocks, std::vector<int> cpus, std::int64_t period_ns);
    Sampler(const Sampler&) = delete;
    Sampler& operator=(const Sampler&) = delete;
    ~Sampler();

    /// 0, or the errno of what kept a thread from its CPU; then nothing runs.
    int start();
    void stop();
    /// What was read since the last call, in the order in which it was handed over.
    std::vector<Sample> take();
    /// Passes that nobody took in time.
    std::uint64_t lost() const { return lost_.load(std::memory_order_relaxed); }

    /// The CPUs that this process may run on.
    static std::vector<int> allowed_cpus();

  private:
    struct Published;
    struct Meeting;
    void run(std::uint32_t cpu);
    void look_at_others(std::uint32_t cpu, Pass& pass) const;
    void publish(const Pass& pass);
    void meet(std::uint32_t cpu, std::uint64_t slot);
    void ask(std::uint32_t other, std::uint64_t ticket);
    void answer(std::uint64_t ticket);
    void hand_over(const Sample& sample);

    ClockSource& clocks_;
    std::vector<int> cpus_;
    std::int64_t period_ns_;
    std::vector<Published> published_;
    std::unique_ptr<Meeting> meeting_;
    std::vector<std::thread> threads_;
    std::atomic<bool> stop_{false};
    std::atomic<int> error_{0};
    std::atomic<std::uint32_t> ready_{0};
    std::mutex mutex_;
    std::vector<Sample> samples_;
    std::atomic<std::uint64_t> lost_{0};
};

}  // namespace continuo::guest::watch
