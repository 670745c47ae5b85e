#include "continuo/kvm/quirk_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

namespace continuo::kvm {

namespace {

using state::Architecture;

constexpr KernelRange kAll{};
constexpr KernelRange kNone{{0, 0}, {0, 0}};

constexpr KernelRange before(std::uint32_t major, std::uint32_t minor) {
    return {{0, 0}, {major, minor}};
}
constexpr KernelRange from(std::uint32_t major, std::uint32_t minor) {
    return {{major, minor}, KernelRange{}.until};
}

constexpr std::array kRows{
    QuirkRow{"no_tsc_offset", Architecture::kX86_64, before(5, 16),
             "A vCPU's TSC offset can be neither read nor written.",
             "KVM_HAS_DEVICE_ATTR of KVM_VCPU_TSC_OFFSET",
             "Writes IA32_TSC by value, in a closed loop (tsc_write_snaps), and reads it back.",
             "kvm_arch_tsc_has_attr()", "tsc_offset", CheckState::kAbsent},
    QuirkRow{"tsc_offset_ignored", Architecture::kX86_64, kNone,
             "The offset's ioctls answer 0 and the guest's TSC does not move.",
             "the guest's RDTSC after the offset was moved by 2^40",
             "Counts the attribute as missing.", "a KVM that is not Linux's own",
             "tsc_offset_honoured"},
    QuirkRow{"tsc_write_ignored", Architecture::kX86_64, kNone,
             "A host's write of IA32_TSC answers 0 and the guest's TSC does not move.",
             "the guest's RDTSC after a write 2^41 ahead",
             "Refuses every plan that would have to move a TSC.", "a KVM that is not Linux's own",
             "tsc_write"},
    QuirkRow{"tsc_sync_on_first_write", Architecture::kX86_64, before(6, 7),
             "The first write of IA32_TSC is discarded where it lies within 1 s of what the vCPU "
             "counts since its creation.",
             "a first write 0.3 s ahead on a new vCPU, and by how much its counter moves",
             "Uses the offset; by value, writes far outside of the window first.",
             "kvm_synchronize_tsc(); user_set_tsc since \"Don't sync user-written TSC against "
             "startup values\"",
             "tsc_first_write", CheckState::kBroken},
    QuirkRow{"tsc_write_snaps", Architecture::kX86_64, kAll,
             "A write of IA32_TSC within 1 s of the last write, of any vCPU, takes the last one's "
             "offset: a difference between vCPUs below 1 s is lost.",
             "two vCPUs restored one after the other with values that are 0.3 s apart",
             "Uses the offset; by value, writes far outside of the window before the first vCPU of "
             "each line, and lets the others of that line snap to it.",
             "kvm_synchronize_tsc()"},
    QuirkRow{"tsc_late_write_skews", Architecture::kX86_64, kAll,
             "The same value written to two vCPUs more than 1 s apart leaves them apart by that "
             "time, and without a masterclock.",
             "two vCPUs given one value, the second 1.2 s after the first",
             "Uses the offset; by value, writes what the line says at the moment of each write.",
             "kvm_synchronize_tsc()"},
    QuirkRow{"tsc_write_of_zero_snaps", Architecture::kX86_64, kAll,
             "A write of 0 to IA32_TSC is not a value: the vCPU takes the offset of the last "
             "write, however far away.",
             "0 written to a vCPU whose neighbour was written 2^40 ticks ahead",
             "Writes 1 instead, and reads back.", "kvm_synchronize_tsc()"},
    QuirkRow{"tsc_khz_refused_sticks", Architecture::kX86_64, kAll,
             "A refused KVM_SET_TSC_KHZ still changes what KVM_GET_TSC_KHZ answers.",
             "half the host's frequency asked of a host that cannot scale",
             "Asks for no frequency that the host cannot give, and puts the old one back.",
             "kvm_set_tsc_khz()"},
    QuirkRow{"no_tsc_adjust", Architecture::kX86_64, before(3, 8),
             "IA32_TSC_ADJUST cannot be written, or the guest does not read what was.",
             "the guest's RDMSR after the host's write",
             "Refuses a guest that has another TSC_ADJUST than 0.", "kvm_set_msr_common()",
             "tsc_adjust"},
    QuirkRow{"no_clock_triple", Architecture::kX86_64, before(5, 16),
             "KVM_GET_CLOCK gives neither host_tsc nor realtime.",
             "flags of KVM_GET_CLOCK, and host_tsc inside the bracket of the call",
             "Takes the middle of the call's bracket, and adds it to the bound.", "get_kvmclock()",
             "clock_triple"},
    QuirkRow{"clock_handed_back_goes_back", Architecture::kX86_64, kAll,
             "KVM_GET_CLOCK's clock handed to KVM_SET_CLOCK without flags sets kvmclock back by "
             "the time between the calls.",
             "both calls at once, and the line before against the line after; median of 31",
             "Sets kvmclock in a closed loop until its line reads right.",
             "kvm_vm_ioctl_set_clock()"},
    QuirkRow{"clock_handed_back_advances", Architecture::kX86_64, from(5, 16),
             "KVM_GET_CLOCK's struct handed to KVM_SET_CLOCK as it is, with KVM_CLOCK_REALTIME, "
             "moves kvmclock forward.",
             "both calls at once, and the line before against the line after; median of 31",
             "Sets kvmclock without flags, in a closed loop until its line reads right.",
             "kvm_vm_ioctl_set_clock()"},
    QuirkRow{"clock_new_vm_unstable", Architecture::kX86_64, kAll,
             "A VM has no masterclock, and KVM_GET_CLOCK no host_tsc, before its first masterclock "
             "update.",
             "KVM_GET_CLOCK of a new VM, before and after settle",
             "Settles before it reads kvmclock back.", "pvclock_update_vm_gtod_copy()"},
    QuirkRow{"masterclock_lost_apart", Architecture::kX86_64, kAll,
             "vCPUs with different offsets have no masterclock: each page has a line of its own, "
             "and the stable bit is gone.",
             "2 vCPUs, one offset moved by 2^40 and back; flags, the pages' bits, kvmclock's step",
             "Writes all offsets before kvmclock, and refuses a destination without a masterclock "
             "for a guest that had one.",
             "kvm_track_tsc_matching(), pvclock_update_vm_gtod_copy()"},
    QuirkRow{"masterclock_needs_every_vcpu", Architecture::kX86_64, kAll,
             "Offsets that are equal again do not bring the masterclock back: every other vCPU "
             "has to be written after the last one that was apart.",
             "the moved vCPU put back alone, then the other one written with what it has",
             "Writes the offset of every vCPU, also where it is right already.",
             "__kvm_synchronize_tsc(), nr_vcpus_matched_tsc"},
    QuirkRow{"masterclock_update_on_every_write", Architecture::kX86_64, before(6, 7),
             "Every write of a TSC or its offset makes the masterclock take a new sample, also "
             "where it changes nothing.",
             "an offset written over itself, and the page's tsc_timestamp after settle",
             "Has the updates carried out (settle) before it sets kvmclock.",
             "kvm_track_tsc_matching(); \"Don't unnecessarily force masterclock update on vCPU "
             "hotplug\""},
    QuirkRow{"masterclock_update_moves_kvmclock", Architecture::kX86_64, kAll,
             "A masterclock update puts kvmclock back onto CLOCK_MONOTONIC_RAW, from which it has "
             "run away at the error of its scale.",
             "kvmclock's line before and after an update that nobody needed, 1 s after the last",
             "Carries the line of the guest's own page, and leaves no update pending.",
             "pvclock_update_vm_gtod_copy()"},
    QuirkRow{"stable_bit_stays_on_guest_write", Architecture::kX86_64, kAll,
             "A guest that writes its own TSC keeps the masterclock and the stable bit, with TSCs "
             "that are apart.",
             "IA32_TSC written in the guest of one vCPU of 2; offset and flags after it",
             "Records the offset of each vCPU and trusts no flag for it.",
             "kvm_set_msr_common(), adjust_tsc_offset_guest()"},
    QuirkRow{"guest_stopped_not_saved", Architecture::kX86_64, kAll,
             "GUEST_STOPPED asked for after the last entry is in no state that can be saved: a "
             "snapshot loses it.",
             "KVM_KVMCLOCK_CTRL, the page at once, and the page after settle",
             "Remembers that it was asked for, and the record carries it.",
             "kvm_set_guest_paused(), pvclock_set_guest_stopped_request"},
    QuirkRow{"no_kvmclock_ctrl", Architecture::kX86_64, before(3, 4),
             "There is no KVM_KVMCLOCK_CTRL.", "the ioctl, and the flag in the page",
             "Tells the guest nothing, and says so.", "kvm_set_guest_paused()", "kvmclock_ctrl"},
    QuirkRow{"thread_change_waits", Architecture::kX86_64, before(6, 13),
             "A vCPU's first KVM_RUN on another thread waits for an RCU grace period.",
             "a vCPU taken to and fro between two threads: the quickest first KVM_RUN of 7 takes "
             "over 1 ms",
             "Has each vCPU's own thread settle it before the resume instant.",
             "kvm_vcpu_ioctl(); \"Protect vCPU's last run PID with rwlock, not RCU\""},
    QuirkRow{"tsc_deadline_not_listed", Architecture::kX86_64, before(6, 14),
             "KVM_GET_SUPPORTED_CPUID does not list the TSC deadline timer that KVM emulates.",
             "CPUID 1 ECX bit 24 of the list, and KVM_CAP_TSC_DEADLINE_TIMER",
             "Goes by the capability.", "kvm_set_cpu_caps()"},
    QuirkRow{"no_counter_offset", Architecture::kArm64, before(6, 4),
             "The guest's counters have no offset to set: the virtual one goes by value, for the "
             "whole VM.",
             "KVM_ARM_SET_COUNTER_OFFSET on a new VM",
             "Writes KVM_REG_ARM_TIMER_CNT by value, in a closed loop, and reads it back.",
             "kvm_vm_ioctl_set_counter_offset()", "counter_offset", CheckState::kAbsent},
    QuirkRow{"physical_counter_fixed",
             Architecture::kArm64,
             before(6, 4),
             "The guest's physical counter is the host's, and nothing moves it.",
             "the guest's CNTPCT_EL0 after the offset was moved",
             "Says so in the plan; a protected KVM does it on later releases too.",
             "timer_set_traps(), __timer_enable_traps()",
             "physical_offset_honoured",
             {},
             true},
    QuirkRow{"counter_write_dropped", Architecture::kArm64, from(6, 4),
             "Once an offset was set, writes of the counter registers answer 0 and change nothing.",
             "the guest's CNTVCT_EL0 after a register was written 2^40 ahead",
             "Sets the offset before the first vCPU, and never mixes the two.",
             "kvm_arm_timer_set_reg()", "counter_write_dropped", CheckState::kWorks},
};

std::optional<std::uint32_t> number(std::string_view& text) {
    std::uint32_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{}) return std::nullopt;
    text.remove_prefix(static_cast<std::size_t>(end - text.data()));
    return value;
}

std::string text(KernelRelease release) {
    return fmt::format("{}.{}", release.major, release.minor);
}

}  // namespace

