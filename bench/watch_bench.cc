// What one sampling pass of `continuo watch` costs its CPU, beside the least that such a pass can
// cost: five clock_gettime() through the vDSO and the six readings of the counter round them. And
// what the judgement of a pass costs. In one run, taken in turns.
//
//     watch_bench [ROUNDS]      exit status 1 where a pass costs over twice the least
#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <ctime>
#include <vector>

#include "continuo/guest/counter.h"
#include "continuo/guest/watch/analyst.h"
#include "continuo/guest/watch/linux_clocks.h"

namespace {

using namespace continuo::guest::watch;

constexpr double kPassLimit = 2.0;
constexpr std::array<clockid_t, kClocks> kIds{CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_BOOTTIME,
                                              CLOCK_REALTIME, CLOCK_TAI};

class Silent final : public Listener {
  public:
    void event(const Event&) override {}
    void ntp(const NtpChange&) override {}
    void backward(const Backward&, std::uint64_t) override {}
};

std::uint64_t least() {
    const std::uint64_t begin = continuo_counter();
    std::uint64_t end = begin;
    for (const clockid_t id : kIds) {
        timespec now;
        clock_gettime(id, &now);
        end = continuo_counter();
    }
    return end - begin;
}

/// The lower decile: what it costs where nobody comes between.
std::uint64_t decile(std::vector<std::uint64_t>& ticks) {
    const auto at = ticks.begin() + static_cast<std::ptrdiff_t>(ticks.size() / 10);
    std::nth_element(ticks.begin(), at, ticks.end());
    return *at;
}

void print(const char* what, std::uint64_t ticks, std::uint64_t bare) {
    fmt::print("{:<52} {:8} ticks   {:6.3f} of the least\n", what, ticks,
               static_cast<double>(ticks) / static_cast<double>(bare));
}

}  // namespace

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 100'000;
    if (rounds < 10) {
        fmt::print(stderr, "watch_bench: at least 10 rounds\n");
        return 2;
    }
    LinuxClocks plain, paged;
    const bool has_page = paged.find_kvmclock();
    Silent silent;
    Analyst analyst{{}, silent};
    std::vector<std::uint64_t> bare_ticks, plain_ticks, paged_ticks, judged_ticks;
    for (int round = 0; round < rounds; ++round) {
        const auto number = static_cast<std::uint64_t>(round);
        bare_ticks.push_back(least());
        Pass pass;
        pass.cpu = 1;  // the first CPU asks adjtimex(2), too
        std::uint64_t begin = continuo_counter();
        plain.read(number, pass);
        plain_ticks.push_back(continuo_counter() - begin);
        begin = continuo_counter();
        paged.read(number, pass);
        paged_ticks.push_back(continuo_counter() - begin);
        pass.cpu = 0;
        begin = continuo_counter();
        analyst.take(pass);
        judged_ticks.push_back(continuo_counter() - begin);
    }
    const std::uint64_t bare = decile(bare_ticks), pass = decile(plain_ticks);
    print("five vDSO clocks between six counter readings", bare, bare);
    print("a pass", pass, bare);
    if (has_page) print("a pass with kvmclock's page", decile(paged_ticks), bare);
    print("the judgement of a pass, on another thread", decile(judged_ticks), bare);
    const bool good = static_cast<double>(pass) <= kPassLimit * static_cast<double>(bare);
    fmt::print("a pass: {:.3f} of the least (limit {}): {}\n",
               static_cast<double>(pass) / static_cast<double>(bare), kPassLimit,
               good ? "kept" : "NOT KEPT");
    return good ? 0 : 1;
}
