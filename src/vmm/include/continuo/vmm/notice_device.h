// The time-travel device of a VM: its notice page in guest memory, and the host's half of the
// protocol that is spoken through it (abi/time_travel_host.h; docs/formats/time-travel.md). How the
// guest finds the page, and what an interrupt is, is the board's. Of the page it reads one word.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>

#include "continuo/abi/time_travel_host.h"
#include "continuo/kvm/memory.h"
#include "continuo/state/error.h"

namespace continuo::vmm {

inline constexpr std::uint64_t kReleaseAfterNsDefault = 5'000'000'000;

/// What of the device a VM's state carries.
struct NoticeState {
    std::uint64_t page = 0;  ///< GPA; 0: the guest has put it where no memory is
    std::uint64_t release_after_ns = kReleaseAfterNsDefault;
    abi::TimeTravelState sums{};
    friend bool operator==(const NoticeState&, const NoticeState&) = default;
};

/// What the host knows of its notices.
struct NoticeStatus {
    NoticeState state;
    abi::TimeTravelCounts counts;  ///< since the VM came to this process
    /// Time in which the guest ran from the latest notice to its answer, as precisely as tend() was
    /// called; none before.
    std::optional<std::uint64_t> answered_after_ns;
    std::optional<std::uint64_t> garbage;  ///< the latest sequence found that says nothing
};

/// Any method, any thread, except where noted.
class NoticeDevice {
  public:
    /// What the device reaches of its VM.
    struct Wiring {
        kvm::GuestMemory& memory;
        std::function<void(std::uint64_t gpa)> mark_dirty;
        std::function<void()> interrupt;
    };
    /// What tend() found, once each.
    enum class Event : std::uint8_t { kAnswered, kReleased, kGarbage };

    /// For a guest that starts: the page is written. kInvalidArgument where `page` is not a whole
    /// page of memory.
    static state::Result<std::unique_ptr<NoticeDevice>> create(Wiring wiring, std::uint64_t page,
                                                               std::uint64_t release_after_ns);
    /// For a guest that comes from elsewhere, with its memory; writes nothing. kMalformed where
    /// `state` is none: foreign bytes.
    static state::Result<std::unique_ptr<NoticeDevice>> restore(Wiring wiring,
                                                                const NoticeState& state);

    /// The guest's own choice of a page. False, and there is no page any more, where it is not a
    /// whole page of memory; else the page begins anew there, as at a start.
    bool place(std::uint64_t page);
    std::uint64_t page() const;

    /// Tells of one travel, on top of what stood when the guest last ran, or came: may be called
    /// again before it runs, and then the last call counts. False where the guest has no page. No
    /// vCPU runs.
    bool raise(const abi::TimeTravel& travel);
    /// The notice's interrupt: before the first vCPU enters.
    void announce();

    /// Only time in which the guest runs is its to answer in. Before its vCPUs run, and after.
    void on_running(bool runs);
    /// Looks for an answer, and releases readers when it is time.
    std::optional<Event> tend();

    /// With the guest's last answer in it. The VM is stopped; its memory is taken after this, for
    /// where readers are given no time at all they are released in the page now.
    NoticeState save();
    NoticeStatus status() const;

  private:
    using Clock = std::chrono::steady_clock;

    NoticeDevice(Wiring wiring, std::uint64_t page, std::uint64_t release_after_ns);
    static bool fits(const kvm::GuestMemory& memory, std::uint64_t page);
    void write(const abi::TimeTravelStores& stores);
    void take_as_before();
    std::uint64_t found() const;
    std::uint64_t ran_ns() const;
    std::optional<Event> note(abi::TimeTravelHost::Seen seen, std::uint64_t found);

    Wiring wiring_;
    mutable std::mutex mutex_;
    std::uint64_t page_;
    std::uint64_t release_after_ns_;
    abi::TimeTravelHost host_;
    abi::TimeTravelHost before_;       ///< what raise() begins at
    std::uint64_t found_before_ = 0;   ///< the page's sequence then
    std::uint64_t ran_before_ns_ = 0;  ///< up to the latest stop
    std::optional<Clock::time_point> running_since_;
    std::uint64_t raised_at_ns_ = 0;
    std::optional<std::uint64_t> answered_after_ns_;
    std::optional<std::uint64_t> garbage_;
};

}  // namespace continuo::vmm