std::optional<KernelRelease> kernel_release(std::string_view kernel) {
    constexpr std::string_view kName = "Linux ";
    if (kernel.substr(0, kName.size()) == kName) kernel.remove_prefix(kName.size());
    const auto major = number(kernel);
    if (!major || kernel.empty() || kernel.front() != '.') return std::nullopt;
    kernel.remove_prefix(1);
    const auto minor = number(kernel);
    if (!minor) return std::nullopt;
    return KernelRelease{*major, *minor};
}

std::string text(const KernelRange& range) {
    const bool since_ever = range.from == KernelRelease{};
    const bool to_this_day = range.until == KernelRange{}.until;
    if (range.empty()) return "no release";
    if (since_ever && to_this_day) return "all";
    if (since_ever) return "before " + text(range.until);
    if (to_this_day) return "from " + text(range.from);
    return text(range.from) + " to before " + text(range.until);
}

std::span<const QuirkRow> quirk_table() {
    return kRows;
}

std::string markdown(const QuirkRow& row) {
    return fmt::format("| `{}` | {} | {} | {} | {} | {} |", row.id, text(row.kernels), row.what,
                       row.seen_by, row.instead, row.source);
}

const QuirkRow* find_quirk(std::string_view id) {
    const auto rows = quirk_table();
    const auto row = std::find_if(rows.begin(), rows.end(),
                                  [&](const QuirkRow& candidate) { return candidate.id == id; });
    return row == rows.end() ? nullptr : &*row;
}

