// A strategy: one design of the threads, or a VMM of today, or Continuo's plan, for carrying a
// guest's clocks. It saves on the source, restores on the destination, and says what it promises
// the guest; the world does the rest (MSRs, memory, entries) alike for all.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "continuo/abi/kvm_clock.h"
#include "continuo/model/kernel_rules.h"
#include "continuo/sim/scenario.h"

namespace continuo::sim {

class SourceSide;
class DestinationSide;

/// What a strategy says that the guest's counter and MONOTONIC do.
enum class Promise : std::uint8_t {
    kFreezes,   ///< go on from the value at the stop
    kAdvances,  ///< as if never stopped
    kEither,    ///< it says nothing: today's VMMs
};

/// What the guest is told, and what it does about it.
enum class Told : std::uint8_t {
    kNothing,
    kDelta,           ///< the exact gap: REALTIME is held until it is repaired (S1.2, S1.3)
    kThatItHappened,  ///< NTP's state is void, REALTIME is believed right (S1.6)
    kFixMonotonic,    ///< S1.5: take the gap out of MONOTONIC
};

/// What travels. Fixed fields for those that save values; bytes for those that have a format.
struct Saved {
    struct Vcpu {
        std::uint64_t tsc = 0;
        std::int64_t tsc_adjust = 0;
        std::uint64_t tsc_offset = 0;
        std::uint64_t nanoseconds = 0;  ///< host REALTIME or TAI of the same instant (S3.1)
        std::uint32_t tsc_khz = 0;
    };
    std::array<Vcpu, kVcpusMax> vcpus{};
    unsigned vcpu_count = 0;
    abi::kvm_clock_data clock{};
    bool in_place = false;  ///< the VM that was saved goes on
    std::vector<std::byte> record;
};

/// How a save or a restore ended.
struct Done {
    enum class Kind : std::uint8_t { kOk, kRefused, kFailed } kind = Kind::kOk;
    std::string_view reason;  ///< static text
    bool ok() const { return kind == Kind::kOk; }
    static Done refused(std::string_view why) { return {Kind::kRefused, why}; }
    static Done failed(std::string_view why) { return {Kind::kFailed, why}; }
};

/// Stateless, one object for all runs and threads.
class Strategy {
  public:
    constexpr Strategy(std::string_view name, std::string_view source, std::string_view about,
                       Promise promise, Told told = Told::kNothing, bool quiesces = false)
        : name_{name},
          source_{source},
          about_{about},
          promise_{promise},
          told_{told},
          quiesces_{quiesces} {}
    Strategy(const Strategy&) = delete;
    Strategy& operator=(const Strategy&) = delete;
    virtual ~Strategy() = default;

    std::string_view name() const { return name_; }      ///< "by-value"
    std::string_view source() const { return source_; }  ///< thread item, "S3.7"
    std::string_view about() const { return about_; }    ///< one sentence
    Promise promise() const { return promise_; }
    Told told() const { return told_; }
    bool quiesces() const { return quiesces_; }  ///< suspends the guest to idle first (S1.9)

    /// Switches of the kernels that it needs, on both hosts: proposals that no kernel has.
    virtual void require(model::KernelRules& rules) const { (void)rules; }
    /// All vCPUs are out of guest mode.
    virtual Done save(SourceSide& source, Saved& saved) const = 0;
    /// The VM exists, with its memory and its MSRs but for the clocks.
    virtual Done restore(DestinationSide& destination, const Saved& saved) const = 0;
    /// The same controls once more, later: what a VMM does that is not sure whether it was done.
    virtual Done repeat(DestinationSide& destination, const Saved& saved) const {
        return restore(destination, saved);
    }

  private:
    std::string_view name_;
    std::string_view source_;
    std::string_view about_;
    Promise promise_;
    Told told_;
    bool quiesces_;
};

/// Every strategy, in the order in which comparisons list them.
std::span<const Strategy* const> all_strategies();
/// nullptr where there is none of this name.
const Strategy* strategy_from_name(std::string_view name);

}  // namespace continuo::sim
