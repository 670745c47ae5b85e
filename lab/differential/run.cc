// From operations to acts: the numbers that a VMM would have, taken from what it can see.
#include <algorithm>

#include "continuo/abi/msr.h"
#include "subject.h"

namespace continuo::differential {

namespace {

/// What is known at the moment of an operation.
struct Known {
    View view;
    std::uint64_t now = 0;
    std::uint32_t host_khz = 0;
    /// Of the last KVM_GET_CLOCK that had one; far ahead before.
    std::uint64_t realtime = std::uint64_t{1} << 62;

    unsigned own(const Op& op) const { return op.vcpu % view.vcpus; }
    unsigned other(const Op& op) const { return (op.vcpu + 1U) % view.vcpus; }
};

std::uint64_t offset_value(const Op& op, const Known& known) {
    const auto amount = static_cast<std::uint64_t>(op.amount);
    switch (op.value) {
        case Value::kAbsolute:
            return amount;
        case Value::kOther:
            return known.view.vcpu[known.other(op)].offset + amount;
        default:
            return known.view.vcpu[known.own(op)].offset + amount;
    }
}

std::uint64_t tsc_value(const Op& op, const Known& known) {
    const auto amount = static_cast<std::uint64_t>(op.amount);
    const VcpuView& own = known.view.vcpu[known.own(op)];
    const std::uint64_t second = std::uint64_t{own.khz} * 1000;
    switch (op.value) {
        case Value::kAbsolute:
            return amount;
        case Value::kOwn:
            return known.now + own.offset + amount;
        case Value::kOther:
            return known.now + known.view.vcpu[known.other(op)].offset + amount;
        case Value::kWindowHigh:
            return known.now + own.offset + second + amount;
        case Value::kWindowLow:
            return known.now + own.offset - second + amount;
    }
    return amount;
}

abi::kvm_clock_data clock_value(const Op& op, const Known& known) {
    abi::kvm_clock_data data{};
    if (op.kind == OpKind::kHandBack) return known.view.clock;
    data.clock = known.view.clock.clock;
    const auto amount = static_cast<std::uint64_t>(op.amount);
    if (op.kind == OpKind::kSetClockReal) {
        data.flags = abi::kKVM_CLOCK_REALTIME;
        data.realtime = known.realtime - amount;
    } else if (op.kind == OpKind::kSetClockBad) {
        data.flags = 1U << 31;
    } else {
        data.clock = op.value == Value::kAbsolute ? amount : data.clock + amount;
    }
    return data;
}

std::uint32_t msr_of(const Op& op) {
    switch (op.kind) {
        case OpKind::kSystemTime:
        case OpKind::kGuestSystemTime:
            return op.old_msr ? abi::kMSR_KVM_SYSTEM_TIME : abi::kMSR_KVM_SYSTEM_TIME_NEW;
        case OpKind::kWallClock:
        case OpKind::kGuestWallClock:
            return op.old_msr ? abi::kMSR_KVM_WALL_CLOCK : abi::kMSR_KVM_WALL_CLOCK_NEW;
        case OpKind::kWriteAdjust:
        case OpKind::kGuestWriteAdjust:
            return abi::kMSR_IA32_TSC_ADJUST;
        default:
            return abi::kMSR_IA32_TSC;
    }
}

Act resolve(const Op& op, const Known& known) {
    Act act;
    act.kind = op.kind;
    act.vcpu = static_cast<std::uint8_t>(known.own(op));
    act.msr = msr_of(op);
    const auto amount = static_cast<std::uint64_t>(op.amount);
    switch (op.kind) {
        case OpKind::kCreateVcpu:
            act.vcpu = static_cast<std::uint8_t>(known.view.vcpus);
            break;
        case OpKind::kSetOffset:
            act.value = offset_value(op, known);
            break;
        case OpKind::kWriteTsc:
        case OpKind::kGuestWriteTsc:
            act.value = tsc_value(op, known);
            break;
        case OpKind::kWriteAdjust:
        case OpKind::kGuestWriteAdjust:
            act.value = amount + (op.value == Value::kOwn ? known.view.vcpu[act.vcpu].adjust : 0);
            break;
        case OpKind::kSetKhz:
        case OpKind::kSetVmKhz:
            act.value = op.value == Value::kOwn ? known.host_khz + amount : amount;
            break;
        case OpKind::kSystemTime:
        case OpKind::kGuestSystemTime:
            act.value = page_gpa(act.vcpu, op.amount != 0) | (op.off ? 0 : abi::kKVM_MSR_ENABLED);
            break;
        case OpKind::kWallClock:
        case OpKind::kGuestWallClock:
            act.value = kWallGpa;
            break;
        case OpKind::kWait:
        case OpKind::kMoveToCpu:
            act.value = amount;
            break;
        default:
            act.clock = clock_value(op, known);
            break;
    }
    return act;
}

}  // namespace

Result<Trace> run(Subject& subject, const Sequence& sequence) {
    Trace trace;
    trace.realtime = subject.realtime();
    const auto created = subject.create();
    if (!created) return tl::unexpected(created.error());
    trace.created = *created;
    auto first = subject.look();
    if (!first) return tl::unexpected(first.error());
    trace.first = *first;
    Known known;
    known.host_khz = subject.host_khz();
    known.view = trace.first;
    const auto perform = [&](const Act& act) -> Status {
        auto step = subject.perform(act);
        if (!step) return tl::unexpected(step.error());
        known.view = step->after;
        if ((known.view.clock.flags & abi::kKVM_CLOCK_REALTIME) != 0)
            known.realtime = known.view.clock.realtime;
        trace.steps.push_back(std::move(*step));
        return {};
    };
    for (unsigned i = 0; i < sequence.vcpus; ++i) {
        Act act;
        act.kind = OpKind::kCreateVcpu;
        act.vcpu = static_cast<std::uint8_t>(i);
        if (auto done = perform(act); !done) return tl::unexpected(done.error());
    }
    for (const Op& op : sequence.ops) {
        if (op.kind == OpKind::kCreateVcpu && known.view.vcpus == kVcpusMax) continue;
        known.now = subject.now();
        if (auto done = perform(resolve(op, known)); !done) return tl::unexpected(done.error());
    }
    return trace;
}

}  // namespace continuo::differential
