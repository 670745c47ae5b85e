// A concurrent program in the form in which it is explored: threads of small instructions over
// shared locations, all of them bytes. An instruction that other threads can notice begins a step;
// the silent instructions behind it (arithmetic, branches, direct accesses, assertions) belong to
// the same step, so a step is one access to shared memory and what the thread makes of it. What a
// step may touch, and what a thread may still touch from a place on, is computed from the
// instructions: no protocol declares it, and none can declare it wrong. Absent: calls, indexing,
// values above 255.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace continuo::explore {

using Value = std::uint8_t;

/// A shared location, at most kLocationsMax in a program.
struct Loc {
    std::uint8_t index = 0;
};

/// A thread's register; it starts as 0 and no other thread sees it.
struct Reg {
    std::uint8_t index = 0;
};

/// A register or a constant.
struct Operand {
    Operand(int constant) : value{static_cast<Value>(constant)} {}  // NOLINT(*-explicit-*)
    Operand(Reg reg) : value{reg.index}, is_register{true} {}       // NOLINT(*-explicit-*)
    Value value = 0;
    bool is_register = false;
};

/// A place in a thread that jumps go to; bound once.
struct Label {
    std::uint16_t index = 0;
};

/// Sets of locations, a bit each.
struct Footprint {
    std::uint64_t reads = 0;
    std::uint64_t writes = 0;

    constexpr Footprint operator|(Footprint other) const {
        return {reads | other.reads, writes | other.writes};
    }
    friend bool operator==(const Footprint&, const Footprint&) = default;
};

/// Whether the order of two accesses can matter: one of them writes what the other one touches.
constexpr bool conflict(Footprint a, Footprint b) {
    return ((a.writes & (b.reads | b.writes)) | (b.writes & a.reads)) != 0;
}

enum class Op : std::uint8_t {
    // Each begins a step.
    kStep,    ///< touches nothing by itself; the silent instructions behind it are one atomic block
    kLoad,    ///< register := location, as the memory model has it
    kStore,   ///< location := operand, as the memory model has it
    kCas,     ///< compare-and-exchange, a full barrier: register := whether it exchanged
    kFence,   ///< see Fence
    kAwait,   ///< blocks until the location compares as wanted; reads it directly
    kChoose,  ///< register := each of 0 to n - 1
    kHalt,    ///< the thread is done
    // Silent.
    kGet,  ///< register := location, at once and coherently: devices, ghosts, a stopped machine
    kPut,  ///< location := operand, likewise
    kMove,
    kAdd,  ///< modulo 256
    kSubtract,
    kMultiply,
    kAnd,
    kEqual,
    kNotEqual,
    kLess,
    kLessOrEqual,
    kJump,
    kJumpIfZero,
    kJumpUnlessZero,
    kAssert,  ///< the operand is not 0, or the exploration has found what it looks for
};

constexpr bool begins_step(Op op) {
    return op <= Op::kHalt;
}

/// What a barrier keeps in order, as arm64 has them. On x86 kFull is MFENCE and the others are
/// nothing, because TSO keeps those orders by itself.
enum class Fence : std::uint8_t {
    kFull,   ///< dmb ish; mfence
    kStore,  ///< dmb ishst: earlier stores before later stores
    kLoad,   ///< dmb ishld: earlier loads before later loads and stores
};

/// How a load or store is ordered by itself.
enum class Order : std::uint8_t {
    kPlain,
    kAcquire,  ///< ldar: before every later access
    kRelease,  ///< stlr: after every earlier access
};

struct Instruction {
    Op op = Op::kStep;
    Reg dst{};
    Operand a = 0;
    Operand b = 0;
    Loc loc{};
    Fence fence = Fence::kFull;
    Order order = Order::kPlain;
    std::uint16_t target = 0;  ///< of a jump: a label until the program is complete, then a pc
    std::string text{};        ///< of an assertion: what holds; of a step: what it is
};

