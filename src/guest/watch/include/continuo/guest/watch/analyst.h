// Turns passes into events: the whole judgement of `continuo watch`, without threads, clocks or
// system calls, so that tests can plant what it must find. Memory is bounded by the number of CPUs
// and of events that are kept, whatever is fed and for how long.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "continuo/guest/watch/report.h"

namespace continuo::guest::watch {

/// Told of what is found, as it is found.
class Listener {
  public:
    Listener() = default;
    Listener(const Listener&) = delete;
    Listener& operator=(const Listener&) = delete;
    virtual ~Listener() = default;
    virtual void event(const Event& event) = 0;
    virtual void ntp(const NtpChange& change) = 0;
    /// A clock went backwards, for the `count`th time.
    virtual void backward(const Backward& backward, std::uint64_t count) = 0;
};

struct Settings {
    std::uint32_t cpus = 1;
    /// The stretch of readings before an event, and after it, that its lines are made of. What it
    /// did to the clocks is known that long after it.
    Nanos window = Nanos::from_raw(1'000'000'000);
    /// No reading on any CPU for this long is a stop of the guest, whatever else is seen. Longer
    /// than some passes are apart; below 100 ms a busy machine does that to itself.
    Nanos hole = Nanos::from_raw(100'000'000);
    /// Events of which everything is kept: so many of the first, and of the last.
    std::size_t events_kept = 200;
};

class Analyst {
  public:
    Analyst(const Settings& settings, Listener& listener);
    Analyst(const Analyst&) = delete;
    Analyst& operator=(const Analyst&) = delete;
    ~Analyst();

    /// Passes of one CPU in their order, those of several interleaved as they may. Domain: pass.cpu
    /// < settings.cpus.
    void take(const Pass& pass);
    /// Domain: 0 < exchange.cpu < settings.cpus.
    void take(const Exchange& exchange);
    /// Passes that the reader had to drop.
    void lose(std::uint64_t passes);
    /// Ends what is open, with the readings that are there.
    void finish();

    const Report& report() const;

  private:
    struct Work;
    std::unique_ptr<Work> work_;
};

}  // namespace continuo::guest::watch
