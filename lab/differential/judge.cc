#include "judge.h"

#include <fmt/format.h>

#include <set>
#include <tuple>
#include <utility>

#include "comparison.h"
#include "continuo/abi/msr.h"
#include "hypothesis.h"

namespace continuo::differential {

namespace {

/// A work item's delay counts from the last tick, which on an emulated host can be late itself (13
/// ms seen); and it is late by whatever keeps it waiting.
constexpr std::int64_t kWorkEarlyNs = 50'000'000;
constexpr std::int64_t kWorkDelayNs = 100'000'000;
constexpr std::int64_t kWorkLateNs = 100'000'000;
constexpr unsigned kMoreEntriesMax = 10'000;

/// KVM's delayed work, which asks for all pages to be written again.
/// The last two are interrupts without it, which matter to a vCPU that always catches up.
enum class WorkRan : std::uint8_t {
    kNo,
    kBefore,
    kInGuest,
    kBeforeEnteringAgain,
    kAfterwards,
    kOnlyInterrupted,
    kOnlyInterruptedAfterwards,
};

/// The instants at which one act is tried.
struct Instants {
    std::uint64_t act = 0;
    std::uint64_t enter = 0;
    std::uint64_t enter_again = 0;
    std::uint64_t clock_late = 0;  ///< the act's clock after its counter
    bool pinned = true;            ///< the act's
    WorkRan work = WorkRan::kNo;
};

bool sets_clock(OpKind kind) {
    return kind == OpKind::kSetClock || kind == OpKind::kHandBack ||
           kind == OpKind::kSetClockReal || kind == OpKind::kSetClockBad;
}

bool writes_offset(OpKind kind) {
    return kind == OpKind::kCreateVcpu || kind == OpKind::kSetOffset || kind == OpKind::kWriteTsc;
}

std::string pages_text(const VcpuView& vcpu) {
    std::string out;
    for (const abi::pvclock_vcpu_time_info& page : vcpu.pages)
        if (page.version != 0)
            out += fmt::format("{}v{} flags {} tsc {} time {}", out.empty() ? "" : "; ",
                               page.version, page.flags, page.tsc_timestamp, page.system_time);
    return out.empty() ? "none" : out;
}

std::uint64_t middle(const Bracket& at) {
    return at.before + at.width() / 2;
}

class Judge {
  public:
    Judge(const Trace& trace, const model::KernelRules& rules, const HostFacts& host,
          std::vector<std::string>* story)
        : trace_{trace}, rules_{rules}, host_{host}, platform_{host}, story_{story} {}

    Verdict run();

  private:
    using Choices = std::vector<Instants>;

    void collect_cycles();
    std::vector<std::uint64_t> cycles_in(const Bracket& at) const;
    bool may_mislead(const Bracket& at) const;
    const View& before(std::size_t k) const {
        return k == 0 ? trace_.first : trace_.steps[k - 1].after;
    }
    Choices choices(std::size_t k) const;
    std::vector<std::uint64_t> act_instants(std::size_t k, bool& pinned) const;

    void judge_step(std::size_t k);
    std::vector<WorkRan> work_choices(const Hypothesis& from, const Step& step);
    Answer perform(Hypothesis& next, const Step& step, const Instants& at, Detours detours);
    Answer perform_all_entries(Hypothesis& next, const Step& step, const Instants& at);
    void learn_what_is_hidden(Hypothesis& next, const Hypothesis& from, const Step& step,
                              const Instants& at);
    void thin();
    void anchor_realtime(const View& view);
    void tell(std::size_t k, Hypothesis& one);

