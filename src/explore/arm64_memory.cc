// arm64's memory: one list of stores, and threads with views of it. interleaving.h says what is
// covered. A position is a number in the list, counted from 1; 0 is what was there before it.
#include <algorithm>
#include <array>

#include "continuo/explore/interleaving.h"
#include "continuo/state/error.h"

namespace continuo::explore {

namespace {

// What holds a queued store back.
constexpr std::uint8_t kBehindBarrier = 1;  ///< it and all behind it wait for all before it
constexpr std::uint8_t kRelease = 2;        ///< it alone waits for all before it

// A thread's views, in their order in the state.
constexpr std::size_t kReadOld = 0;   ///< the newest position that it has read
constexpr std::size_t kReadNew = 1;   ///< later loads see at least all up to here
constexpr std::size_t kWriteOld = 2;  ///< the newest position that it has written
constexpr std::size_t kCoherence = 3;

void raise(std::uint8_t& view, std::uint8_t position) {
    view = std::max(view, position);
}

}  // namespace

std::uint8_t Interleaving::bound_arm64(const std::uint8_t* state, std::size_t thread,
                                       std::uint8_t loc) const {
    const std::uint8_t* view = state + views(thread);
    return std::max(view[kReadNew], view[kCoherence + loc]);
}

bool Interleaving::can_leave(const std::uint8_t* state, std::size_t thread,
                             std::size_t position) const {
    const std::uint8_t* entries = state + queue(thread) + kQueueHeader;
    const std::uint8_t* own = entries + kQueueEntry * position;
    if (position > 0 && (own[2] & (kRelease | kBehindBarrier)) != 0) return false;
    for (std::size_t i = 0; i < position; ++i) {
        const std::uint8_t* earlier = entries + kQueueEntry * i;
        if (earlier[0] == own[0]) return false;
        if (i > 0 && (earlier[2] & kBehindBarrier) != 0) return false;
    }
    return true;
}

void Interleaving::step_arm64(const std::uint8_t* state, std::size_t thread,
                              Successors& out) const {
    const Code& code = at(state, thread);
    const auto agent = static_cast<unsigned>(thread);
    const std::uint8_t before = waiting(state, thread);
    if (code.op == Op::kLoad) return load_arm64(state, thread, out);
    if (code.op == Op::kCas) return cas_arm64(state, thread, out);
    if (code.op == Op::kStore) {
        if (before == places_[thread].queue_max) return;
        std::uint8_t* next = out.add(state, agent, 0);
        std::uint8_t* own = next + queue(thread);
        std::uint8_t* entry = own + kQueueHeader + kQueueEntry * before;
        entry[0] = code.loc;
        entry[1] = value(state, thread, code.a);
        if (own[1] != 0) entry[2] |= kBehindBarrier;
        if (code.order == Order::kRelease && before > 0) entry[2] |= kRelease;
        own[1] = 0;
        ++own[0];
        return finish(next, thread, out);
    }
    if (code.fence == Fence::kFull && before > 0) return;
    std::uint8_t* next = out.add(state, agent, 0);
    std::uint8_t* view = next + views(thread);
    if (code.fence == Fence::kStore && before > 0) next[queue(thread) + 1] = 1;
    if (code.fence != Fence::kStore) raise(view[kReadNew], view[kReadOld]);
    if (code.fence == Fence::kFull) raise(view[kReadNew], view[kWriteOld]);
    finish(next, thread, out);
}

void Interleaving::load_arm64(const std::uint8_t* state, std::size_t thread,
                              Successors& out) const {
    const Code& code = at(state, thread);
    const auto agent = static_cast<unsigned>(thread);
    const std::size_t forwarded = queued(state, thread, code.loc);
    if (forwarded != kQueueMax) {
        std::uint8_t* next = out.add(state, agent, 0);
        set(next, thread, code.dst,
            state[queue(thread) + kQueueHeader + kQueueEntry * forwarded + 1]);
        return finish(next, thread, out);
    }
    const std::uint8_t bound = bound_arm64(state, thread, code.loc);
    const auto read = [&](std::uint8_t position, Value found, unsigned choice) {
        std::uint8_t* next = out.add(state, agent, choice);
        std::uint8_t* view = next + views(thread);
        set(next, thread, code.dst, found);
        raise(view[kCoherence + code.loc], position);
        raise(view[kReadOld], position);
        if (code.order == Order::kAcquire) raise(view[kReadNew], position);
        finish(next, thread, out);
    };
    std::uint8_t newest_known = 0;
    Value known = state[memory_ + code.loc];
    for (std::uint8_t i = 0; i < bound; ++i) {
        const std::uint8_t* message = state + messages_ + 1 + 2 * i;
        if (message[0] != code.loc) continue;
        newest_known = static_cast<std::uint8_t>(i + 1);
        known = message[1];
    }
    unsigned choice = 0;
    read(newest_known, known, choice++);
    for (std::uint8_t i = bound; i < state[messages_]; ++i) {
        const std::uint8_t* message = state + messages_ + 1 + 2 * i;
        if (message[0] != code.loc) continue;
        read(static_cast<std::uint8_t>(i + 1), message[1], choice++);
    }
}

void Interleaving::cas_arm64(const std::uint8_t* state, std::size_t thread, Successors& out) const {
    const Code& code = at(state, thread);
    if (waiting(state, thread) > 0) return;
    std::uint8_t* next = out.add(state, static_cast<unsigned>(thread), 0);
    std::uint8_t* list = next + messages_;
    std::uint8_t position = 0;
    Value found = state[memory_ + code.loc];
    for (std::uint8_t i = 0; i < list[0]; ++i) {
        if (list[1 + 2 * i] != code.loc) continue;
        position = static_cast<std::uint8_t>(i + 1);
        found = list[2 + 2 * i];
    }
    const bool exchanges = found == value(state, thread, code.a);
    std::uint8_t* view = next + views(thread);
    if (exchanges) {
        CONTINUO_CHECK(list[0] < messages_max_);
        list[1 + 2 * list[0]] = code.loc;
        list[2 + 2 * list[0]] = value(state, thread, code.b);
        position = ++list[0];
        raise(view[kReadNew], position);
        raise(view[kWriteOld], position);
    }
    raise(view[kReadOld], position);
    raise(view[kCoherence + code.loc], position);
    set(next, thread, code.dst, exchanges);
    finish(next, thread, out);
}

void Interleaving::drain_arm64(const std::uint8_t* state, unsigned agent, Successors& out) const {
    const std::size_t thread = queue_owner_[agent - threads_];
    const std::uint8_t* own = state + queue(thread);
    for (std::size_t position = 0; position < own[0]; ++position) {
        if (!can_leave(state, thread, position)) continue;
        const std::uint8_t* entry = own + kQueueHeader + kQueueEntry * position;
        std::uint8_t* next = out.add(state, agent, static_cast<unsigned>(position));
        std::uint8_t* list = next + messages_;
        CONTINUO_CHECK(list[0] < messages_max_);
        list[1 + 2 * list[0]] = entry[0];
        list[2 + 2 * list[0]] = entry[1];
        const std::uint8_t at = ++list[0];
        raise(next[views(thread) + kWriteOld], at);
        raise(next[views(thread) + kCoherence + entry[0]], at);
        leave_queue(next, thread, position);
        // The queue's first store waits for nobody any more.
        if (next[queue(thread)] > 0) next[queue(thread) + kQueueHeader + 2] = 0;
        canonical_arm64(next);
    }
}

// One form for all states that no thread can tell apart: stores that nobody can read are folded
// into the memory before the list, views that no later load can notice are 0, and positions count
// only the stores that are left.
void Interleaving::canonical_arm64(std::uint8_t* state) const {
    std::uint8_t* list = state + messages_;
    const std::size_t locations = program_.locations().size();
    for (std::size_t thread = 0; thread < threads_; ++thread) {
        std::uint8_t* view = state + views(thread);
        const std::uint64_t reads = code_[thread].future[state[thread]].reads;
        if (view[kReadOld] <= view[kReadNew]) view[kReadOld] = 0;
        if (view[kWriteOld] <= view[kReadNew]) view[kWriteOld] = 0;
        for (std::size_t loc = 0; loc < locations; ++loc)
            if ((reads >> loc & 1) == 0 || view[kCoherence + loc] <= view[kReadNew])
                view[kCoherence + loc] = 0;
        if (reads == 0) view[kReadOld] = view[kReadNew] = view[kWriteOld] = 0;
    }
    std::array<std::uint8_t, kLocationsMax> everybody_past{};  // this position, or cannot read
    for (std::size_t loc = 0; loc < locations; ++loc) {
        std::uint8_t least = list[0];
        for (std::size_t thread = 0; thread < threads_; ++thread)
            if ((code_[thread].future[state[thread]].reads >> loc & 1) != 0)
                least = std::min(least, bound_arm64(state, thread, static_cast<std::uint8_t>(loc)));
        everybody_past[loc] = least;
        for (std::size_t thread = 0; thread < threads_; ++thread) {
            std::uint8_t& coherence = state[views(thread) + kCoherence + loc];
            if (coherence <= least) coherence = 0;
        }
    }
    std::array<std::uint8_t, kMessagesMax + 1> renumbered{};
    std::uint8_t kept = 0;
    for (std::uint8_t i = 0; i < list[0]; ++i) {
        const std::uint8_t loc = list[1 + 2 * i];
        const Value value = list[2 + 2 * i];
        if (i < everybody_past[loc]) {
            state[memory_ + loc] = value;
        } else {
            list[1 + 2 * kept] = loc;
            list[2 + 2 * kept] = value;
            ++kept;
        }
        renumbered[i + 1U] = kept;
    }
    for (std::size_t i = 1 + 2U * kept; i < 1 + 2U * list[0]; ++i)
        list[i] = 0;
    list[0] = kept;
    for (std::size_t thread = 0; thread < threads_; ++thread)
        for (std::size_t i = 0; i < kCoherence + locations; ++i) {
            std::uint8_t& view = state[views(thread) + i];
            view = renumbered[view];
        }
}

}  // namespace continuo::explore
