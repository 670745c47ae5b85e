#include "model_subject.h"

namespace continuo::differential {

ModelSubject::ModelSubject(std::uint64_t seed, std::uint32_t khz, const model::KernelRules& rules,
                           std::uint32_t ticks_max)
    : random_{seed}, host_{khz}, rules_{rules} {
    host_.counter =
        std::uint64_t{khz} * 1000 * static_cast<std::uint64_t>(random_.between(1, 90'000));
    host_.take_time(&random_, ticks_max);
}

std::uint64_t ModelSubject::now() {
    return host_.tsc(0);
}

RealtimeAnchor ModelSubject::realtime() {
    RealtimeAnchor anchor;
    anchor.at.before = now();
    anchor.ns = host_.realtime_ns(now());
    anchor.at.after = now();
    return anchor;
}

Result<Bracket> ModelSubject::create() {
    Bracket at;
    at.before = now();
    vm_.emplace(host_, rules_);
    at.after = now();
    return at;
}

Result<View> ModelSubject::look() {
    View view = vm_->look();
    view.clock_at.before = now();
    view.clock = vm_->kvm().get_clock();
    view.clock_at.after = now();
    return view;
}

Result<Step> ModelSubject::perform(const Act& act) {
    Step step;
    step.act = act;
    step.at.before = now();
    // An interrupt now and then sends the guest out and in again, and work items come when due.
    const Detours detours{random_.one_in(8) ? 1U : 0U, random_.one_in(8) ? 1U : 0U};
    const auto work = [this](Phase) {
        const std::int64_t now_ns = host_.base_ns(now());
        if (const auto due = vm_->kvm().next_work_ns(); due && now_ns >= *due)
            vm_->kvm().run_work(now_ns);
    };
    const Answer answer = vm_->perform(act, work, detours);
    if (act.kind == OpKind::kWait) host_.sleep_ns(act.value * 1000);
    step.at.after = now();
    step.error = answer.error;
    step.answer = answer.value;
    step.pairing = answer.pairing;
    auto view = look();
    if (!view) return tl::unexpected(view.error());
    step.after = *view;
    return step;
}

}  // namespace continuo::differential
