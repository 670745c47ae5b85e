// A Program as a System, under one of three memory models. All are operational; the tests hold them
// against litmus tests whose outcomes are known.
//
// kSc: a load reads the last store to the location.
//
// kTso (x86): each thread has a queue of stores in program order; its own loads see the newest
// queued store, the others' see memory. The queue is an agent of its own. A full barrier and a
// compare-and-exchange wait until it is empty. A store waits while kQueueMax stores are queued.
//
// kArm64: memory is one list of stores (other-multi-copy atomic, as Armv8 is); a thread has views,
// positions in that list, and may read any store of a location that its views and coherence do not
// rule out, so loads may be satisfied early and out of order; its own stores wait in a queue that
// they leave in any order that coherence and barriers allow, so stores may be delayed and reordered
// with each other and with later loads. After Pulte et al., "Promising-ARM/RISC-V" (2019), with a
// queue in place of promises. Covered: load-load, store-store and store-load reordering,
// forwarding, dmb ish, ishst, ishld, ldar, stlr. Not covered: a store that becomes visible before
// an earlier load of its thread is satisfied (load buffering), so a protocol must not rest on the
// order of a load and a later store that it does not depend on; accesses of different sizes that
// overlap. Too weak in one place: address dependencies do not order loads. A compare-and-exchange
// reads the newest store and is a barrier where it exchanges (Linux's cmpxchg()).
#pragma once

#include <optional>
#include <string_view>

#include "continuo/explore/program.h"
#include "continuo/explore/system.h"

namespace continuo::explore {

enum class MemoryModel : std::uint8_t { kSc, kTso, kArm64 };

/// "sc", "tso", "arm64".
std::string_view name(MemoryModel model);
std::optional<MemoryModel> memory_model(std::string_view name);

class Interleaving final : public System {
  public:
    /// The program must be complete. Under kTso and kArm64 get, put and await reach direct
    /// locations only, which are no memory of the threads'.
    Interleaving(Program program, MemoryModel model);

    std::size_t state_bytes() const override { return bytes_; }
    unsigned agents() const override { return agents_; }
    void initial(std::uint8_t* state) const override;
    void successors(const std::uint8_t* state, unsigned agent, Successors& out) const override;
    Footprint step(const std::uint8_t* state, unsigned agent) const override;
    Footprint future(const std::uint8_t* state, unsigned agent) const override;
    unsigned rank(const std::uint8_t* state, unsigned agent) const override;
    bool ranked(unsigned agent) const override { return agent < threads_; }
    bool may_rest(const std::uint8_t* state, unsigned agent) const override;
    std::string agent_name(unsigned agent) const override;
    std::string step_text(const std::uint8_t* state, unsigned agent,
                          unsigned choice) const override;
    Fields fields(const std::uint8_t* state) const override;

    /// The value that a register has, for tests.
    Value register_value(const std::uint8_t* state, std::size_t thread, Reg reg) const {
        return state[places_[thread].registers + reg.index];
    }
    const Program& program() const { return program_; }

    static constexpr std::size_t kQueueMax = 10;     ///< stores of a thread that wait
    static constexpr std::size_t kMessagesMax = 40;  ///< stores that somebody can still read

  private:
    /// An instruction without its text.
    struct Code {
        Op op;
        std::uint8_t dst;
        Operand a;
        Operand b;
        std::uint8_t loc;
        Fence fence;
        Order order;
        std::uint16_t target;
        const char* text;
    };
    struct ThreadCode {
        std::vector<Code> code;
        std::vector<Footprint> step;      ///< per pc, as the memory model has it
        std::vector<Footprint> future;    ///< per pc
        std::vector<std::uint16_t> live;  ///< per pc: registers that are read before written
    };

    void lay_out();
    std::size_t lay_out_queues(std::size_t at);
    void prepare(std::size_t thread);
    void find_live_registers(ThreadCode& thread) const;

    Value value(const std::uint8_t* state, std::size_t thread, Operand operand) const {
        return operand.is_register ? state[places_[thread].registers + operand.value]
                                   : operand.value;
    }
    void set(std::uint8_t* state, std::size_t thread, std::uint8_t reg, Value value) const {
        state[places_[thread].registers + reg] = value;
    }
    const Code& at(const std::uint8_t* state, std::size_t thread) const {
        return code_[thread].code[state[thread]];
    }
    /// Runs the silent instructions behind the step that stands at the thread's pc, and moves the
    /// pc to the next step.
    void finish(std::uint8_t* state, std::size_t thread, Successors& out) const;
    void silent(std::uint8_t* state, std::size_t thread, const Code& code) const;
    void thread_step(const std::uint8_t* state, std::size_t thread, Successors& out) const;
    void step_sc(const std::uint8_t* state, std::size_t thread, Successors& out) const;

    // tso.cc
    void step_tso(const std::uint8_t* state, std::size_t thread, Successors& out) const;
    void drain_tso(const std::uint8_t* state, unsigned agent, Successors& out) const;

    // arm64_memory.cc
    void step_arm64(const std::uint8_t* state, std::size_t thread, Successors& out) const;
    void load_arm64(const std::uint8_t* state, std::size_t thread, Successors& out) const;
    void cas_arm64(const std::uint8_t* state, std::size_t thread, Successors& out) const;
    void drain_arm64(const std::uint8_t* state, unsigned agent, Successors& out) const;
    void canonical_arm64(std::uint8_t* state) const;
    std::uint8_t bound_arm64(const std::uint8_t* state, std::size_t thread, std::uint8_t loc) const;

    /// Position of the newest waiting store to `loc` in the thread's queue; kQueueMax: none.
    std::size_t queued(const std::uint8_t* state, std::size_t thread, std::uint8_t loc) const;
    bool can_leave(const std::uint8_t* state, std::size_t thread, std::size_t position) const;
    void leave_queue(std::uint8_t* state, std::size_t thread, std::size_t position) const;
    void weak_fields(const std::uint8_t* state, Fields& out) const;

    // Layout: pcs; registers; memory; then, unless kSc, for each thread that stores a queue: count,
    // whether a store barrier was last, entries (loc, value, barriers); then, under kArm64, the
    // list: count, entries (loc, value); then each thread's views: old reads, new reads, old
    // writes, coherence of each location.
    static constexpr std::size_t kQueueHeader = 2;
    static constexpr std::size_t kQueueEntry = 3;
    struct Place {
        std::size_t registers = 0;
        std::size_t queue = 0;
        std::size_t queue_max = 0;  ///< 0: the thread stores nothing and has no queue
        std::size_t views = 0;
    };
    std::size_t queue(std::size_t thread) const { return places_[thread].queue; }
    std::size_t views(std::size_t thread) const { return places_[thread].views; }
    std::uint8_t waiting(const std::uint8_t* state, std::size_t thread) const {
        return places_[thread].queue_max == 0 ? std::uint8_t{0} : state[queue(thread)];
    }

    Program program_;
    MemoryModel model_;
    std::size_t threads_;
    unsigned agents_;
    std::vector<ThreadCode> code_;
    std::vector<Place> places_;
    std::vector<std::size_t> queue_owner_;  ///< of the agents behind the threads
    std::size_t memory_ = 0;
    std::size_t messages_ = 0;
    std::size_t messages_max_ = 0;
    std::size_t bytes_ = 0;
};

}  // namespace continuo::explore
