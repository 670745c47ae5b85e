#include "continuo/explore/program.h"

#include <fmt/format.h>

#include "continuo/state/error.h"

namespace continuo::explore {

namespace {

bool is_jump(Op op) {
    return op == Op::kJump || op == Op::kJumpIfZero || op == Op::kJumpUnlessZero;
}

bool falls_through(Op op) {
    return op != Op::kJump && op != Op::kHalt;
}

std::uint64_t bit(Loc loc) {
    return std::uint64_t{1} << loc.index;
}

const char* sign(Op op) {
    switch (op) {
        case Op::kAdd:
            return "+";
        case Op::kSubtract:
            return "-";
        case Op::kMultiply:
            return "*";
        case Op::kAnd:
            return "&";
        case Op::kEqual:
            return "==";
        case Op::kNotEqual:
            return "!=";
        case Op::kLess:
            return "<";
        case Op::kLessOrEqual:
            return "<=";
        default:
            return "?";
    }
}

const char* fence_name(Fence fence) {
    switch (fence) {
        case Fence::kFull:
            return "full barrier";
        case Fence::kStore:
            return "store barrier";
        case Fence::kLoad:
            return "load barrier";
    }
    return "?";
}

}  // namespace

Reg Thread::reg(std::string name) {
    CONTINUO_CHECK(register_names_.size() < kRegistersMax);
    register_names_.push_back(std::move(name));
    return {static_cast<std::uint8_t>(register_names_.size() - 1)};
}

Label Thread::label() {
    labels_.push_back(-1);
    return {static_cast<std::uint16_t>(labels_.size() - 1)};
}

Thread& Thread::bind(Label label) {
    CONTINUO_CHECK(labels_[label.index] < 0);
    labels_[label.index] = static_cast<int>(code_.size());
    return *this;
}

Thread& Thread::append(Instruction instruction) {
    CONTINUO_CHECK(code_.size() < kInstructionsMax);
    code_.push_back(std::move(instruction));
    return *this;
}

Thread& Thread::step(std::string what) {
    return append({.op = Op::kStep, .text = std::move(what)});
}

Thread& Thread::load(Reg dst, Loc loc, Order order) {
    return append({.op = Op::kLoad, .dst = dst, .loc = loc, .order = order});
}

Thread& Thread::store(Loc loc, Operand value, Order order) {
    return append({.op = Op::kStore, .a = value, .loc = loc, .order = order});
}

Thread& Thread::cas(Reg exchanged, Loc loc, Operand expected, Operand desired) {
    return append({.op = Op::kCas, .dst = exchanged, .a = expected, .b = desired, .loc = loc});
}

Thread& Thread::fence(Fence fence) {
    return append({.op = Op::kFence, .fence = fence});
}

Thread& Thread::await(Loc loc, Op comparison, Operand value) {
    CONTINUO_CHECK(comparison >= Op::kEqual && comparison <= Op::kLessOrEqual);
    return append({.op = Op::kAwait,
                   .a = value,
                   .loc = loc,
                   .target = static_cast<std::uint16_t>(comparison),
                   .text = {}});
}

Thread& Thread::choose(Reg dst, int alternatives) {
    return append({.op = Op::kChoose, .dst = dst, .a = alternatives});
}

Thread& Thread::halt() {
    return append({.op = Op::kHalt});
}

Thread& Thread::get(Reg dst, Loc loc) {
    return append({.op = Op::kGet, .dst = dst, .loc = loc});
}

Thread& Thread::put(Loc loc, Operand value) {
    return append({.op = Op::kPut, .a = value, .loc = loc});
}

Thread& Thread::move(Reg dst, Operand value) {
    return append({.op = Op::kMove, .dst = dst, .a = value});
}

Thread& Thread::compute(Reg dst, Op op, Operand a, Operand b) {
    CONTINUO_CHECK(op >= Op::kAdd && op <= Op::kLessOrEqual);
    return append({.op = op, .dst = dst, .a = a, .b = b});
}

Thread& Thread::jump(Label target) {
    return append({.op = Op::kJump, .target = target.index});
}

Thread& Thread::jump_if_zero(Operand value, Label target) {
    return append({.op = Op::kJumpIfZero, .a = value, .target = target.index});
}

Thread& Thread::jump_unless_zero(Operand value, Label target) {
    return append({.op = Op::kJumpUnlessZero, .a = value, .target = target.index});
}

Thread& Thread::check(Operand value, std::string what_holds) {
    return append({.op = Op::kAssert, .a = value, .text = std::move(what_holds)});
}

Thread& Thread::serves() {
    server_ = true;
    return *this;
}

Footprint Thread::touches(const Instruction& instruction) const {
    switch (instruction.op) {
        case Op::kLoad:
        case Op::kAwait:
        case Op::kGet:
            return {bit(instruction.loc), 0};
        case Op::kStore:
        case Op::kPut:
            return {0, bit(instruction.loc)};
        case Op::kCas:
            return {bit(instruction.loc), bit(instruction.loc)};
        default:
            return {};
    }
}

// Both footprints are least fixed points over the control flow: a step's ends where the next step
// begins, a future never does.
void Thread::complete() {
    if (code_.empty() || falls_through(code_.back().op)) halt();
    CONTINUO_CHECK(begins_step(code_.front().op));
    for (Instruction& instruction : code_) {
        if (!is_jump(instruction.op)) continue;
        CONTINUO_CHECK(labels_[instruction.target] >= 0);
        instruction.target = static_cast<std::uint16_t>(labels_[instruction.target]);
    }
    step_.assign(code_.size(), {});
    future_.assign(code_.size(), {});
    const auto after = [this](const std::vector<Footprint>& of, std::size_t next, bool whole) {
        return whole || !begins_step(code_[next].op) ? of[next] : Footprint{};
    };
    for (bool changed = true; changed;) {
        changed = false;
        for (std::size_t pc = code_.size(); pc-- > 0;) {
            const Instruction& instruction = code_[pc];
            Footprint step = touches(instruction);
            Footprint future = step;
            if (falls_through(instruction.op)) {
                step = step | after(step_, pc + 1, false);
                future = future | after(future_, pc + 1, true);
            }
            if (is_jump(instruction.op)) {
                step = step | after(step_, instruction.target, false);
                future = future | after(future_, instruction.target, true);
            }
            changed |= !(step == step_[pc]) || !(future == future_[pc]);
            step_[pc] = step;
            future_[pc] = future;
        }
    }
}

std::string Thread::show(Operand operand) const {
    return operand.is_register ? register_names_[operand.value] : std::to_string(operand.value);
}

std::string Thread::text(std::size_t pc, const std::vector<std::string>& locations) const {
    const Instruction& i = code_[pc];
    const auto& loc = locations.empty() ? name_ : locations[i.loc.index];
    switch (i.op) {
        case Op::kStep:
            return i.text;
        case Op::kLoad:
            return fmt::format("load {}{}", loc, i.order == Order::kAcquire ? " (acquire)" : "");
        case Op::kStore:
            return fmt::format("store {}{} := {}", loc,
                               i.order == Order::kRelease ? " (release)" : "", show(i.a));
        case Op::kCas:
            return fmt::format("compare-and-exchange {}: {} -> {}", loc, show(i.a), show(i.b));
        case Op::kFence:
            return fence_name(i.fence);
        case Op::kAwait:
            return fmt::format("wait until {} {} {}", loc, sign(static_cast<Op>(i.target)),
                               show(i.a));
        case Op::kChoose:
            return fmt::format("choose {} of {}", register_names_[i.dst.index], i.a.value);
        case Op::kHalt:
            return "end";
        default:
            return "silent";
    }
}

Loc Program::shared(std::string name, int initial) {
    CONTINUO_CHECK(locations_.size() < kLocationsMax);
    locations_.push_back(std::move(name));
    initial_.push_back(static_cast<Value>(initial));
    direct_.push_back(false);
    return {static_cast<std::uint8_t>(locations_.size() - 1)};
}

Loc Program::direct(std::string name, int initial) {
    const Loc loc = shared(std::move(name), initial);
    direct_.back() = true;
    return loc;
}

Thread& Program::thread(std::string name) {
    CONTINUO_CHECK(threads_.size() < kThreadsMax);
    return threads_.emplace_back(std::move(name));
}

Program& Program::complete() {
    for (Thread& thread : threads_)
        thread.complete();
    return *this;
}

}  // namespace continuo::explore