    const Trace& trace_;
    const model::KernelRules& rules_;
    const HostFacts& host_;
    PinnedPlatform platform_;
    std::vector<std::string>* story_;
    std::set<std::uint64_t> cycles_;
    bool catches_up_ = false;           ///< some vCPU of the trace does
    std::set<std::uint64_t> doubtful_;  ///< those of them of which an offset is not sure
    std::vector<Hypothesis> alive_;
    Verdict verdict_;
};

/// Host counter values that pages give away: a page's sample, whenever it is published, was taken
/// inside of the bracket of the act that took it, and brackets do not overlap.
void Judge::collect_cycles() {
    for (std::size_t k = 0; k < trace_.steps.size(); ++k) {
        const Act& act = trace_.steps[k].act;
        catches_up_ = catches_up_ || (act.kind == OpKind::kSetKhz && act.value > host_.khz);
        const View& old = before(k);
        const View& now = trace_.steps[k].after;
        const bool guest_moves_tsc = trace_.steps[k].act.kind == OpKind::kGuestWriteTsc;
        for (unsigned i = 0; i < now.vcpus; ++i) {
            for (std::size_t other = 0; other < 2; ++other) {
                const abi::pvclock_vcpu_time_info& page = now.vcpu[i].pages[other];
                if (page == old.vcpu[i].pages[other]) continue;
                cycles_.insert(page.tsc_timestamp - now.vcpu[i].offset);
                if (!guest_moves_tsc) continue;
                // Published on the way in, before the guest moved its TSC, or after it.
                cycles_.insert(page.tsc_timestamp - old.vcpu[i].offset);
                doubtful_.insert(page.tsc_timestamp - old.vcpu[i].offset);
                doubtful_.insert(page.tsc_timestamp - now.vcpu[i].offset);
            }
        }
    }
}

std::vector<std::uint64_t> Judge::cycles_in(const Bracket& at) const {
    return {cycles_.lower_bound(at.before), cycles_.upper_bound(at.after)};
}

/// Whether the samples that pages show in this bracket may be something else, or none.
bool Judge::may_mislead(const Bracket& at) const {
    const auto first = cycles_.lower_bound(at.before);
    const auto last = cycles_.upper_bound(at.after);
    return first == last || std::any_of(first, last, [&](std::uint64_t cycle) {
               return doubtful_.count(cycle) != 0;
           });
}

std::vector<std::uint64_t> Judge::act_instants(std::size_t k, bool& pinned) const {
    const Step& step = trace_.steps[k];
    const VcpuView& now = step.after.vcpu[step.act.vcpu];
    pinned = true;
    std::optional<std::uint64_t> shown;
    switch (step.act.kind) {
        case OpKind::kCreateVcpu:
            shown = 0 - now.offset;
            break;
        case OpKind::kWriteTsc:
        case OpKind::kGuestWriteTsc:
            shown = step.act.value - now.offset;
            break;
        case OpKind::kReadTsc:
        case OpKind::kGuestReadTsc:
            shown = step.answer - now.offset;
            break;
        case OpKind::kClockPairing:
            shown = step.pairing.tsc - now.offset;
            break;
        default:
            pinned = false;
            return {middle(step.at)};
    }
    if (step.at.has(*shown)) return {*shown};
    pinned = false;
    return {step.at.before, middle(step.at), step.at.after};
}

Judge::Choices Judge::choices(std::size_t k) const {
    const Bracket& bracket = trace_.steps[k].at;
    auto enters = cycles_in(bracket);
    Choices all;
    if (sets_clock(trace_.steps[k].act.kind)) {
        for (const std::uint64_t cycle : enters)
            all.push_back({cycle, cycle, cycle, 0, true, {}});
        if (may_mislead(bracket))
            all.push_back({middle(bracket), middle(bracket), middle(bracket), 0, false, {}});
        return all;
    }
    const bool hidden = enters.empty();
    if (may_mislead(bracket)) enters.push_back(middle(bracket));
    if (catches_up_ && hidden) {
        // A counter catches up only where it was not below 0 at the sample.
        enters = {bracket.before, enters.front(), bracket.after};
    }
    bool pinned = false;
    const auto acts = act_instants(k, pinned);
    for (const std::uint64_t act : acts)
        for (const std::uint64_t enter : enters)
            for (const std::uint64_t again : enters)
                if (again >= enter) all.push_back({act, enter, again, 0, pinned, {}});
    // What the guest does it does between the entries.
    for (Instants& at : all)
        if (!at.pinned && enters_again(trace_.steps[k].act.kind))
            at.act = std::clamp(at.act, at.enter, at.enter_again);
    if (!writes_offset(trace_.steps[k].act.kind)) return all;
    // KVM reads the counter first and its clock after it (kvm_synchronize_tsc()).
    const std::uint64_t after = trace_.steps[k].at.after;
    for (std::size_t i = 0, count = all.size(); i < count; ++i) {
        all.push_back(all[i]);
        all.back().clock_late = after - all[i].act;
    }
    return all;
}

/// Whether a work item of the kernel's ran in this act, and before what.
std::vector<WorkRan> Judge::work_choices(const Hypothesis& from, const Step& step) {
    const auto due = from.vm.kvm().next_work_ns();
    const std::int64_t now_ns = platform_.base_ns(step.at.after);
    const bool is_due = due && now_ns >= *due - kWorkEarlyNs;
    // An act so long that a work item comes in it that it has asked for itself.
    const bool is_long = platform_.ns(step.at.width()) >= kWorkDelayNs - kWorkEarlyNs;
    std::vector<WorkRan> choices;
    const model::KvmVm& vm = from.vm.kvm();
    if (enters_guest(step.act.kind) && vm.vcpu(step.act.vcpu).tsc_always_catchup)
        choices = {WorkRan::kOnlyInterrupted, WorkRan::kOnlyInterruptedAfterwards};
    if (!is_due && !is_long) {
        choices.push_back(WorkRan::kNo);
        return choices;
    }
    if (is_due) choices.push_back(WorkRan::kBefore);
    if (enters_again(step.act.kind)) choices.push_back(WorkRan::kBeforeEnteringAgain);
    if (enters_again(step.act.kind)) choices.push_back(WorkRan::kAfterwards);
    if (enters_guest(step.act.kind)) choices.push_back(WorkRan::kInGuest);
    if (!is_due || now_ns <= *due + kWorkLateNs) choices.push_back(WorkRan::kNo);
    return choices;
}

/// The phase before which a work item ran.
std::optional<Phase> phase_of(WorkRan work) {
    switch (work) {
        case WorkRan::kInGuest:
            return Phase::kDetour;
        case WorkRan::kBeforeEnteringAgain:
            return Phase::kEnterAgain;
        case WorkRan::kAfterwards:
            return Phase::kDetourAfter;
        default:
            return std::nullopt;
    }
}

/// Of publications that follow one another in one page only the last is seen.
std::uint64_t instant_of(Phase phase, const Instants& at, OpKind kind) {
    switch (phase) {
        case Phase::kAct:
            return at.act;
        case Phase::kEnter:
            return at.enter;
        case Phase::kDetour:
            return enters_again(kind) ? at.enter : at.enter_again;
        default:
            return at.enter_again;
    }
}

Answer Judge::perform(Hypothesis& next, const Step& step, const Instants& at, Detours detours) {
    const std::int64_t now_ns = platform_.base_ns(step.at.after);
    const auto run_work = [&] {
        model::KvmVm& vm = next.vm.kvm();
        if (const auto due = vm.next_work_ns()) vm.run_work(std::max(*due, now_ns));
    };
    if (at.work == WorkRan::kBefore) run_work();
    auto waits_for = phase_of(at.work);
    if (at.work == WorkRan::kInGuest || at.work == WorkRan::kOnlyInterrupted) ++detours.before;
    if (at.work == WorkRan::kAfterwards || at.work == WorkRan::kOnlyInterruptedAfterwards)
        ++detours.after;
    const Moment moment = [&](Phase phase) {
        if (phase == waits_for) {
            waits_for.reset();
            run_work();
        }
        platform_.now = instant_of(phase, at, step.act.kind);
        platform_.clock_late = phase == Phase::kAct ? at.clock_late : 0;
    };
    return next.vm.perform(step.act, moment, detours);
}

/// Publications of a page that the model has not made.
unsigned missing(Hypothesis& next, const Step& step, std::uint64_t msr) {
    const unsigned v = step.act.vcpu;
    const bool other = abi::system_time_gpa(msr) == page_gpa(v, true);
    const std::uint32_t seen = step.after.vcpu[v].pages[other ? 1 : 0].version;
    const std::uint32_t more = (seen - next.vm.page(v, other).version) / 2;
    return more > kMoreEntriesMax ? 0 : more;
}

/// A vCPU that always catches up publishes at every entry, and interrupts make more of them.
Answer Judge::perform_all_entries(Hypothesis& next, const Step& step, const Instants& at) {
    const unsigned v = step.act.vcpu;
    Hypothesis again = next;
    const Answer answer = perform(next, step, at, {});
    if (!enters_guest(step.act.kind) || !next.vm.kvm().vcpu(v).tsc_always_catchup) return answer;
    const std::uint64_t msr_before = again.vm.kvm().vcpu(v).system_time_msr;
    const std::uint64_t msr = next.vm.kvm().vcpu(v).system_time_msr;
    const bool moved = abi::system_time_gpa(msr_before) != abi::system_time_gpa(msr);
    const Detours detours{moved ? missing(next, step, msr_before) : 0, missing(next, step, msr)};
    if (detours.before == 0 && detours.after == 0) return answer;
    next = std::move(again);
    return perform(next, step, at, detours);
}

void Judge::learn_what_is_hidden(Hypothesis& next, const Hypothesis& from, const Step& step,
                                 const Instants& at) {
    const model::KvmVm& vm = next.vm.kvm();
    if (vm.generation() != from.vm.kvm().generation()) next.generation_width = step.at.width();
    if (vm.arch().master_cycle_now != from.vm.kvm().arch().master_cycle_now)
        next.sample_width = step.at.width();
    if (writes_offset(step.act.kind) || step.act.kind == OpKind::kGuestWriteTsc)
        next.offset_ahead[step.act.vcpu] = 0;
    if (!sets_clock(step.act.kind) || step.error != 0) return;
    const bool exact = vm.masterclock() && at.pinned;
    const std::int64_t width = exact ? 0 : platform_.ns(step.at.width());
    next.kvmclock_ns = {-width, width};
    if ((step.act.clock.flags & abi::kKVM_CLOCK_REALTIME) == 0) return;
    // REALTIME is read after the sample.
    const std::int64_t error = platform_.realtime_error_ns(at.act);
    next.kvmclock_ns.low -= error;
    next.kvmclock_ns.high += error + platform_.ns(step.at.after - at.act);
}

auto discrete(const Hypothesis& one) {
    const model::KvmVm& vm = one.vm.kvm();
    std::uint64_t requests = 0;
    for (unsigned i = 0; i < vm.vcpu_count(); ++i)
        requests = requests << 8 | vm.pending(i);
    return std::tuple{vm.generation(), vm.arch().nr_vcpus_matched_tsc, vm.masterclock(), requests,
                      vm.next_work_ns().has_value()};
}

/// Accounts that differ only in what is hidden: the outermost ones stand for all between.
void Judge::thin() {
    std::vector<Hypothesis> kept;
    const auto pinned = [](const Hypothesis& one) {
        return std::pair{one.vm.kvm().arch().master_cycle_now, one.vm.kvm().next_work_ns()};
    };
    const auto last_write = [](const Hypothesis& one) { return one.vm.kvm().arch().last_tsc_nsec; };
    for (Hypothesis& one : alive_) {
        Hypothesis* low = nullptr;
        Hypothesis* high = nullptr;
        for (Hypothesis& other : kept) {
            if (discrete(other) != discrete(one) || pinned(other) != pinned(one)) continue;
            if (low == nullptr || last_write(other) < last_write(*low)) low = &other;
            if (high == nullptr || last_write(other) > last_write(*high)) high = &other;
        }
        if (low == nullptr) {
            kept.push_back(std::move(one));
        } else if (low == high) {
            if (last_write(one) != last_write(*low)) kept.push_back(std::move(one));
        } else if (last_write(one) < last_write(*low)) {
            *low = std::move(one);
        } else if (last_write(one) > last_write(*high)) {
            *high = std::move(one);
        }
    }
    alive_ = std::move(kept);
}

void Judge::anchor_realtime(const View& view) {
    if ((view.clock.flags & abi::kKVM_CLOCK_REALTIME) == 0) return;
    platform_.anchor_realtime(view.clock.host_tsc, static_cast<std::int64_t>(view.clock.realtime),
                              0);
}

void Judge::tell(std::size_t k, Hypothesis& one) {
    if (story_ == nullptr) return;
    const Step& step = trace_.steps[k];
    const View model = one.vm.look();
    story_->push_back(fmt::format("{:>3}  {}{}", k, text(step.act),
                                  step.error != 0 ? fmt::format("  errno {}", step.error) : ""));
    const auto work = one.vm.kvm().next_work_ns();
    const std::string due = work ? fmt::format(", work due at {}", *work) : "";
    story_->push_back(fmt::format(
        "     clock {} flags {:#x}; model: generation {}, matched {} of {}, "
        "masterclock {}{}; raw clock {}",
        step.after.clock.clock, step.after.clock.flags, one.vm.kvm().generation(),
        one.vm.kvm().arch().nr_vcpus_matched_tsc + 1, model.vcpus,
        one.vm.kvm().masterclock() ? "on" : "off", due, platform_.base_ns(step.at.after)));
    for (unsigned i = 0; i < model.vcpus; ++i) {
        const VcpuView& kernel = step.after.vcpu[i];
        story_->push_back(fmt::format(
            "     vCPU {}: offset {:#x} (model {:#x}), page {} (model {}), requests {:#x}", i,
            kernel.offset, model.vcpu[i].offset, pages_text(kernel), pages_text(model.vcpu[i]),
            one.vm.kvm().pending(i)));
    }
}

void Judge::judge_step(std::size_t k) {
    const Step& step = trace_.steps[k];
    const Choices tried = choices(k);
    std::vector<Hypothesis> survivors;
    std::vector<Difference> nearest;
    std::optional<Hypothesis> nearest_account;
    std::uint64_t comparisons = 0;
    std::set<decltype(discrete(alive_.front()))> outcomes;
    for (const Hypothesis& from : alive_) {
        for (const WorkRan work : work_choices(from, step)) {
            for (Instants at : tried) {
                at.work = work;
                Hypothesis next = from;
                const Answer answer = perform_all_entries(next, step, at);
                learn_what_is_hidden(next, from, step, at);
                platform_.clock_late = 0;
                outcomes.insert(discrete(next));
                Comparison comparison{platform_, next, at.enter};
                comparison.compare(step, answer);
                comparisons = std::max(comparisons, comparison.made());
                if (comparison.differences().empty()) {
                    survivors.push_back(std::move(next));
                } else if (nearest.empty() || comparison.differences().size() < nearest.size()) {
                    nearest = comparison.differences();
                    nearest_account = std::move(next);
                }
            }
        }
    }
    verdict_.comparisons += comparisons;
    ++(tried.front().pinned ? verdict_.pinned : verdict_.hidden);
    if (outcomes.size() > 1) ++verdict_.ambiguous;
    if (survivors.empty()) {
        verdict_.mismatch = Mismatch{k, std::move(nearest)};
        tell(k, *nearest_account);
        return;
    }
    alive_ = std::move(survivors);
    thin();
    anchor_realtime(step.after);
    tell(k, alive_.front());
}

Verdict Judge::run() {
    collect_cycles();
    const RealtimeAnchor& real = trace_.realtime;
    platform_.anchor_realtime(middle(real.at), real.ns, platform_.ns(real.at.width()));
    platform_.now = middle(trace_.created);
    Hypothesis first{ModelVm{platform_, rules_, host_.system_time_write_stores}, {}, {}, 0, 0};
    // kvmclock is 0 when the VM is made, at an instant that nothing shows.
    const std::int64_t width = platform_.ns(trace_.created.width());
    first.kvmclock_ns = {-width, width};
    Comparison comparison{platform_, first, platform_.now};
    comparison.compare(trace_.first);
    verdict_.comparisons += comparison.made();
    if (!comparison.differences().empty()) {
        verdict_.mismatch = Mismatch{trace_.steps.size(), comparison.differences()};
        return verdict_;
    }
    alive_.push_back(std::move(first));
    for (std::size_t k = 0; k < trace_.steps.size() && !verdict_.mismatch; ++k)
        judge_step(k);
    return verdict_;
}

}  // namespace

Verdict judge(const Trace& trace, const model::KernelRules& rules, const HostFacts& host,
              std::vector<std::string>* story) {
    return Judge{trace, rules, host, story}.run();
}

}  // namespace continuo::differential
