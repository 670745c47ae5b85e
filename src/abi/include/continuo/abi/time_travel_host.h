// The host's half of the notice page (time_travel.h): which words to store when, and what a value
// that the guest has left in the page means. Pure: it never sees the page itself. Whoever owns the
// page tells it the sequence that stands there and the time, and carries out the stores that it
// answers with. Of the guest's words it looks at migration_sequence alone, and that decides nothing
// but whether the last notice was answered; all sums are the host's own, so that a guest that
// writes garbage harms its own REALTIME only.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <variant>

#include "continuo/abi/time_travel.h"

namespace continuo::abi {

/// One aligned 8-byte store into the page.
struct TimeTravelStore {
    std::size_t offset;
    std::uint64_t value;
    friend bool operator==(const TimeTravelStore&, const TimeTravelStore&) = default;
};

/// The stores of one action, to be made in this order, each with release semantics.
class TimeTravelStores {
  public:
    constexpr void add(std::size_t offset, std::uint64_t value) {
        stores_[count_++] = {offset, value};
    }
    constexpr std::span<const TimeTravelStore> list() const& { return {stores_.data(), count_}; }
    std::span<const TimeTravelStore> list() const&& = delete;  // would outlive what it shows
    constexpr bool empty() const { return count_ == 0; }

  private:
    std::array<TimeTravelStore, sizeof(time_travel_page) / 8> stores_{};
    std::size_t count_ = 0;
};

/// One migration as the guest is told of it.
struct TimeTravel {
    std::int64_t delta_realtime_ns;  ///< how far REALTIME lags because of it; 0 where it does not
    std::uint64_t gap_ns;            ///< real time between stop and resume
    std::uint64_t maxerror_ns;       ///< bound of delta_realtime_ns
};

/// What a VM's device state carries of its notices; versioned by whoever stores it.
struct TimeTravelState {
    std::uint64_t sequence;           ///< as last published or, if answered, one above
    std::uint64_t time_travelled_ns;  ///< as in the page, and so the next two
    std::uint64_t gap_ns;
    std::uint64_t maxerror_ns;
    std::uint64_t unanswered_ns;  ///< sum of delta_REALTIME since the last answer, modulo 2^64
    bool released;                ///< readers do not wait for the open notice
    friend bool operator==(const TimeTravelState&, const TimeTravelState&) = default;
};

/// For the VM's statistics. Every notice raised is in the end answered, overtaken, forgotten by a
/// reset, or still open.
struct TimeTravelCounts {
    std::uint64_t raised = 0;
    std::uint64_t answered = 0;
    std::uint64_t overtaken = 0;  ///< raised over one that was still open
    std::uint64_t released = 0;   ///< not answered in time
    std::uint64_t garbage = 0;    ///< how often a sequence was found that says nothing
    friend bool operator==(const TimeTravelCounts&, const TimeTravelCounts&) = default;
};

class TimeTravelHost {
  public:
    /// Unit of `now`: ns of any clock of the host that runs while the guest does.
    using Now = std::uint64_t;

    enum class Seen : std::uint8_t {
        kNothing,   ///< quiet, or the guest has still time to answer
        kAnswered,  ///< the guest has repaired REALTIME
        kReleased,  ///< the time is up: the stores let readers go on
        kGarbage,   ///< the guest has written a sequence that says nothing; the notice stands
    };
    struct Look {
        Seen seen;
        TimeTravelStores stores;
    };

    /// A VM that never migrated. `release_after_ns`: how long readers of REALTIME are held at most.
    constexpr explicit TimeTravelHost(std::uint64_t release_after_ns)
        : release_after_ns_{release_after_ns} {}

    /// The VM on its new host, before its vCPUs run. A notice that was held is held anew from
    /// `now`: time in which the guest did not run was not its to answer. nullopt where the state
    /// cannot be: released without an open notice, or something unanswered without one.
    static constexpr std::optional<TimeTravelHost> restore(const TimeTravelState& state,
                                                           std::uint64_t release_after_ns,
                                                           Now now) {
        const bool open = (state.sequence & 1) != 0;
        if (!open && (state.released || state.unanswered_ns != 0)) return std::nullopt;
        TimeTravelHost host{release_after_ns};
        host.sums_ = state;
        if (open && state.released) host.notice_ = Released{};
        if (open && !state.released) host.notice_ = Held{host.deadline(now)};
        return host;
    }
    constexpr TimeTravelState state() const {
        TimeTravelState state = sums_;
        state.released = std::holds_alternative<Released>(notice_);
        return state;
    }

