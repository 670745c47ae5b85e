#include "comparison.h"

#include <fmt/format.h>

#include <utility>

#include "continuo/abi/msr.h"

namespace continuo::differential {

namespace {

std::int64_t nanoseconds(const abi::kvm_clock_pairing& pairing) {
    return pairing.sec * 1'000'000'000 + pairing.nsec;
}

std::uint64_t nanoseconds(const abi::pvclock_wall_clock& wall) {
    return std::uint64_t{wall.sec} * 1'000'000'000 + wall.nsec;
}

bool enters(OpKind kind) {
    return kind == OpKind::kSettle || enters_guest(kind);
}

}  // namespace

void Comparison::equal(std::string_view what, std::uint64_t model, std::uint64_t kernel) {
    ++made_;
    if (model != kernel)
        differences_.push_back(
            {std::string{what}, fmt::format("{:#x}", model), fmt::format("{:#x}", kernel)});
}

bool Comparison::ahead(std::string_view what, std::uint64_t model, std::uint64_t kernel,
                       std::int64_t low, std::int64_t high) {
    ++made_;
    const auto by = static_cast<std::int64_t>(kernel - model);
    if (low <= by && by <= high) return true;
    differences_.push_back({std::string{what}, std::to_string(model),
                            fmt::format("{} ({:+}, allowed {:+} to {:+})", kernel, by, low, high)});
    return false;
}

bool Comparison::entered(unsigned vcpu) const {
    return step_ != nullptr && step_->act.vcpu == vcpu && enters(step_->act.kind);
}

/// Ticks by which the counter of a vCPU that has just caught up may be off: it follows the clock
/// from the instant at which its generation began, and that one was read somewhere in a bracket.
std::uint64_t Comparison::catch_up_error(unsigned vcpu) const {
    if (!account_.catches_up(vcpu) || !entered(vcpu)) return 0;
    const std::uint64_t host_khz = platform_.tsc_khz();
    const std::uint64_t user_khz = account_.vm.kvm().vcpu(vcpu).user_khz;
    const bool stable = account_.vm.kvm().masterclock();
    // The counter catches up to the instant of the sample, and runs at the host's rate from there.
    const std::uint64_t hidden = stable ? account_.sample_width : step_->at.width();
    const std::uint64_t faster_khz = user_khz > host_khz ? user_khz - host_khz : 0;
    const std::uint64_t behind = (hidden / host_khz + 1) * faster_khz;
    const std::uint64_t clock_late = stable ? 0 : step_->at.width();
    const std::uint64_t of_host =
        account_.generation_width + clock_late + platform_.ticks(2 * kReadingErrorNs);
    // In the guest's ticks, which are shorter.
    return behind + of_host * (user_khz / host_khz + 1);
}

/// A line is the raw clock's at its sample and runs at pvclock's scale from there; both rates are
/// within 2^-22 of the counter's. Where the sample is hidden, so is what that makes.
std::int64_t Comparison::line_error() const {
    return kReadingErrorNs + platform_.ns(account_.sample_width) / (1 << 21);
}

void Comparison::compare(const Step& step, const Answer& answer) {
    step_ = &step;
    compare_answer(step, answer);
    compare(step.after);
}

void Comparison::compare(const View& seen) {
    const View model = account_.vm.look();
    equal("vCPUs", model.vcpus, seen.vcpus);
    equal("the VM's kHz", model.vm_khz, seen.vm_khz);
    for (unsigned i = 0; i < std::min(model.vcpus, seen.vcpus); ++i)
        compare_vcpu(i, model.vcpu[i], seen.vcpu[i]);
    compare_wall(model, seen);
    compare_clock(seen);
}

void Comparison::compare_answer(const Step& step, const Answer& answer) {
    equal("errno", static_cast<std::uint64_t>(answer.error),
          static_cast<std::uint64_t>(step.error));
    if (step.act.kind == OpKind::kClockPairing) return compare_pairing(step, answer);
    if (step.act.kind != OpKind::kReadTsc && step.act.kind != OpKind::kGuestReadTsc) return;
    const unsigned vcpu = step.act.vcpu;
    if (!account_.catches_up(vcpu)) return equal("TSC read", answer.value, step.answer);
    const auto width = static_cast<std::int64_t>(step.at.width() + catch_up_error(vcpu));
    ahead("TSC read", answer.value + account_.offset_ahead[vcpu], step.answer, -width, width);
}

void Comparison::compare_pairing(const Step& step, const Answer& answer) {
    equal("hypercall's answer", answer.value, step.answer);
    if (answer.value != 0 || step.answer != 0) return;
    equal("pairing's flags", answer.pairing.flags, step.pairing.flags);
    equal("pairing's TSC", answer.pairing.tsc, step.pairing.tsc);
    const std::int64_t error = platform_.realtime_error_ns(step.at.after);
    ahead("pairing's time", static_cast<std::uint64_t>(nanoseconds(answer.pairing)),
          static_cast<std::uint64_t>(nanoseconds(step.pairing)), -error, error);
}

void Comparison::compare_vcpu(unsigned vcpu, const VcpuView& model, const VcpuView& kernel) {
    const std::uint64_t expected = model.offset + account_.offset_ahead[vcpu];
    const std::string name = fmt::format("vCPU {}: ", vcpu);
    const auto error = static_cast<std::int64_t>(catch_up_error(vcpu));
    if (error == 0)
        equal(name + "offset", expected, kernel.offset);
    else if (ahead(name + "offset", expected, kernel.offset, -error, error))
        account_.offset_ahead[vcpu] = kernel.offset - model.offset;
    equal(name + "kHz", model.khz, kernel.khz);
    if (error != 0 && step_->act.kind == OpKind::kGuestWriteTsc)
        compare_hidden_adjust(vcpu, kernel);
    else
        equal(name + "TSC_ADJUST", model.adjust, kernel.adjust);
    equal(name + "system-time MSR", model.system_time, kernel.system_time);
    for (const bool other : {false, true})
        compare_page(vcpu, other, kernel.pages[other ? 1 : 0]);
}

/// A guest's write of its TSC moves TSC_ADJUST by as much as the counter, and the counter has
/// caught up again since: by how much it was moved is hidden, but for the bracket.
void Comparison::compare_hidden_adjust(unsigned vcpu, const VcpuView& kernel) {
    const auto width = static_cast<std::int64_t>(step_->at.width() + catch_up_error(vcpu));
    ahead(fmt::format("vCPU {}: TSC_ADJUST", vcpu), account_.vm.kvm().vcpu(vcpu).tsc_adjust,
          kernel.adjust, -width, width);
    // A host's write only stores it.
    platform_.now = step_->at.after;
    (void)account_.vm.kvm().host_write_msr(vcpu, abi::kMSR_IA32_TSC_ADJUST, kernel.adjust);
}

void Comparison::compare_page(unsigned vcpu, bool other,
                              const abi::pvclock_vcpu_time_info& kernel) {
    ++made_;
    abi::pvclock_vcpu_time_info& memory = account_.vm.page(vcpu, other);
    const abi::pvclock_vcpu_time_info model = std::exchange(memory, kernel);
    // What was not published is the kernel's own from before.
    if (model == kernel) return;
    const std::string name = fmt::format("vCPU {}: page's ", vcpu);
    const std::size_t differences_before = differences_.size();
    equal(name + "version", model.version, kernel.version);
    equal(name + "flags", model.flags, kernel.flags);
    equal(name + "mul", model.tsc_to_system_mul, kernel.tsc_to_system_mul);
    equal(name + "shift", static_cast<std::uint8_t>(model.tsc_shift),
          static_cast<std::uint8_t>(kernel.tsc_shift));
    const auto error = static_cast<std::int64_t>(catch_up_error(vcpu));
    ahead(name + "tsc_timestamp", model.tsc_timestamp, kernel.tsc_timestamp, -error, error);
    if (differences_.size() != differences_before) return;
    const bool stable = (kernel.flags & abi::kPVCLOCK_TSC_STABLE_BIT) != 0;
    Unknown& line = account_.kvmclock_ns;
    // Without a masterclock the clock is read after the counter.
    std::int64_t late = stable || step_ == nullptr ? 0 : platform_.ns(step_->at.after - entered_);
    // Where the offset has moved since, the page does not show when it was written.
    const std::int64_t early = error == 0 ? 0 : platform_.ns(static_cast<std::uint64_t>(error));
    late += early;
    const bool is = ahead(name + "system_time", model.system_time, kernel.system_time,
                          line.low - line_error() - early, line.high + line_error() + late);
    if (!is || !stable || error != 0) return;
    const auto by = static_cast<std::int64_t>(kernel.system_time - model.system_time);
    line.narrow(by - line_error() + 1, by + line_error() - 1);
}

void Comparison::compare_clock(const View& seen) {
    platform_.now = seen.clock_at.before;
    const abi::kvm_clock_data model = account_.vm.kvm().get_clock();
    equal("KVM_GET_CLOCK's flags", model.flags, seen.clock.flags);
    if (model.flags != seen.clock.flags) return;
    if ((seen.clock.flags & abi::kKVM_CLOCK_HOST_TSC) != 0)
        compare_stable_clock(seen, model);
    else
        compare_unstable_clock(seen);
}

void Comparison::compare_stable_clock(const View& seen, const abi::kvm_clock_data& model) {
    ahead("KVM_GET_CLOCK's host_tsc", model.host_tsc, seen.clock.host_tsc, 0,
          static_cast<std::int64_t>(seen.clock_at.width()));
    platform_.now = seen.clock.host_tsc;
    const abi::kvm_clock_data then = account_.vm.kvm().get_clock();
    const std::int64_t error = platform_.realtime_error_ns(platform_.now);
    ahead("KVM_GET_CLOCK's realtime", then.realtime, seen.clock.realtime, -error, error);
    Unknown& line = account_.kvmclock_ns;
    if (!ahead("KVM_GET_CLOCK's clock", then.clock, seen.clock.clock, line.low - line_error(),
               line.high + line_error()))
        return;
    const auto by = static_cast<std::int64_t>(seen.clock.clock - then.clock);
    line.narrow(by - line_error() + 1, by + line_error() - 1);
}

void Comparison::compare_unstable_clock(const View& seen) {
    platform_.now = seen.clock_at.before;
    const std::uint64_t first = account_.vm.kvm().get_clock().clock;
    platform_.now = seen.clock_at.after;
    const std::uint64_t last = account_.vm.kvm().get_clock().clock;
    const auto width = static_cast<std::int64_t>(last - first);
    Unknown& line = account_.kvmclock_ns;
    if (!ahead("KVM_GET_CLOCK's clock", first, seen.clock.clock, line.low - line_error(),
               line.high + width + line_error()))
        return;
    const auto by = static_cast<std::int64_t>(seen.clock.clock - first);
    line.narrow(by - width - line_error() + 1, by + line_error() - 1);
}

void Comparison::compare_wall(const View& model, const View& seen) {
    ++made_;
    if (model.wall == seen.wall || step_ == nullptr) return;
    equal("wall clock's version", model.wall.version, seen.wall.version);
    const model::KvmVm& vm = account_.vm.kvm();
    const Unknown& line = account_.kvmclock_ns;
    const std::int64_t error = platform_.realtime_error_ns(step_->at.after) + kReadingErrorNs;
    const bool one_read = vm.masterclock() && vm.rules().wall_clock_by_one_read;
    // REALTIME first, kvmclock later.
    const std::int64_t late = one_read ? 0 : platform_.ns(step_->at.width());
    ahead("wall clock", nanoseconds(model.wall), nanoseconds(seen.wall), -line.high - error - late,
          -line.low + error);
    account_.vm.kvm().wall_clock() = seen.wall;
}

}  // namespace continuo::differential
