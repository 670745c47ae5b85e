#include "continuo/model/ideal_machine.h"

#include <fmt/format.h>

#include <algorithm>

#include "continuo/time/tsc_scale.h"

namespace continuo::model {

namespace {

using machine::BracketedTsc;
using machine::HostFacts;
using machine::KvmclockReading;
using machine::VcpuClockState;
using machine::WriteBracket;
using state::ErrorCode;

constexpr std::uint64_t kPagesAt = 0x1000;

/// SplitMix64 (Steele, Lea, Flood 2014): one word of state, any seed.
std::uint64_t next_random(std::uint64_t& state) {
    std::uint64_t z = (state += 0x9e3779b97f4a7c15U);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
}

/// The multiplier that a host gives a guest frequency; identity within KVM's tolerance.
std::optional<TscMap> multiplier(const IdealHost& host, std::uint64_t guest_khz) {
    return time::kvm_tsc_map(static_cast<std::uint32_t>(guest_khz),
                             static_cast<std::uint32_t>(host.frequency.floor_khz()),
                             host.scaling_frac_bits);
}

}  // namespace

std::uint64_t IdealHost::step() {
    if (call_ticks_max != 0) counter += next_random(seed) % (call_ticks_max + 1);
    return counter;
}

IdealMachine::IdealMachine(IdealHost& host, std::size_t vcpus, Hz guest) : host_{host} {
    vcpus_.resize(vcpus);
    const TscMap map = multiplier(host, guest.floor_khz()).value_or(TscMap{0});
    const auto created = Count<HostCounter>::from_raw(host.counter);
    for (Vcpu& vcpu : vcpus_) {
        vcpu.frequency = guest;
        vcpu.map = map.through(created, Count<GuestCounter>{});
    }
    kvmclock_anchor_ = created;
}

Status IdealMachine::check(std::size_t vcpu) const {
    if (vcpu < vcpus_.size()) return {};
    return state::fail(ErrorCode::kInvalidArgument, fmt::format("vCPU {}", vcpu),
                       fmt::format("the machine has {}", vcpus_.size()));
}

Result<HostFacts> IdealMachine::host_facts() {
    HostFacts facts;
    facts.architecture = state::Architecture::kX86_64;
    facts.identity = host_.identity;
    facts.counter_frequency = host_.frequency;
    facts.scaling_frac_bits = host_.scaling_frac_bits;
    facts.quirks = host_.quirks;
    return facts;
}

Count<HostCounter> IdealMachine::now() {
    return Count<HostCounter>::from_raw(host_.step());
}

Result<state::Anchor<HostCounter>> IdealMachine::anchor() {
    state::Anchor<HostCounter> anchor;
    anchor.counter = now();
    anchor.frequency = host_.frequency;
    const auto tai = time::clock_line(
        Count<HostCounter>{}, Instant<time::Tai>::from_raw(host_.boot_tai_ns), host_.frequency);
    anchor.tai = tai.at(anchor.counter);
    anchor.tai_bound_ns = host_.tai_bound_ns;
    anchor.tai_offset_sec = 37;
    return anchor;
}

Result<VcpuClockState> IdealMachine::vcpu_state(std::size_t vcpu) {
    if (auto bad = check(vcpu); !bad) return tl::unexpected(bad.error());
    const Vcpu& from = vcpus_[vcpu];
    VcpuClockState out;
    if (!lacks(state::Quirk::kNoTscOffset)) out.map = from.map;
    out.tsc_adjust = from.tsc_adjust;
    out.frequency = from.frequency;
    out.system_time_msr = from.system_time_msr;
    out.guest_stopped_pending = from.guest_stopped;
    return out;
}

Result<BracketedTsc> IdealMachine::read_tsc_by_value(std::size_t vcpu) {
    if (auto bad = check(vcpu); !bad) return tl::unexpected(bad.error());
    BracketedTsc read;
    read.before = now();
    read.value = guest_tsc(vcpu, now());
    read.after = now();
    return read;
}

Result<std::optional<PvclockLine>> IdealMachine::pvclock_page(std::size_t vcpu) {
    if (auto bad = check(vcpu); !bad) return tl::unexpected(bad.error());
    const Vcpu& from = vcpus_[vcpu];
    if ((from.system_time_msr & 1) == 0) return std::optional<PvclockLine>{};
    if (from.page_damaged)
        return state::fail(ErrorCode::kGuest, fmt::format("vCPU {} pvclock page", vcpu),
                           "it holds what KVM never writes");
    return from.page;
}

Result<KvmclockReading> IdealMachine::kvmclock() {
    KvmclockReading reading;
    const Count<HostCounter> at = now();
    reading.clock = host_.clock_counts_host_ticks ? kernel_kvmclock(at) : guest_kvmclock(at);
    if (!lacks(state::Quirk::kNoClockTriple)) reading.host = at;
    reading.stable = stable();
    return reading;
}

Status IdealMachine::set_tsc_khz(std::size_t vcpu, std::uint64_t khz) {
    if (auto bad = check(vcpu); !bad) return bad;
    const auto frequency = Hz::from_khz(khz);
    const auto map = multiplier(host_, khz);
    if (!frequency || !map)
        return state::fail(ErrorCode::kUnsupported, fmt::format("vCPU {} KVM_SET_TSC_KHZ", vcpu),
                           fmt::format("{} kHz cannot be had on this host", khz));
    Vcpu& to = vcpus_[vcpu];
    const Count<HostCounter> at = now();
    to.map = map->through(at, to.map.at(at));
    to.frequency = *frequency;
    return {};
}

Status IdealMachine::set_tsc_adjust(std::size_t vcpu, std::int64_t value) {
    if (auto bad = check(vcpu); !bad) return bad;
    host_.step();
    if (!host_.drops_tsc_adjust) vcpus_[vcpu].tsc_adjust = value;
    return {};
}

Status IdealMachine::set_tsc_offset(std::size_t vcpu, std::uint64_t offset) {
    if (auto bad = check(vcpu); !bad) return bad;
    if (lacks(state::Quirk::kNoTscOffset))
        return state::fail(ErrorCode::kUnsupported,
                           fmt::format("vCPU {} KVM_VCPU_TSC_OFFSET", vcpu),
                           "this host has no such attribute");
    host_.step();
    if (lacks(state::Quirk::kTscOffsetIgnored)) return {};
    TscMap& map = vcpus_[vcpu].map;
    map = map.with_offset(offset);
    return {};
}

Result<TscMap> IdealMachine::tsc_map(std::size_t vcpu) {
    if (auto bad = check(vcpu); !bad) return tl::unexpected(bad.error());
    if (lacks(state::Quirk::kNoTscOffset))
        return state::fail(ErrorCode::kUnsupported,
                           fmt::format("vCPU {} KVM_VCPU_TSC_OFFSET", vcpu),
                           "this host has no such attribute");
    host_.step();
    return vcpus_[vcpu].map;
}

Result<WriteBracket> IdealMachine::write_tsc_by_value(std::size_t vcpu, Count<GuestCounter> value) {
    if (auto bad = check(vcpu); !bad) return tl::unexpected(bad.error());
    WriteBracket bracket;
    bracket.before = now();
    const Count<HostCounter> at = now();
    if (!lacks(state::Quirk::kTscWriteIgnored)) {
        TscMap& map = vcpus_[vcpu].map;
        const bool shares =
            host_.synchronises_writes && last_written_ &&
            (last_written_->at(at) - value).magnitude() < vcpus_[vcpu].frequency.hz();
        map = shares ? *last_written_ : map.through(at, value);
        last_written_ = map;
    }
    bracket.after = now();
    return bracket;
}

Status IdealMachine::set_kvmclock(Instant<Kvmclock> clock) {
    kvmclock_anchor_ = now();
    kvmclock_at_anchor_ = clock;
    return {};
}

Status IdealMachine::signal_guest_stopped(std::size_t vcpu) {
    if (auto bad = check(vcpu); !bad) return bad;
    vcpus_[vcpu].guest_stopped = true;
    return {};
}

Status IdealMachine::settle() {
    publish();
    return {};
}

Count<GuestCounter> IdealMachine::guest_tsc(std::size_t vcpu, Count<HostCounter> at) const {
    return vcpus_[vcpu].map.at(at);
}

PvclockLine IdealMachine::line_of(const Vcpu& vcpu) const {
    const std::uint64_t khz = vcpu.map.wrap_scale(host_.frequency.floor_khz());
    const Hz page = Hz::from_khz(khz).value_or(host_.frequency);
    return PvclockLine{vcpu.map.at(kvmclock_anchor_), kvmclock_at_anchor_,
                       time::PvclockScale::from_hz(page)};
}

Instant<Kvmclock> IdealMachine::guest_kvmclock(Count<HostCounter> at) const {
    const Vcpu& first = vcpus_.front();
    return line_of(first).at(first.map.at(at));
}

Instant<Kvmclock> IdealMachine::kernel_kvmclock(Count<HostCounter> at) const {
    const auto scale = time::PvclockScale::from_hz(host_.frequency);
    const auto ticks = static_cast<std::uint64_t>((at - kvmclock_anchor_).raw());
    const PvclockLine line{Count<GuestCounter>{}, kvmclock_at_anchor_, scale};
    return line.at(Count<GuestCounter>::from_raw(ticks));
}

bool IdealMachine::stable() const {
    return std::all_of(vcpus_.begin(), vcpus_.end(),
                       [&](const Vcpu& vcpu) { return vcpu.map == vcpus_.front().map; });
}

void IdealMachine::publish() {
    for (Vcpu& vcpu : vcpus_)
        if ((vcpu.system_time_msr & 1) != 0) vcpu.page = line_of(vcpu);
}

void IdealMachine::enable_kvmclock() {
    for (std::size_t i = 0; i < vcpus_.size(); ++i)
        vcpus_[i].system_time_msr = (kPagesAt + 64 * i) | 1U;
    publish();
}

}  // namespace continuo::model