inline constexpr std::size_t kLocationsMax = 62;
inline constexpr std::size_t kThreadsMax = 8;
inline constexpr std::size_t kRegistersMax = 12;
inline constexpr std::size_t kInstructionsMax = 250;
/// A pseudo-location: the order in which stores of different locations reach memory.
inline constexpr std::uint64_t kStoreOrder = std::uint64_t{1} << 63;

/// Collects one thread's instructions. Every method appends one and returns the thread.
class Thread {
  public:
    explicit Thread(std::string name) : name_{std::move(name)} {}

    Reg reg(std::string name);
    Label label();
    Thread& bind(Label label);

    Thread& step(std::string what);
    Thread& load(Reg dst, Loc loc, Order order = Order::kPlain);
    Thread& store(Loc loc, Operand value, Order order = Order::kPlain);
    Thread& cas(Reg exchanged, Loc loc, Operand expected, Operand desired);
    Thread& fence(Fence fence);
    /// Blocks until `loc` equals (or, with kNotEqual, kLess, kLessOrEqual: compares so with) value.
    Thread& await(Loc loc, Op comparison, Operand value);
    Thread& choose(Reg dst, int alternatives);
    Thread& halt();

    Thread& get(Reg dst, Loc loc);
    Thread& put(Loc loc, Operand value);
    Thread& move(Reg dst, Operand value);
    /// `op` is one of kAdd to kLessOrEqual.
    Thread& compute(Reg dst, Op op, Operand a, Operand b);
    Thread& jump(Label target);
    Thread& jump_if_zero(Operand value, Label target);
    Thread& jump_unless_zero(Operand value, Label target);
    Thread& check(Operand value, std::string what_holds);
    /// This thread may wait for ever without that being a deadlock: it serves others.
    Thread& serves();

    const std::string& name() const { return name_; }
    bool is_server() const { return server_; }
    std::size_t registers() const { return register_names_.size(); }
    const std::string& register_name(std::size_t index) const { return register_names_[index]; }
    const std::vector<Instruction>& code() const { return code_; }
    std::size_t first_pc() const { return 0; }

    /// What the step at `pc` may touch, whichever way its branches go.
    Footprint step_at(std::size_t pc) const { return step_[pc]; }
    /// What the thread may touch from `pc` on, for ever.
    Footprint future_at(std::size_t pc) const { return future_[pc]; }

    /// Resolves labels, checks the form and computes the footprints. Called by Program::complete().
    void complete();
    /// The instruction for people: "load version -> v".
    std::string text(std::size_t pc, const std::vector<std::string>& locations) const;

  private:
    Thread& append(Instruction instruction);
    Footprint touches(const Instruction& instruction) const;
    std::string show(Operand operand) const;

    std::string name_;
    std::vector<std::string> register_names_;
    std::vector<Instruction> code_;
    std::vector<int> labels_;
    std::vector<Footprint> step_;
    std::vector<Footprint> future_;
    bool server_ = false;
};

/// Threads and locations. Built by a protocol, completed once, then constant.
class Program {
  public:
    explicit Program(std::string name) : name_{std::move(name)} { threads_.reserve(kThreadsMax); }

    /// A location that loads and stores reach through the memory model.
    Loc shared(std::string name, int initial = 0);
    /// A location that only get, put and await reach: a device, a ghost of the property, host
    /// state.
    Loc direct(std::string name, int initial = 0);
    /// The reference is good until the program is moved.
    Thread& thread(std::string name);
    Program& complete();

    const std::string& name() const { return name_; }
    const std::vector<Thread>& threads() const { return threads_; }
    const std::vector<std::string>& locations() const { return locations_; }
    const std::vector<Value>& initial() const { return initial_; }
    bool is_direct(std::size_t loc) const { return direct_[loc]; }

  private:
    std::string name_;
    std::vector<Thread> threads_;
    std::vector<std::string> locations_;
    std::vector<Value> initial_;
    std::vector<bool> direct_;
};

}  // namespace continuo::explore
