// The simulator: four-vCPU migrations a second on one core with each strategy, beside the least
// that a migration on the model can be; how threads scale; and what it needs of memory. What is
// compared is measured in turn, many times, because the machine's speed drifts within one run.
#include <fmt/format.h>
#include <sys/resource.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "continuo/abi/msr.h"
#include "continuo/model/kvm_vm.h"
#include "continuo/model/platform.h"
#include "continuo/sim/compare.h"

namespace {

using namespace continuo;
using Clock = std::chrono::steady_clock;

constexpr double kWanted = 200'000;
constexpr int kRounds = 7;

/// Two hosts of one frequency, four vCPUs, eight moves there and back.
constexpr std::string_view kScenario = R"(
name = "bench"
[[host]]
name = "a"
drift_ppb = [-40_000, 40_000]
[[host]]
name = "b"
drift_ppb = [-40_000, 40_000]
[[move]]
to = "b"
[[move]]
to = "a"
[[move]]
to = "b"
[[move]]
to = "a"
[[move]]
to = "b"
[[move]]
to = "a"
[[move]]
to = "b"
[[move]]
to = "a"
)";

/// How long the body took by the wall clock, and on the processors: the second is what counts where
/// others use the machine too.
struct Took {
    double wall = 0;
    double cpu = 0;
};
double cpu_seconds() {
    timespec now{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}
Took time_of(const auto& body) {
    const Clock::time_point begin = Clock::now();
    const double cpu_begin = cpu_seconds();
    body();
    return {std::chrono::duration<double>(Clock::now() - begin).count(), cpu_seconds() - cpu_begin};
}

double median(std::vector<double> values) {
    std::nth_element(values.begin(),
                     values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
    return values[values.size() / 2];
}

/// A VM of four vCPUs made, its offsets and kvmclock written, its vCPUs entered: what no strategy
/// can leave out.
double floor_seconds(int migrations) {
    model::HostPlatform host{2'000'000};
    std::uint64_t sum = 0;
    const double seconds =
        time_of([&] {
            for (int i = 0; i < migrations; ++i) {
                host.counter += 1'000'000;
                model::KvmVm vm{host, model::KernelRules::linux(6, 12), 4};
                for (unsigned v = 0; v < 4; ++v) {
                    (void)vm.host_write_msr(v, abi::kMSR_KVM_SYSTEM_TIME_NEW, 0x1001 + 64 * v);
                    (void)vm.set_tsc_offset(v, 12'345);
                }
                abi::kvm_clock_data clock{};
                clock.clock = 1'000'000;
                (void)vm.set_clock(clock);
                for (unsigned v = 0; v < 4; ++v)
                    vm.enter(v);
                sum += vm.guest_tsc(3);
            }
        }).cpu;
    // Read, so that nothing of it can be left out.
    if (sum == 1) fmt::print("\n");
    return seconds / migrations;
}

sim::Work work_of(const sim::Scenario& scenario, std::vector<const sim::Strategy*> strategies,
                  std::uint64_t seeds) {
    return sim::Work{{scenario}, std::move(strategies), {1, seeds}};
}

void one_core(const sim::Scenario& scenario) {
    constexpr std::uint64_t seeds = 500;
    const double moves = static_cast<double>(scenario.moves.size());
    fmt::print("{:<32}{:>16}{:>12}{:>14}\n", "strategy", "migrations/s", "of floor", ">= 200 000");
    for (const sim::Strategy* strategy : sim::all_strategies()) {
        const sim::Work work = work_of(scenario, {strategy}, seeds);
        std::vector<double> rates;
        std::vector<double> ratios;
        for (int round = 0; round < kRounds; ++round) {
            const double floor = floor_seconds(2'000);
            const double each =
                time_of([&] { (void)sim::compare(work, 1); }).cpu / (moves * double(seeds));
            rates.push_back(1 / each);
            ratios.push_back(floor / each);
        }
        const double rate = median(rates);
        fmt::print("{:<32}{:>16.0f}{:>12.3f}{:>14}\n", strategy->name(), rate, median(ratios),
                   rate >= kWanted ? "yes" : "no");
    }
}

double load_average() {
    double load = 0;
    return getloadavg(&load, 1) == 1 ? load : 0;
}

/// Threads that share nothing and touch no memory: what this machine gives to so many of them, at
/// the moment. As much for each thread as for one alone.
double loop_wall(unsigned jobs) {
    constexpr std::uint64_t turns = 150'000'000;
    std::vector<std::uint64_t> ends(jobs);
    const auto turn = [&ends](unsigned job) {
        std::uint64_t x = job + 1;
        for (std::uint64_t i = 0; i < turns; ++i)
            x = x * 6364136223846793005U + 1442695040888963407U;
        ends[job] = x;
    };
    return time_of([&] {
               std::vector<std::jthread> others;
               for (unsigned job = 1; job < jobs; ++job)
                   others.emplace_back(turn, job);
               turn(0);
           })
        .wall;
}

/// By the wall clock, beside an empty loop on as many threads, in turn: a machine whose cores are
/// taken scales nothing. By CPU time it is what the threads cost each other.
void scaling(const sim::Scenario& scenario) {
    const unsigned cores = std::max(std::thread::hardware_concurrency(), 1U);
    const auto all = sim::all_strategies();
    const sim::Work work = work_of(scenario, {all.begin(), all.end()}, 400);
    fmt::print("\n{:<9}{:>15}{:>15}{:>15}{:>10}{:>9}   (load before: {:.1f} on {} cores)\n",
               "threads", "by wall clock", "an empty loop", "by CPU time", "of loop", ">= 0.9",
               load_average(), cores);
    for (unsigned jobs = 2; jobs <= cores; jobs *= 2) {
        std::vector<double> wall;
        std::vector<double> cpu;
        std::vector<double> loop;
        std::vector<double> ratio;
        for (int round = 0; round < kRounds; ++round) {
            const Took one = time_of([&] { (void)sim::compare(work, 1); });
            const Took many = time_of([&] { (void)sim::compare(work, jobs); });
            wall.push_back(one.wall / many.wall / jobs);
            cpu.push_back(one.cpu / many.cpu);
            loop.push_back(loop_wall(1) / loop_wall(jobs));
            ratio.push_back(wall.back() / loop.back());
        }
        const double value = median(ratio);
        fmt::print("{:<9}{:>15.3f}{:>15.3f}{:>15.3f}{:>10.3f}{:>9}\n", jobs, median(wall),
                   median(loop), median(cpu), value, value >= 0.9 ? "yes" : "no");
    }
    if (cores == 1) fmt::print("not measured: this machine has one core\n");
}

void memory() {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    fmt::print(
        "\nmemory: {} bytes a run's result, {} bytes a tally (one for each strategy in each "
        "scenario, in each thread), {} KiB at most in all\n",
        sizeof(sim::RunResult), sizeof(sim::Tally), usage.ru_maxrss);
}

}  // namespace

int main() {
    const auto scenario = sim::parse_scenario(kScenario, "bench");
    if (!scenario) {
        fmt::print("{}\n", scenario.error().message());
        return 1;
    }
    one_core(*scenario);
    scaling(*scenario);
    memory();
    return 0;
}
