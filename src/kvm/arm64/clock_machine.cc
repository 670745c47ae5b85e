#include "continuo/kvm/clock_machine.h"

#include <fmt/format.h>

#include <algorithm>

#include "continuo/abi/arm64.h"
#include "continuo/kvm/counter.h"

namespace continuo::kvm {

namespace {

using machine::BracketedTsc;
using machine::WriteBracket;
using state::ErrorCode;
using time::Count;
using time::GuestCounter;
using time::HostCounter;
using time::TscMap;

std::string vcpu_name(std::size_t vcpu) {
    return "vCPU " + std::to_string(vcpu);
}

tl::unexpected<state::Error> of_x86(std::string where) {
    return state::fail(ErrorCode::kUnsupported, std::move(where), "arm64 has none");
}

std::int64_t difference(std::uint64_t a, std::uint64_t b) {
    return static_cast<std::int64_t>(a - b);
}

bool inside(const TscMap& map, const BracketedTsc& read) {
    return (read.value - map.at(read.before)).raw() >= 0 &&
           (map.at(read.after) - read.value).raw() >= 0;
}

}  // namespace

ClockMachine::ClockMachine(Vm& vm, std::span<Vcpu* const> vcpus, GuestMemory&, HostClock host,
                           ClockMachineOptions options)
    : vm_{vm},
      vcpus_(vcpus.begin(), vcpus.end()),
      host_{std::move(host)},
      options_{std::move(options)},
      has_physical_{!vcpus_.empty() && vcpus_.front()->one_reg(abi::kKVM_REG_ARM_PTIMER_CNT)},
      in_round_(vcpus.size()) {}

Result<machine::HostFacts> ClockMachine::host_facts() {
    machine::HostFacts facts;
    facts.architecture = state::Architecture::kArm64;
    facts.identity = host_.identity;
    facts.counter_frequency = host_.frequency();
    facts.masterclock = false;  // of kvmclock, which arm64 does not have
    facts.quirks = options_.quirks;
    const auto add = [&](state::Quirk quirk) { facts.quirks |= static_cast<state::Quirks>(quirk); };
    if (by_value()) {
        add(state::Quirk::kNoTscOffset);
        add(state::Quirk::kPhysicalCounterFixed);
    } else {
        add(state::Quirk::kTscWriteIgnored);  // from the first offset on
    }
    return facts;
}

Count<HostCounter> ClockMachine::now() {
    return host_counter();
}

Result<state::Anchor<HostCounter>> ClockMachine::anchor() {
    round_.reset();
    return tai_anchor(host_.frequency());
}

Status ClockMachine::known(std::size_t vcpu) const {
    if (vcpu < vcpus_.size()) return {};
    return state::fail(ErrorCode::kInvalidArgument, vcpu_name(vcpu),
                       "this machine has " + std::to_string(vcpus_.size()) + " vCPUs");
}

Result<BracketedTsc> ClockMachine::read_register(std::size_t vcpu, std::uint64_t id) const {
    const auto before = host_counter();
    const auto read = vcpus_[vcpu]->one_reg(id);
    const auto after = host_counter();
    if (!read) return tl::unexpected(read.error());
    return BracketedTsc{before, Count<GuestCounter>::from_raw(*read), after};
}

Status ClockMachine::confirm(std::size_t vcpu) const {
    const auto look = [&](std::uint64_t id, const char* name) -> Status {
        const auto read = read_register(vcpu, id);
        if (!read) return tl::unexpected(read.error());
        if (inside(owned_map(), *read)) return {};
        return state::fail(
            ErrorCode::kKernel, vcpu_name(vcpu) + ": " + name,
            fmt::format("it is {} ticks off the offset that was set, in a bracket of {}",
                        (read->value - owned_map().at(read->before)).raw(),
                        (read->after - read->before).magnitude()),
            "This host does not honour counter offsets: run `continuo doctor` and plan with its "
            "quirks");
    };
    if (auto seen = look(abi::kKVM_REG_ARM_TIMER_CNT, "CNTVCT"); !seen) return seen;
    if (!has_physical_) return {};
    return look(abi::kKVM_REG_ARM_PTIMER_CNT, "CNTPCT");
}

Result<TscMap> ClockMachine::tsc_map(std::size_t vcpu) {
    if (auto is = known(vcpu); !is) return tl::unexpected(is.error());
    if (by_value()) {
        const auto& why = vm_.why_no_offset();
        if (why) return tl::unexpected(*why);
        return state::fail(ErrorCode::kUnsupported, vcpu_name(vcpu) + ": counter offset",
                           "this VM's counter is the kernel's, and no call reads its offset",
                           "create the VM with CounterOwner::kUs");
    }
    if (auto confirmed = confirm(vcpu); !confirmed) return tl::unexpected(confirmed.error());
    return owned_map();
}

Result<machine::VcpuClockState> ClockMachine::vcpu_state(std::size_t vcpu) {
    if (auto is = known(vcpu); !is) return tl::unexpected(is.error());
    machine::VcpuClockState clocks;
    clocks.frequency = host_.frequency();
    if (by_value()) return clocks;
    const auto map = tsc_map(vcpu);
    if (!map) return tl::unexpected(map.error());
    clocks.map = *map;
    return clocks;
}

Result<BracketedTsc> ClockMachine::read_tsc_by_value(std::size_t vcpu) {
    if (auto is = known(vcpu); !is) return tl::unexpected(is.error());
    constexpr int kBrackets = 3;
    auto best = read_register(vcpu, abi::kKVM_REG_ARM_TIMER_CNT);
    for (int i = 1; best && i < kBrackets; ++i) {
        auto next = read_register(vcpu, abi::kKVM_REG_ARM_TIMER_CNT);
        if (!next || next->after - next->before < best->after - best->before)
            best = std::move(next);
    }
    return best;
}

void ClockMachine::open_round(std::size_t vcpu, std::uint64_t offset) {
    round_ = Round{vcpu, offset, {}};
    std::fill(in_round_.begin(), in_round_.end(), false);
    in_round_[vcpu] = true;
}

tl::unexpected<state::Error> ClockMachine::disagree(std::size_t vcpu, std::uint64_t offset) const {
    return state::fail(
        ErrorCode::kInvalidArgument,
        vcpu_name(round_->first_vcpu) + " and " + vcpu_name(vcpu) + ": counter offset",
        fmt::format("they are to be {} ticks apart, and KVM on arm64 has one offset for all vCPUs",
                    difference(offset, round_->offset)),
        "Give all vCPUs of the record one counter, or choose which one is right");
}

Status ClockMachine::set_tsc_offset(std::size_t vcpu, std::uint64_t offset) {
    if (auto is = known(vcpu); !is) return is;
    if (continues_round(vcpu)) {
        if (round_->offset != offset) return disagree(vcpu, offset);
        in_round_[vcpu] = true;
        return {};
    }
    if (auto set = vm_.set_counter_offset(0 - offset); !set) return set;
    open_round(vcpu, offset);
    return {};
}

Result<WriteBracket> ClockMachine::write_tsc_by_value(std::size_t vcpu, Count<GuestCounter> value) {
    if (auto is = known(vcpu); !is) return tl::unexpected(is.error());
    if (!by_value())
        return state::fail(ErrorCode::kUnsupported, vcpu_name(vcpu) + ": KVM_REG_ARM_TIMER_CNT",
                           "the kernel drops such writes once an offset was set",
                           "Set the offset instead");
    WriteBracket bracket{host_counter(), {}};
    const std::uint64_t offset = value.raw() - bracket.before.raw();
    if (continues_round(vcpu)) {
        // Of one line, the later writes are the first one's value and the time since, give or take
        // what either was led by to make up for the call.
        const std::uint64_t since = (bracket.before - round_->bracket.before).magnitude();
        const std::uint64_t slack = host_.frequency().hz();
        const std::int64_t apart = difference(offset, round_->offset);
        if (static_cast<std::uint64_t>(apart < 0 ? -apart : apart) > since + slack)
            return disagree(vcpu, offset);
        in_round_[vcpu] = true;
        return round_->bracket;
    }
    const auto written = vcpus_[vcpu]->set_one_reg(abi::kKVM_REG_ARM_TIMER_CNT, value.raw());
    bracket.after = host_counter();
    if (!written) return tl::unexpected(written.error());
    open_round(vcpu, offset);
    round_->bracket = bracket;
    return bracket;
}

Status ClockMachine::set_tsc_khz(std::size_t vcpu, std::uint64_t khz) {
    if (auto is = known(vcpu); !is) return is;
    if (khz == host_.frequency().floor_khz()) return {};
    return state::fail(ErrorCode::kUnsupported, vcpu_name(vcpu) + ": CNTFRQ",
                       fmt::format("{} kHz on a host of {} Hz, and nothing scales the counter", khz,
                                   host_.frequency().hz()),
                       "choose a destination of the same CNTFRQ");
}

Status ClockMachine::settle() {
    if (!options_.settle_on_its_thread) return {};
    for (std::size_t i = 0; i < vcpus_.size(); ++i)
        if (auto settled = options_.settle_on_its_thread(i); !settled) return settled;
    return {};
}

Result<std::optional<time::PvclockLine>> ClockMachine::pvclock_page(std::size_t vcpu) {
    if (auto is = known(vcpu); !is) return tl::unexpected(is.error());
    return std::optional<time::PvclockLine>{};
}

Result<machine::KvmclockReading> ClockMachine::kvmclock() {
    return of_x86("kvmclock");
}

Status ClockMachine::set_kvmclock(time::Instant<time::Kvmclock>) {
    return of_x86("kvmclock");
}

Status ClockMachine::set_tsc_adjust(std::size_t vcpu, std::int64_t) {
    return of_x86(vcpu_name(vcpu) + ": IA32_TSC_ADJUST");
}

Status ClockMachine::signal_guest_stopped(std::size_t vcpu) {
    return of_x86(vcpu_name(vcpu) + ": GUEST_STOPPED");
}

}  // namespace continuo::kvm