std::vector<QuirkEffect> quirks_seen_by(const DoctorReport& report) {
    std::vector<QuirkEffect> effects;
    for (const QuirkRow& row : quirk_table())
        for (const DoctorCheck& check : report.checks) {
            if (row.check.empty() || check.id != row.check) continue;
            QuirkEffect effect{row.id, {}, check.evidence, {}, {}};
            if (check.state != CheckState::kNotRun)
                effect.seen = row.check_state ? check.state == *row.check_state
                                              : check.state != CheckState::kWorks;
            effects.push_back(std::move(effect));
        }
    return effects;
}

std::vector<QuirkEffect> see_quirks(const System& system, const DoctorReport& report) {
    std::vector<QuirkEffect> effects;
    for (const QuirkRow& row : quirk_table())
        if (row.architecture == quirk_architecture())
            effects.push_back(see_quirk(system, report, row));
    return effects;
}

std::vector<QuirkFinding> judge_quirks(state::Architecture architecture, std::string_view kernel,
                                       std::span<const QuirkEffect> effects) {
    const auto release = kernel_release(kernel);
    std::vector<QuirkFinding> findings;
    for (const QuirkRow& row : quirk_table()) {
        if (row.architecture != architecture) continue;
        QuirkFinding finding{&row, {}, {row.id, {}, "not looked at", {}, {}}};
        // Of a quirk that no release has, a release says nothing.
        if (release && !row.kernels.empty()) finding.by_release = row.kernels.contains(*release);
        for (const QuirkEffect& effect : effects)
            if (effect.id == row.id) finding.effect = effect;
        findings.push_back(std::move(finding));
    }
    return findings;
}

}  // namespace continuo::kvm