    /// The whole page as a guest that has just started, or was reset, finds it: nothing is open,
    /// and what was before is accounted for, because such a guest reads its REALTIME anew. No vCPU
    /// may run.
    constexpr TimeTravelStores reset() {
        sums_.sequence += sums_.sequence & 1;
        sums_.unanswered_ns = 0;
        notice_ = Quiet{};
        TimeTravelStores stores = everything();
        stores.add(offsetof(time_travel_page, accounted_ns), sums_.time_travelled_ns);
        stores.add(offsetof(time_travel_page, intent_ns), sums_.time_travelled_ns);
        stores.add(offsetof(time_travel_page, intent_offset_ns), 0);
        return stores;
    }

    /// A migration happened: to be called, and its stores made, after the last stop and before the
    /// first entry, while no vCPU runs. `found`: migration_sequence as it stands in the page.
    /// A notice that is still open is overtaken: its delta stays in the sums, and its sequence is
    /// left behind, so that an answer to it fails. Where REALTIME does not lag (all deltas since
    /// the last answer are zero) nobody is made to wait.
    constexpr TimeTravelStores raise(const TimeTravel& travel, std::uint64_t found, Now now) {
        if (!take_answer(found) && found != sums_.sequence) ++counts_.garbage;
        if (open()) ++counts_.overtaken;
        ++counts_.raised;
        sums_.sequence = (sums_.sequence + 1) | 1;
        const auto delta = static_cast<std::uint64_t>(travel.delta_realtime_ns);
        sums_.unanswered_ns += delta;
        sums_.time_travelled_ns += delta;
        sums_.gap_ns += travel.gap_ns;
        sums_.maxerror_ns += travel.maxerror_ns;
        if (sums_.unanswered_ns == 0)
            notice_ = Released{};
        else
            notice_ = Held{deadline(now)};
        return everything();
    }

    /// Looks whether the guest has answered; to be called at deadline(), and whenever somebody
    /// wants to know. The stores may be made while vCPUs run.
    constexpr Look look(std::uint64_t found, Now now) {
        if (take_answer(found)) return {Seen::kAnswered, {}};
        const bool damaged = found != sums_.sequence;
        if (damaged) ++counts_.garbage;
        const Held* held = std::get_if<Held>(&notice_);
        if (!held || now < held->deadline) return {damaged ? Seen::kGarbage : Seen::kNothing, {}};
        notice_ = Released{};
        ++counts_.released;
        Look look{Seen::kReleased, {}};
        if (damaged)
            look.stores.add(offsetof(time_travel_page, migration_sequence), sums_.sequence);
        look.stores.add(offsetof(time_travel_page, released_sequence), sums_.sequence);
        return look;
    }

    /// When to look next; nullopt where no reader is held.
    constexpr std::optional<Now> deadline() const {
        const Held* held = std::get_if<Held>(&notice_);
        return held ? std::optional<Now>{held->deadline} : std::nullopt;
    }
    /// Whether the guest has not answered the last notice, as far as the host has looked.
    constexpr bool open() const { return (sums_.sequence & 1) != 0; }
    constexpr std::uint64_t sequence() const { return sums_.sequence; }
    constexpr const TimeTravelCounts& counts() const { return counts_; }

  private:
    struct Quiet {};
    struct Held {
        Now deadline;
    };
    struct Released {};

    constexpr Now deadline(Now now) const {
        const Now at = now + release_after_ns_;
        return at < now ? ~Now{0} : at;
    }

    constexpr bool take_answer(std::uint64_t found) {
        if (!open() || found != sums_.sequence + 1) return false;
        sums_.sequence = found;
        sums_.unanswered_ns = 0;
        notice_ = Quiet{};
        ++counts_.answered;
        return true;
    }

    /// The host's half of the page; the sequence last, so that whoever sees it sees the rest.
    constexpr TimeTravelStores everything() const {
        const bool held = std::holds_alternative<Held>(notice_);
        TimeTravelStores stores;
        stores.add(0, kTimeTravelMagic | std::uint64_t{sizeof(time_travel_page)} << 32);
        stores.add(offsetof(time_travel_page, version), kTimeTravelVersion);
        stores.add(offsetof(time_travel_page, time_travelled_ns), sums_.time_travelled_ns);
        stores.add(offsetof(time_travel_page, gap_ns), sums_.gap_ns);
        stores.add(offsetof(time_travel_page, maxerror_ns), sums_.maxerror_ns);
        stores.add(offsetof(time_travel_page, released_sequence), held ? 0 : sums_.sequence);
        stores.add(offsetof(time_travel_page, release_after_ns), release_after_ns_);
        stores.add(offsetof(time_travel_page, migration_sequence), sums_.sequence);
        return stores;
    }

    std::uint64_t release_after_ns_;
    TimeTravelState sums_{};
    std::variant<Quiet, Held, Released> notice_;
    TimeTravelCounts counts_;
};

}  // namespace continuo::abi
