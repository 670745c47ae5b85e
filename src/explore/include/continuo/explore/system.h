// What is explored: something with a state of a fixed number of bytes, and agents that take steps.
// A state is those bytes and nothing else: two states are the same where their bytes are, so a
// system keeps no padding, no pointer and nothing dead in them. An agent is what a scheduler can
// choose: a thread, a store buffer, a VMM.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "continuo/explore/program.h"

namespace continuo::explore {

inline constexpr std::size_t kStateBytesMax = 512;
inline constexpr unsigned kAgentsMax = 32;

/// The states that one step leads to, and what each of them breaks. Reused from step to step.
class Successors {
  public:
    explicit Successors(std::size_t state_bytes) : bytes_{state_bytes} {}

    void clear() { size_ = 0; }
    std::size_t size() const { return size_; }

    /// A successor that begins as a copy of `state`, to be changed in place; good until the next
    /// add(). `choice` numbers the ways in which the agent can take its step.
    std::uint8_t* add(const std::uint8_t* state, unsigned agent, unsigned choice) {
        if (entries_.size() == size_) {
            entries_.emplace_back();
            states_.resize(states_.size() + bytes_);
        }
        entries_[size_] = {agent, choice, nullptr};
        std::uint8_t* slot = states_.data() + size_ * bytes_;
        std::memcpy(slot, state, bytes_);
        ++size_;
        return slot;
    }
    /// The last successor breaks this. The text outlives the search.
    void fail(const char* what) { entries_[size_ - 1].failure = what; }
    void drop_last() { --size_; }

    const std::uint8_t* state(std::size_t i) const { return states_.data() + i * bytes_; }
    unsigned agent(std::size_t i) const { return entries_[i].agent; }
    unsigned choice(std::size_t i) const { return entries_[i].choice; }
    const char* failure(std::size_t i) const { return entries_[i].failure; }

  private:
    struct Entry {
        unsigned agent = 0;
        unsigned choice = 0;
        const char* failure = nullptr;
    };
    std::size_t bytes_;
    std::size_t size_ = 0;
    std::vector<Entry> entries_;
    std::vector<std::uint8_t> states_;
};

/// A named part of a state, for people and for counterexamples.
using Fields = std::vector<std::pair<std::string, std::string>>;

class System {
  public:
    virtual ~System() = default;

    virtual std::size_t state_bytes() const = 0;  ///< 1 to kStateBytesMax
    virtual unsigned agents() const = 0;          ///< 1 to kAgentsMax
    virtual void initial(std::uint8_t* state) const = 0;

    /// Appends every state to which `agent` can go from here; none where it is blocked or done.
    virtual void successors(const std::uint8_t* state, unsigned agent, Successors& out) const = 0;

    // What partial-order reduction goes by; see search.h for what must be true of each.
    /// What the steps that the agent can take now may touch.
    virtual Footprint step(const std::uint8_t* state, unsigned agent) const = 0;
    /// What the agent may touch from here on, whatever the others do.
    virtual Footprint future(const std::uint8_t* state, unsigned agent) const = 0;
    /// Where the agent is: a step that does not raise its rank may close a cycle. An agent whose
    /// every cycle contains a step of another agent that does not raise that one's rank may have
    /// one rank for all states.
    virtual unsigned rank(const std::uint8_t* state, unsigned agent) const = 0;
    /// Whether a step of this agent can close a cycle although its rank stays.
    virtual bool ranked(unsigned agent) const = 0;

    /// Whether the agent may stand here for ever: it is done, or it only serves others.
    virtual bool may_rest(const std::uint8_t* state, unsigned agent) const = 0;

    /// Memory that the system itself needs for the states that it has given out.
    virtual std::uint64_t own_bytes() const { return 0; }

    virtual std::string agent_name(unsigned agent) const = 0;
    virtual std::string step_text(const std::uint8_t* state, unsigned agent,
                                  unsigned choice) const = 0;
    virtual Fields fields(const std::uint8_t* state) const = 0;
};

}  // namespace continuo::explore
