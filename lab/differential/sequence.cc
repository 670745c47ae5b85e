#include "sequence.h"

#include <fmt/format.h>

#include <array>
#include <cstdlib>

#include "continuo/model/random.h"

namespace continuo::differential {

namespace {

using model::Random;

constexpr std::array<std::string_view, kOpKinds> kNames{
    "create vCPU",     "set offset",       "write TSC",        "read TSC",
    "write adjust",    "set kHz",          "set clock",        "hand clock back",
    "set clock real",  "set clock bad",    "system time",      "wall clock",
    "kvmclock_ctrl",   "clear stopped",    "settle",           "guest RDTSC",
    "guest write TSC", "guest write adj.", "guest syst. time", "guest wall clock",
    "clock pairing",   "set VM kHz",       "move to CPU",      "wait",
};

constexpr std::array<std::string_view, 5> kValueNames{"", "own", "other's", "own+1s", "own-1s"};

/// How often an operation comes where all are on; 0 only by what a host lacks.
constexpr std::array<std::uint8_t, kOpKinds> kWeights{
    2, 8, 10, 3, 3, 4, 6, 3, 4, 1, 6, 3, 3, 3, 20, 6, 6, 5, 4, 2, 2, 2, 2, 3,
};

bool possible(OpKind kind, const Abilities& abilities) {
    switch (kind) {
        case OpKind::kSetOffset:
        case OpKind::kWriteTsc:
            return abilities.moves_tsc;
        case OpKind::kGuestReadTsc:
            return abilities.guest_runs;
        case OpKind::kGuestWriteTsc:
        case OpKind::kGuestWriteAdjust:
            return abilities.guest_runs && abilities.guest_msrs && abilities.moves_tsc;
        case OpKind::kGuestSystemTime:
        case OpKind::kGuestWallClock:
            return abilities.guest_runs && abilities.guest_msrs;
        case OpKind::kClockPairing:
            return abilities.guest_runs && abilities.hypercalls;
        case OpKind::kMoveToCpu:
            return abilities.cpus > 1;
        default:
            return true;
    }
}

using Weights = std::array<std::int64_t, kOpKinds>;

/// Each sequence leaves some operations out, so that those that are left come in longer chains.
Weights draw_weights(Random& random, const Abilities& abilities) {
    Weights weights{};
    const std::int64_t leave_out = random.between(0, 3);
    for (unsigned i = 0; i < kOpKinds; ++i) {
        const bool out = random.between(0, 7) < leave_out;
        if (!out && possible(static_cast<OpKind>(i), abilities)) weights[i] = kWeights[i];
    }
    // Without entries nothing would ever be carried out.
    weights[static_cast<unsigned>(OpKind::kSettle)] =
        kWeights[static_cast<unsigned>(OpKind::kSettle)];
    return weights;
}

OpKind draw_kind(Random& random, const Weights& weights) {
    std::int64_t sum = 0;
    for (const std::int64_t weight : weights)
        sum += weight;
    std::int64_t left = random.between(0, sum - 1);
    for (unsigned i = 0; i < kOpKinds; ++i) {
        if (left < weights[i]) return static_cast<OpKind>(i);
        left -= weights[i];
    }
    return OpKind::kSettle;
}

std::int64_t signed_of_any_size(Random& random, std::int64_t hi) {
    const std::int64_t size = random.of_any_size(hi);
    return random.one_in(2) ? -size : size;
}

/// Zero, one, near the line of this or the other vCPU, at the edge of KVM's second, far away.
void draw_tsc(Random& random, const Abilities& abilities, Op& op) {
    const std::int64_t second = std::int64_t{abilities.host_khz} * 1000;
    switch (random.between(0, 7)) {
        case 0:
            op.amount = random.between(0, 1);
            return;
        case 1:
            op.amount = random.of_any_size(std::int64_t{1} << 62);
            return;
        case 2:
            op.value = Value::kOwn;
            op.amount = signed_of_any_size(random, 4 * second);
            return;
        case 3:
            op.value = Value::kOther;
            return;
        case 4:
            op.value = Value::kOther;
            op.amount = signed_of_any_size(random, 4 * second);
            return;
        case 5:
            op.value = random.one_in(2) ? Value::kWindowHigh : Value::kWindowLow;
            op.amount = signed_of_any_size(random, second);
            return;
        case 6:
            op.value = Value::kOwn;
            op.amount = std::int64_t{1} << random.between(33, 62);
            return;
        default:
            op.value = Value::kOwn;
            return;
    }
}

void draw_offset(Random& random, const Abilities& abilities, Op& op) {
    constexpr std::array kWays{Value::kOwn, Value::kOther, Value::kOther, Value::kAbsolute};
    op.value = kWays[static_cast<std::size_t>(random.between(0, 3))];
    if (op.value == Value::kAbsolute) {
        // A few values only, so that vCPUs meet.
        op.amount = random.between(0, 2) * (std::int64_t{1} << 42);
        return;
    }
    if (random.one_in(2)) return;
    op.amount = signed_of_any_size(random, std::int64_t{abilities.host_khz} * 4000);
}

/// The same, within KVM's tolerance, at its edge, below and above the host's.
void draw_khz(Random& random, const Abilities& abilities, Op& op) {
    const std::int64_t host = abilities.host_khz;
    const std::int64_t edge = host * 250 / 1'000'000;
    const std::int64_t sign = random.one_in(2) ? -1 : 1;
    op.value = Value::kOwn;
    switch (random.between(0, 5)) {
        case 0:
            op.value = Value::kAbsolute;  // 0 means the host's
            return;
        case 1:
            op.amount = sign * random.between(0, edge - 2);
            return;
        case 2:
            op.amount = sign * (edge + random.between(-1, 2));
            break;
        case 3:
            op.amount = -host / random.between(2, 100);
            return;
        case 4:
            op.amount = host / random.between(1, 100);
            break;
        default:
            return;
    }
    if (op.amount > edge - 2 && !abilities.catches_up) op.amount = 0;
}

void draw_clock(Random& random, Op& op) {
    constexpr std::int64_t kDay = 86'400'000'000'000;
    op.value = random.one_in(3) ? Value::kAbsolute : Value::kOwn;
    op.amount = op.value == Value::kAbsolute ? random.of_any_size(std::int64_t{1} << 62)
                                             : signed_of_any_size(random, 30 * kDay);
}

void draw_amount(Random& random, const Abilities& abilities, Op& op) {
    switch (op.kind) {
        case OpKind::kWriteTsc:
        case OpKind::kGuestWriteTsc:
            return draw_tsc(random, abilities, op);
        case OpKind::kSetOffset:
            return draw_offset(random, abilities, op);
        case OpKind::kWriteAdjust:
        case OpKind::kGuestWriteAdjust:
            op.value = random.one_in(2) ? Value::kOwn : Value::kAbsolute;
            op.amount = signed_of_any_size(random, std::int64_t{1} << 44);
            return;
        case OpKind::kMoveToCpu:
            op.amount = random.between(0, std::int64_t{abilities.cpus} - 1);
            return;
        case OpKind::kSetVmKhz:
        case OpKind::kSetKhz:
            return draw_khz(random, abilities, op);
        case OpKind::kSetClock:
            return draw_clock(random, op);
        case OpKind::kSetClockReal:
            op.amount = signed_of_any_size(random, 3'600'000'000'000);
            return;
        case OpKind::kSystemTime:
        case OpKind::kGuestSystemTime:
            op.off = random.one_in(6);
            op.old_msr = random.one_in(4);
            op.amount = random.one_in(4) ? 1 : 0;  // the other page
            return;
        case OpKind::kWallClock:
        case OpKind::kGuestWallClock:
            op.old_msr = random.one_in(3);
            return;
        case OpKind::kWait:
            op.amount = random.of_any_size(2000);
            return;
        default:
            return;
    }
}

}  // namespace

std::string_view name(OpKind kind) {
    return kNames[static_cast<unsigned>(kind)];
}

bool enters_again(OpKind kind) {
    switch (kind) {
        case OpKind::kGuestWriteTsc:
        case OpKind::kGuestWriteAdjust:
        case OpKind::kGuestSystemTime:
        case OpKind::kGuestWallClock:
        case OpKind::kClockPairing:
            return true;
        default:
            return false;
    }
}

bool enters_guest(OpKind kind) {
    return kind == OpKind::kGuestReadTsc || enters_again(kind);
}

std::string text(const Op& op) {
    const auto value = kValueNames[static_cast<unsigned>(op.value)];
    return fmt::format("{} vcpu={} {}{:+}{}{}", name(op.kind), op.vcpu, value, op.amount,
                       op.old_msr ? " old MSR" : "", op.off ? " off" : "");
}

std::string text(const Act& act) {
    switch (act.kind) {
        case OpKind::kSetClock:
        case OpKind::kHandBack:
        case OpKind::kSetClockReal:
        case OpKind::kSetClockBad:
            return fmt::format("{}: clock {} flags {:#x} realtime {}", name(act.kind),
                               act.clock.clock, act.clock.flags, act.clock.realtime);
        case OpKind::kSystemTime:
        case OpKind::kGuestSystemTime:
        case OpKind::kWallClock:
        case OpKind::kGuestWallClock:
            return fmt::format("vCPU {}: {}: MSR {:#x} = {:#x}", act.vcpu, name(act.kind), act.msr,
                               act.value);
        case OpKind::kCreateVcpu:
            return std::string{name(act.kind)};
        case OpKind::kWait:
            return fmt::format("wait {} us", act.value);
        case OpKind::kMoveToCpu:
            return fmt::format("move to CPU {}", act.value);
        case OpKind::kSetVmKhz:
            return fmt::format("set VM kHz: {}", act.value);
        default:
            return fmt::format("vCPU {}: {}: {:#x}", act.vcpu, name(act.kind), act.value);
    }
}

Sequence draw(std::uint64_t seed, const Abilities& abilities, unsigned ops_max) {
    Random random{seed};
    Sequence sequence;
    sequence.seed = seed;
    sequence.vcpus = static_cast<unsigned>(random.between(1, kVcpusMax));
    const Weights weights = draw_weights(random, abilities);
    // Most guests use their clock from the start.
    const bool pages = !random.one_in(6);
    for (unsigned i = 0; pages && i < sequence.vcpus; ++i) {
        Op op;
        op.kind = OpKind::kSystemTime;
        op.vcpu = static_cast<std::uint8_t>(i);
        sequence.ops.push_back(op);
    }
    if (!random.one_in(4)) {
        for (unsigned i = 0; i < sequence.vcpus; ++i) {
            Op op;
            op.vcpu = static_cast<std::uint8_t>(i);
            sequence.ops.push_back(op);
        }
    }
    const auto ops = random.between(1, ops_max);
    for (std::int64_t i = 0; i < ops; ++i) {
        Op op;
        op.kind = draw_kind(random, weights);
        op.vcpu = static_cast<std::uint8_t>(random.between(0, kVcpusMax - 1));
        draw_amount(random, abilities, op);
        sequence.ops.push_back(op);
    }
    return sequence;
}

}  // namespace continuo::differential
