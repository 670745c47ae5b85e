#include "continuo/kvm/clock_machine.h"

#include <cerrno>

#include "continuo/abi/kvm_clock.h"
#include "continuo/abi/msr.h"
#include "continuo/abi/pvclock.h"
#include "continuo/kvm/counter.h"
#include "continuo/kvm/settle.h"
#include "continuo/time/tsc_scale.h"

namespace continuo::kvm {

namespace {

using abi::pvclock_vcpu_time_info;
using state::ErrorCode;
using time::Count;
using time::GuestCounter;
using time::HostCounter;
using time::Instant;
using time::TscMap;

std::string vcpu_name(std::size_t vcpu) {
    return "vCPU " + std::to_string(vcpu);
}

/// KVM_GET_MSRS answers 0 for the numbers that the guest does not use; a guest uses one of the two.
std::uint64_t used_one(std::uint64_t new_msr, std::uint64_t old_msr) {
    return new_msr != 0 ? new_msr : old_msr;
}

state::Error no_offset(std::size_t vcpu) {
    return {ErrorCode::kUnsupported, vcpu_name(vcpu) + ": KVM_VCPU_TSC_OFFSET",
            "this kernel does not have the attribute (Linux 5.16 has it)", "go by value"};
}

tl::unexpected<state::Error> damaged(std::size_t vcpu, std::string what) {
    return state::fail(ErrorCode::kGuest, vcpu_name(vcpu) + ": pvclock page", std::move(what),
                       "the kernel's own line of kvmclock can be used instead");
}

/// Where the page may be, as KVM takes it: 4-aligned, within one page of memory
/// (kvm_gpc_activate()).
Result<std::uint64_t> page_address(std::size_t vcpu, std::uint64_t msr) {
    const std::uint64_t gpa = abi::system_time_gpa(msr);
    if (gpa % 4 != 0) return damaged(vcpu, "its address is not a multiple of 4");
    if (gpa % kPageSize > kPageSize - sizeof(pvclock_vcpu_time_info))
        return damaged(vcpu, "it crosses a page boundary");
    return gpa;
}

/// What no KVM publishes: kvm_get_time_scale() leaves the top bit of the multiplier set.
Status check_page(std::size_t vcpu, const pvclock_vcpu_time_info& page) {
    if (page.version == 0) return damaged(vcpu, "it was never written");
    if (abi::update_in_progress(page.version))
        return damaged(vcpu, "its version is odd, and nobody is updating it");
    if ((page.tsc_to_system_mul & 0x80000000U) == 0)
        return damaged(vcpu, "its multiplier is one that KVM does not publish");
    return {};
}

}  // namespace

ClockMachine::ClockMachine(Vm& vm, std::span<Vcpu* const> vcpus, GuestMemory& memory,
                           HostClock host, ClockMachineOptions options)
    : vm_{vm},
      vcpus_(vcpus.begin(), vcpus.end()),
      memory_{memory},
      host_{std::move(host)},
      options_{std::move(options)},
      has_offset_(vcpus.size()),
      stopped_(vcpus.size()) {
    for (std::size_t i = 0; i < vcpus_.size(); ++i)
        has_offset_[i] = vcpus_[i]->has_tsc_offset();
}

Result<machine::HostFacts> ClockMachine::host_facts() {
    machine::HostFacts facts;
    facts.architecture = state::Architecture::kX86_64;
    facts.identity = host_.identity;
    facts.counter_frequency = host_.frequency();
    facts.scaling_frac_bits = host_.scaling_frac_bits;
    facts.masterclock = host_.tsc_based();
    facts.quirks = options_.quirks;
    for (const bool has : has_offset_)
        if (!has) facts.quirks |= static_cast<state::Quirks>(state::Quirk::kNoTscOffset);
    return facts;
}

Count<HostCounter> ClockMachine::now() {
    return host_counter();
}

Result<state::Anchor<HostCounter>> ClockMachine::anchor() {
    return tai_anchor(host_.frequency());
}

Status ClockMachine::known(std::size_t vcpu) const {
    if (vcpu < vcpus_.size()) return {};
    return state::fail(ErrorCode::kInvalidArgument, vcpu_name(vcpu),
                       "this machine has " + std::to_string(vcpus_.size()) + " vCPUs");
}

Result<std::uint64_t> ClockMachine::system_time_msr(std::size_t vcpu) const {
    MsrBatch batch;
    batch.add(abi::kMSR_KVM_SYSTEM_TIME_NEW);
    batch.add(abi::kMSR_KVM_SYSTEM_TIME);
    if (auto read = vcpus_[vcpu]->get_msrs(batch); !read) return tl::unexpected(read.error());
    return used_one(batch.data(0), batch.data(1));
}

Result<std::uint64_t> ClockMachine::offset_of(std::size_t vcpu) const {
    if (auto is = known(vcpu); !is) return tl::unexpected(is.error());
    if (!has_offset_[vcpu]) return tl::unexpected(no_offset(vcpu));
    return vcpus_[vcpu]->tsc_offset();
}

TscMap ClockMachine::map_of(std::uint32_t khz, std::uint64_t offset) const {
    // A frequency that the host cannot give is not taken by set_tsc_khz(): the vCPU runs unscaled.
    const auto map = time::kvm_tsc_map(khz, host_.tsc_khz(), host_.scaling_frac_bits);
    return map.value_or(TscMap{0}).with_offset(offset);
}

Result<machine::VcpuClockState> ClockMachine::vcpu_state(std::size_t vcpu) {
    if (auto is = known(vcpu); !is) return tl::unexpected(is.error());
    machine::VcpuClockState clocks;
    const auto khz = vcpus_[vcpu]->tsc_khz();
    if (!khz) return tl::unexpected(khz.error());
    const auto frequency = time::Hz::from_khz(*khz);
    if (!frequency)
        return state::fail(ErrorCode::kKernel, vcpu_name(vcpu) + ": KVM_GET_TSC_KHZ",
                           "the kernel says 0 kHz");
    clocks.frequency = *frequency;
    if (has_offset_[vcpu]) {
        const auto offset = offset_of(vcpu);
        if (!offset) return tl::unexpected(offset.error());
        clocks.map = map_of(*khz, *offset);
    }
    MsrBatch batch;
    batch.add(abi::kMSR_IA32_TSC_ADJUST);
    batch.add(abi::kMSR_KVM_SYSTEM_TIME_NEW);
    batch.add(abi::kMSR_KVM_SYSTEM_TIME);
    if (auto read = vcpus_[vcpu]->get_msrs(batch); !read) return tl::unexpected(read.error());
    clocks.tsc_adjust = static_cast<std::int64_t>(batch.data(0));
    clocks.system_time_msr = used_one(batch.data(1), batch.data(2));
    clocks.guest_stopped_pending = stopped_pending(vcpu, clocks.system_time_msr);
    return clocks;
}

bool ClockMachine::stopped_pending(std::size_t vcpu, std::uint64_t system_time) const {
    if (!abi::system_time_enabled(system_time)) return false;
    const auto page =
        memory_.read_object<pvclock_vcpu_time_info>(abi::system_time_gpa(system_time));
    if (!page) return stopped_[vcpu].asked;
    if ((page->flags & abi::kPVCLOCK_GUEST_STOPPED) != 0) return true;
    // Once KVM has updated the page since, the flag was there; and it is gone because the guest has
    // seen it.
    return stopped_[vcpu].asked && page->version == stopped_[vcpu].version;
}

Result<machine::BracketedTsc> ClockMachine::read_tsc_by_value(std::size_t vcpu) {
    if (auto is = known(vcpu); !is) return tl::unexpected(is.error());
    constexpr int kBrackets = 3;
    std::optional<machine::BracketedTsc> best;
    for (int i = 0; i < kBrackets; ++i) {
        MsrBatch batch;
        batch.add(abi::kMSR_IA32_TSC);
        const auto before = host_counter();
        const auto read = vcpus_[vcpu]->get_msrs(batch);
        const auto after = host_counter();
        if (!read) return tl::unexpected(read.error());
        if (!best || (after - before) < (best->after - best->before))
            best =
                machine::BracketedTsc{before, Count<GuestCounter>::from_raw(batch.data(0)), after};
    }
    return *best;
}

Result<std::optional<time::PvclockLine>> ClockMachine::pvclock_page(std::size_t vcpu) {
    if (auto is = known(vcpu); !is) return tl::unexpected(is.error());
    const auto msr = system_time_msr(vcpu);
    if (!msr) return tl::unexpected(msr.error());
    if (!abi::system_time_enabled(*msr)) return std::optional<time::PvclockLine>{};
    const auto gpa = page_address(vcpu, *msr);
    if (!gpa) return tl::unexpected(gpa.error());
    const auto page = memory_.read_object<pvclock_vcpu_time_info>(*gpa);
    if (!page) return damaged(vcpu, page.error().what);
    if (auto sane = check_page(vcpu, *page); !sane) return tl::unexpected(sane.error());
    const auto line = abi::pvclock_line(*page);
    if (!line) return damaged(vcpu, "its shift is one that KVM does not publish");
    return line;
}

Result<machine::KvmclockReading> ClockMachine::kvmclock() {
    const auto data = vm_.get_clock();
    if (!data) return tl::unexpected(data.error());
    machine::KvmclockReading reading;
    reading.clock = Instant<time::Kvmclock>::from_raw(data->clock);
    if ((data->flags & abi::kKVM_CLOCK_HOST_TSC) != 0)
        reading.host = Count<HostCounter>::from_raw(data->host_tsc);
    if ((data->flags & abi::kKVM_CLOCK_REALTIME) != 0)
        reading.realtime = Instant<time::Realtime>::from_raw(data->realtime);
    reading.stable = (data->flags & abi::kKVM_CLOCK_TSC_STABLE) != 0;
    return reading;
}

Status ClockMachine::set_tsc_khz(std::size_t vcpu, std::uint64_t khz) {
    if (auto is = known(vcpu); !is) return tl::unexpected(is.error());
    const auto before = vcpus_[vcpu]->tsc_khz();
    if (!before) return tl::unexpected(before.error());
    if (*before == khz) return {};
    const auto wanted = static_cast<std::uint32_t>(khz);
    const bool possible =
        wanted == khz && khz != 0 &&
        (host_.scaling_frac_bits || time::within_tsc_tolerance(wanted, host_.tsc_khz()));
    if (!possible)
        return state::fail(ErrorCode::kUnsupported, vcpu_name(vcpu) + ": KVM_SET_TSC_KHZ",
                           std::to_string(khz) + " kHz on a host of " +
                               std::to_string(host_.tsc_khz()) + " kHz that cannot scale",
                           "choose a destination with TSC scaling or the same frequency");
    Status set = vcpus_[vcpu]->set_tsc_khz(wanted);
    if (!set) {
        // The error to report is the first one.
        [[maybe_unused]] const Status back = vcpus_[vcpu]->set_tsc_khz(*before);
        return set;
    }
    const auto after = vcpus_[vcpu]->tsc_khz();
    if (!after) return tl::unexpected(after.error());
    if (*after != wanted)
        return state::fail(
            ErrorCode::kKernel, vcpu_name(vcpu) + ": KVM_SET_TSC_KHZ",
            "reads back " + std::to_string(*after) + " kHz instead of " + std::to_string(wanted));
    return {};
}

Status ClockMachine::set_tsc_adjust(std::size_t vcpu, std::int64_t value) {
    if (auto is = known(vcpu); !is) return tl::unexpected(is.error());
    return vcpus_[vcpu]->set_msr(abi::kMSR_IA32_TSC_ADJUST, static_cast<std::uint64_t>(value));
}

Status ClockMachine::set_tsc_offset(std::size_t vcpu, std::uint64_t offset) {
    if (auto is = known(vcpu); !is) return tl::unexpected(is.error());
    if (!has_offset_[vcpu]) return tl::unexpected(no_offset(vcpu));
    return vcpus_[vcpu]->set_tsc_offset(offset);
}

Result<TscMap> ClockMachine::tsc_map(std::size_t vcpu) {
    const auto offset = offset_of(vcpu);
    if (!offset) return tl::unexpected(offset.error());
    if (!host_.scaling_frac_bits) return TscMap{*offset};  // whatever the frequency
    const auto khz = vcpus_[vcpu]->tsc_khz();
    if (!khz) return tl::unexpected(khz.error());
    return map_of(*khz, *offset);
}

Result<machine::WriteBracket> ClockMachine::write_tsc_by_value(std::size_t vcpu,
                                                               Count<GuestCounter> value) {
    if (auto is = known(vcpu); !is) return tl::unexpected(is.error());
    machine::WriteBracket bracket;
    bracket.before = host_counter();
    const Status written = vcpus_[vcpu]->set_msr(abi::kMSR_IA32_TSC, value.raw());
    bracket.after = host_counter();
    if (!written) return tl::unexpected(written.error());
    return bracket;
}

Status ClockMachine::set_kvmclock(Instant<time::Kvmclock> clock) {
    kvm_clock_data data{};
    data.clock = clock.raw();
    return vm_.set_clock(data);
}

Status ClockMachine::signal_guest_stopped(std::size_t vcpu) {
    if (auto is = known(vcpu); !is) return tl::unexpected(is.error());
    const auto msr = system_time_msr(vcpu);
    if (!msr) return tl::unexpected(msr.error());
    const auto page = memory_.read_object<pvclock_vcpu_time_info>(abi::system_time_gpa(*msr));
    auto done = vcpus_[vcpu]->kvmclock_ctrl();
    if (!done) {
        if (done.error().sys_errno == EINVAL)
            return state::fail(ErrorCode::kGuest, vcpu_name(vcpu) + ": KVM_KVMCLOCK_CTRL",
                               "the guest has no pvclock page to be told in", {}, EINVAL);
        if (done.error().sys_errno == ENOTTY) done.error().code = ErrorCode::kUnsupported;
        return done;
    }
    stopped_[vcpu] = StoppedRequest{true, page ? page->version : 0};
    return {};
}

Status ClockMachine::settle_here() {
    const auto pending = PendingSignal::raise();
    if (!pending) return tl::unexpected(pending.error());
    for (Vcpu* vcpu : vcpus_)
        if (auto settled = settle_vcpu(*vcpu, *pending); !settled) return settled;
    return {};
}

Status ClockMachine::settle() {
    if (!options_.settle_on_its_thread) return settle_here();
    for (std::size_t i = 0; i < vcpus_.size(); ++i)
        if (auto settled = options_.settle_on_its_thread(i); !settled) return settled;
    return {};
}

}  // namespace continuo::kvm
