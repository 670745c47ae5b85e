#include "continuo/explore/interleaving.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "continuo/state/error.h"

namespace continuo::explore {

namespace {

constexpr std::array<std::pair<MemoryModel, std::string_view>, 3> kModels{
    {{MemoryModel::kSc, "sc"}, {MemoryModel::kTso, "tso"}, {MemoryModel::kArm64, "arm64"}}};

constexpr int kSilentMax = 1000;  ///< more silent instructions in a step are a loop without a step

bool is_jump(Op op) {
    return op == Op::kJump || op == Op::kJumpIfZero || op == Op::kJumpUnlessZero;
}

std::uint16_t bit_of(Operand operand) {
    return operand.is_register ? static_cast<std::uint16_t>(1U << operand.value) : std::uint16_t{0};
}

}  // namespace

std::string_view name(MemoryModel model) {
    for (const auto& [value, text] : kModels)
        if (value == model) return text;
    return "";
}

std::optional<MemoryModel> memory_model(std::string_view name) {
    for (const auto& [value, text] : kModels)
        if (text == name) return value;
    return std::nullopt;
}

Interleaving::Interleaving(Program program, MemoryModel model)
    : program_{std::move(program)},
      model_{model},
      threads_{program_.threads().size()},
      agents_{static_cast<unsigned>(threads_)},
      code_(threads_),
      places_(threads_) {
    lay_out();
    for (std::size_t thread = 0; thread < threads_; ++thread)
        prepare(thread);
}

void Interleaving::lay_out() {
    std::size_t at = threads_;
    for (std::size_t thread = 0; thread < threads_; ++thread) {
        places_[thread].registers = at;
        at += program_.threads()[thread].registers();
    }
    memory_ = at;
    at += program_.locations().size();
    if (model_ != MemoryModel::kSc) at = lay_out_queues(at);
    messages_ = at;
    if (model_ == MemoryModel::kArm64) {
        at += 1 + 2 * messages_max_;
        for (Place& place : places_) {
            place.views = at;
            at += 3 + program_.locations().size();
        }
    }
    bytes_ = at;
    agents_ += static_cast<unsigned>(queue_owner_.size());
    CONTINUO_CHECK(bytes_ <= kStateBytesMax && agents_ <= kAgentsMax);
}

// A thread that never jumps back stores each of its stores once, and no queue is longer.
std::size_t Interleaving::lay_out_queues(std::size_t at) {
    for (std::size_t thread = 0; thread < threads_; ++thread) {
        const std::vector<Instruction>& code = program_.threads()[thread].code();
        std::size_t stores = 0;
        std::size_t exchanges = 0;
        bool loops = false;
        for (std::size_t pc = 0; pc < code.size(); ++pc) {
            stores += code[pc].op == Op::kStore ? 1U : 0U;
            exchanges += code[pc].op == Op::kCas ? 1U : 0U;
            loops |= is_jump(code[pc].op) && code[pc].target <= pc;
        }
        messages_max_ += loops && stores + exchanges > 0 ? kMessagesMax : stores + exchanges;
        if (stores == 0) continue;
        places_[thread].queue = at;
        places_[thread].queue_max = loops ? kQueueMax : std::min(kQueueMax, stores);
        at += kQueueHeader + kQueueEntry * places_[thread].queue_max;
        queue_owner_.push_back(thread);
    }
    messages_max_ = std::min(messages_max_, kMessagesMax);
    return at;
}

void Interleaving::prepare(std::size_t index) {
    const Thread& thread = program_.threads()[index];
    ThreadCode& out = code_[index];
    for (std::size_t pc = 0; pc < thread.code().size(); ++pc) {
        const Instruction& i = thread.code()[pc];
        const bool direct = i.op == Op::kGet || i.op == Op::kPut || i.op == Op::kAwait;
        const bool memory = i.op == Op::kLoad || i.op == Op::kStore || i.op == Op::kCas;
        if (model_ != MemoryModel::kSc) {
            CONTINUO_CHECK(!direct || program_.is_direct(i.loc.index));
            CONTINUO_CHECK(!memory || !program_.is_direct(i.loc.index));
        }
        out.code.push_back(
            {i.op, i.dst.index, i.a, i.b, i.loc.index, i.fence, i.order, i.target, i.text.c_str()});
        Footprint step = thread.step_at(pc);
        Footprint future = thread.future_at(pc);
        if (model_ != MemoryModel::kSc && i.op == Op::kStore)  // it only enters its own queue
            step = begins_step(thread.code()[pc + 1].op) ? Footprint{} : thread.step_at(pc + 1);
        if (model_ == MemoryModel::kArm64) {
            std::uint64_t stores = 0;
            for (std::size_t loc = 0; loc < program_.locations().size(); ++loc)
                if (!program_.is_direct(loc)) stores |= std::uint64_t{1} << loc;
            if (i.op == Op::kCas) step.writes |= kStoreOrder;
            if ((future.writes & stores) != 0) future.writes |= kStoreOrder;
        }
        out.step.push_back(step);
        out.future.push_back(future);
    }
    find_live_registers(out);
}

// A register that nobody reads again is kept at 0: states that differ in it alone are one.
void Interleaving::find_live_registers(ThreadCode& thread) const {
    const std::size_t size = thread.code.size();
    thread.live.assign(size, 0);
    for (bool changed = true; changed;) {
        changed = false;
        for (std::size_t pc = size; pc-- > 0;) {
            const Code& i = thread.code[pc];
            std::uint16_t live = 0;
            if (i.op != Op::kJump && i.op != Op::kHalt) live = thread.live[pc + 1];
            if (is_jump(i.op)) live |= thread.live[i.target];
            const bool writes = i.op == Op::kLoad || i.op == Op::kCas || i.op == Op::kChoose ||
                                i.op == Op::kGet || (i.op >= Op::kMove && i.op < Op::kJump);
            if (writes) live &= static_cast<std::uint16_t>(~(1U << i.dst));
            live |= static_cast<std::uint16_t>(bit_of(i.a) | bit_of(i.b));
            changed |= live != thread.live[pc];
            thread.live[pc] = live;
        }
    }
}

void Interleaving::initial(std::uint8_t* state) const {
    std::memset(state, 0, bytes_);
    std::memcpy(state + memory_, program_.initial().data(), program_.initial().size());
}

void Interleaving::silent(std::uint8_t* state, std::size_t thread, const Code& code) const {
    const Value a = value(state, thread, code.a);
    const Value b = value(state, thread, code.b);
    const auto result = [&](int v) { set(state, thread, code.dst, static_cast<Value>(v)); };
    switch (code.op) {
        case Op::kGet:
            return result(state[memory_ + code.loc]);
        case Op::kPut:
            state[memory_ + code.loc] = a;
            return;
        case Op::kMove:
            return result(a);
        case Op::kAdd:
            return result(a + b);
        case Op::kSubtract:
            return result(a - b);
        case Op::kMultiply:
            return result(a * b);
        case Op::kAnd:
            return result(a & b);
        case Op::kEqual:
            return result(a == b);
        case Op::kNotEqual:
            return result(a != b);
        case Op::kLess:
            return result(a < b);
        case Op::kLessOrEqual:
            return result(a <= b);
        default:
            return;
    }
}

void Interleaving::finish(std::uint8_t* state, std::size_t thread, Successors& out) const {
    const ThreadCode& own = code_[thread];
    std::size_t pc = state[thread] + 1U;
    for (int count = 0; !begins_step(own.code[pc].op); ++count) {
        CONTINUO_CHECK(count < kSilentMax);
        const Code& code = own.code[pc];
        const Value a = value(state, thread, code.a);
        const bool taken = code.op == Op::kJump || (code.op == Op::kJumpIfZero && a == 0) ||
                           (code.op == Op::kJumpUnlessZero && a != 0);
        if (code.op == Op::kAssert && a == 0) out.fail(code.text);
        silent(state, thread, code);
        pc = taken ? code.target : pc + 1;
    }
    state[thread] = static_cast<std::uint8_t>(pc);
    const std::size_t registers = program_.threads()[thread].registers();
    for (std::size_t reg = 0; reg < registers; ++reg)
        if ((own.live[pc] >> reg & 1U) == 0) state[places_[thread].registers + reg] = 0;
    if (model_ == MemoryModel::kArm64) canonical_arm64(state);
}

void Interleaving::successors(const std::uint8_t* state, unsigned agent, Successors& out) const {
    if (agent < threads_) return thread_step(state, agent, out);
    if (model_ == MemoryModel::kTso) return drain_tso(state, agent, out);
    drain_arm64(state, agent, out);
}

// The steps that no memory model changes; the others are the model's.
void Interleaving::thread_step(const std::uint8_t* state, std::size_t thread,
                               Successors& out) const {
    const Code& code = at(state, thread);
    const auto agent = static_cast<unsigned>(thread);
    switch (code.op) {
        case Op::kHalt:
            return;
        case Op::kStep:
            return finish(out.add(state, agent, 0), thread, out);
        case Op::kChoose:
            for (unsigned choice = 0; choice < code.a.value; ++choice) {
                std::uint8_t* next = out.add(state, agent, choice);
                set(next, thread, code.dst, static_cast<Value>(choice));
                finish(next, thread, out);
            }
            return;
        case Op::kAwait: {
            const Value found = state[memory_ + code.loc];
            const Value wanted = value(state, thread, code.a);
            const auto comparison = static_cast<Op>(code.target);
            const bool holds = comparison == Op::kEqual      ? found == wanted
                               : comparison == Op::kNotEqual ? found != wanted
                               : comparison == Op::kLess     ? found < wanted
                                                             : found <= wanted;
            if (holds) finish(out.add(state, agent, 0), thread, out);
            return;
        }
        default:
            break;
    }
    if (model_ == MemoryModel::kTso) return step_tso(state, thread, out);
    if (model_ == MemoryModel::kArm64) return step_arm64(state, thread, out);
    step_sc(state, thread, out);
}

void Interleaving::step_sc(const std::uint8_t* state, std::size_t thread, Successors& out) const {
    const Code& code = at(state, thread);
    std::uint8_t* next = out.add(state, static_cast<unsigned>(thread), 0);
    std::uint8_t& cell = next[memory_ + code.loc];
    if (code.op == Op::kLoad) set(next, thread, code.dst, cell);
    if (code.op == Op::kStore) cell = value(state, thread, code.a);
    if (code.op == Op::kCas) {
        const bool exchanges = cell == value(state, thread, code.a);
        if (exchanges) cell = value(state, thread, code.b);
        set(next, thread, code.dst, exchanges);
    }
    finish(next, thread, out);
}

Footprint Interleaving::step(const std::uint8_t* state, unsigned agent) const {
    if (agent < threads_) return code_[agent].step[state[agent]];
    return future(state, agent);
}

Footprint Interleaving::future(const std::uint8_t* state, unsigned agent) const {
    if (agent < threads_) return code_[agent].future[state[agent]];
    const std::uint8_t* own = state + queue(queue_owner_[agent - threads_]);
    Footprint out;
    for (std::size_t i = 0; i < own[0]; ++i)
        out.writes |= std::uint64_t{1} << own[kQueueHeader + kQueueEntry * i];
    if (own[0] > 0 && model_ == MemoryModel::kArm64) out.writes |= kStoreOrder;
    return out;
}

unsigned Interleaving::rank(const std::uint8_t* state, unsigned agent) const {
    return agent < threads_ ? state[agent] : 0;
}

bool Interleaving::may_rest(const std::uint8_t* state, unsigned agent) const {
    if (agent >= threads_) return state[queue(queue_owner_[agent - threads_])] == 0;
    return at(state, agent).op == Op::kHalt || program_.threads()[agent].is_server();
}

std::string Interleaving::agent_name(unsigned agent) const {
    if (agent < threads_) return program_.threads()[agent].name();
    return program_.threads()[queue_owner_[agent - threads_]].name() + "'s stores";
}

std::string Interleaving::step_text(const std::uint8_t* state, unsigned agent,
                                    unsigned choice) const {
    if (agent < threads_) {
        const Code& code = at(state, agent);
        std::string text = program_.threads()[agent].text(state[agent], program_.locations());
        if (code.op == Op::kChoose) text += fmt::format(": {}", choice);
        if (code.op == Op::kLoad && choice > 0) text += fmt::format(", {} stores newer", choice);
        return text;
    }
    const std::size_t position = model_ == MemoryModel::kTso ? 0 : choice;
    const std::uint8_t* entry =
        state + queue(queue_owner_[agent - threads_]) + kQueueHeader + kQueueEntry * position;
    return fmt::format("{} := {} reaches memory", program_.locations()[entry[0]], entry[1]);
}

Fields Interleaving::fields(const std::uint8_t* state) const {
    Fields out;
    for (std::size_t loc = 0; loc < program_.locations().size(); ++loc)
        if (model_ != MemoryModel::kArm64 || program_.is_direct(loc))
            out.emplace_back(program_.locations()[loc], std::to_string(state[memory_ + loc]));
    if (model_ != MemoryModel::kSc) weak_fields(state, out);
    for (std::size_t thread = 0; thread < threads_; ++thread) {
        const Thread& of = program_.threads()[thread];
        out.emplace_back(of.name() + ".pc", std::to_string(state[thread]));
        for (std::size_t reg = 0; reg < of.registers(); ++reg)
            out.emplace_back(of.name() + "." + of.register_name(reg),
                             std::to_string(state[places_[thread].registers + reg]));
    }
    return out;
}

}  // namespace continuo::explore
