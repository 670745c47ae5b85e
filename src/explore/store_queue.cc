// The queue of a thread's stores that have not reached memory, and x86-TSO, which is that queue and
// nothing else.
#include <fmt/format.h>

#include "continuo/explore/interleaving.h"

namespace continuo::explore {

std::size_t Interleaving::queued(const std::uint8_t* state, std::size_t thread,
                                 std::uint8_t loc) const {
    const std::uint8_t* own = state + queue(thread);
    for (std::size_t i = waiting(state, thread); i-- > 0;)
        if (own[kQueueHeader + kQueueEntry * i] == loc) return i;
    return kQueueMax;
}

void Interleaving::leave_queue(std::uint8_t* state, std::size_t thread,
                               std::size_t position) const {
    std::uint8_t* own = state + queue(thread);
    std::uint8_t* entries = own + kQueueHeader;
    const std::size_t after = own[0] - position - 1U;
    std::memmove(entries + kQueueEntry * position, entries + kQueueEntry * (position + 1),
                 kQueueEntry * after);
    --own[0];
    std::memset(entries + kQueueEntry * own[0], 0, kQueueEntry);
    if (own[0] == 0) own[1] = 0;  // nothing is left that a barrier could hold back
}

void Interleaving::step_tso(const std::uint8_t* state, std::size_t thread, Successors& out) const {
    const Code& code = at(state, thread);
    const std::uint8_t* own = state + queue(thread);
    const bool waits_for_queue =
        code.op == Op::kCas || (code.op == Op::kFence && code.fence == Fence::kFull);
    if (waits_for_queue && waiting(state, thread) > 0) return;
    if (code.op == Op::kCas) return step_sc(state, thread, out);
    if (code.op == Op::kStore && own[0] == places_[thread].queue_max) return;
    std::uint8_t* next = out.add(state, static_cast<unsigned>(thread), 0);
    if (code.op == Op::kLoad) {
        const std::size_t newest = queued(state, thread, code.loc);
        set(next, thread, code.dst,
            newest == kQueueMax ? state[memory_ + code.loc]
                                : own[kQueueHeader + kQueueEntry * newest + 1]);
    }
    if (code.op == Op::kStore) {
        std::uint8_t* entry = next + queue(thread) + kQueueHeader + kQueueEntry * own[0];
        entry[0] = code.loc;
        entry[1] = value(state, thread, code.a);
        ++next[queue(thread)];
    }
    finish(next, thread, out);
}

void Interleaving::drain_tso(const std::uint8_t* state, unsigned agent, Successors& out) const {
    const std::size_t thread = queue_owner_[agent - threads_];
    const std::uint8_t* own = state + queue(thread);
    if (own[0] == 0) return;
    std::uint8_t* next = out.add(state, agent, 0);
    next[memory_ + own[kQueueHeader]] = own[kQueueHeader + 1];
    leave_queue(next, thread, 0);
}

void Interleaving::weak_fields(const std::uint8_t* state, Fields& out) const {
    const auto entry = [&](const std::uint8_t* at) {
        return fmt::format("{}={}", program_.locations()[at[0]], at[1]);
    };
    if (model_ == MemoryModel::kArm64) {
        for (std::size_t loc = 0; loc < program_.locations().size(); ++loc) {
            if (program_.is_direct(loc)) continue;
            std::string values = std::to_string(state[memory_ + loc]);
            for (std::size_t i = 0; i < state[messages_]; ++i) {
                const std::uint8_t* message = state + messages_ + 1 + 2 * i;
                if (message[0] == loc) values += fmt::format(", {}", message[1]);
            }
            out.emplace_back(program_.locations()[loc], values);
        }
    }
    for (const std::size_t thread : queue_owner_) {
        const std::uint8_t* own = state + queue(thread);
        std::string waiting;
        for (std::size_t i = 0; i < own[0]; ++i)
            waiting += (i > 0 ? " " : "") + entry(own + kQueueHeader + kQueueEntry * i);
        out.emplace_back(program_.threads()[thread].name() + "'s stores", waiting);
    }
}

}  // namespace continuo::explore
