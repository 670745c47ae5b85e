#include "continuo/model/guest_platform.h"

namespace continuo::model {

std::uint32_t pvclock_tsc_khz(const time::PvclockScale& scale) {
    constexpr std::uint64_t ns_per_khz = 1'000'000;
    const std::uint64_t khz = (ns_per_khz << 32) / scale.mul();
    const bool left = scale.shift() < 0;
    return static_cast<std::uint32_t>(left ? khz << -scale.shift() : khz >> scale.shift());
}

GuestPlatform::GuestPlatform(KvmVm& l1, const KernelRules& rules, GuestClocksource clocksource,
                             std::int64_t boot_realtime_ns)
    : l1_{&l1},
      reader_{l1},
      pvclock_vclock_{rules.pvclock_vclock},
      change_notifier_{rules.change_notifier},
      clocksource_{clocksource},
      tsc_khz_{khz_of_page()},
      was_stable_{page_stable()} {
    restart_lines(cycles_now(0), 0, boot_realtime_ns);
}

std::uint32_t GuestPlatform::khz_of_page() const {
    const auto line = abi::pvclock_line(page());
    if (l1_->vcpu(0).page_active() && line && line->scale().mul() != 0)
        return pvclock_tsc_khz(line->scale());
    return l1_->vcpu(0).user_khz;
}

bool GuestPlatform::tsc_clocksource() {
    if (clocksource_ == GuestClocksource::kTsc) return true;
    return clocksource_ == GuestClocksource::kKvmclock && pvclock_vclock_ && page_stable();
}

std::uint64_t GuestPlatform::cycles_at(std::uint64_t tsc) {
    switch (clocksource_) {
        case GuestClocksource::kTsc:
            return tsc;
        case GuestClocksource::kKvmclock:
            return abi::pvclock_line(page())
                ->at(time::Count<time::GuestCounter>::from_raw(tsc))
                .raw();
        case GuestClocksource::kOther:
            break;
    }
    return cycles_now(0);
}

std::uint64_t GuestPlatform::cycles_now(unsigned cpu) {
    switch (clocksource_) {
        case GuestClocksource::kTsc:
            return tsc(cpu);
        case GuestClocksource::kKvmclock: {
            const auto now = reader_.read(cpu);
            CONTINUO_CHECK(now.has_value());  // L1 chose it, so it has pages
            return *now;
        }
        case GuestClocksource::kOther:
            break;
    }
    return static_cast<std::uint64_t>(l1_->platform().base_now_ns(l1_->vcpu(cpu).thread_cpu));
}

void GuestPlatform::restart_lines(std::uint64_t cycles, std::int64_t raw_ns, std::int64_t real_ns) {
    raw_ = clocksource_ == GuestClocksource::kTsc ? KernelLine::of_khz(tsc_khz_) : KernelLine{};
    raw_.counter = cycles;
    raw_.ns = raw_ns;
    real_ = raw_;
    real_.ns = real_ns;
}

void GuestPlatform::attach(KvmVm& l2) {
    CONTINUO_CHECK(vm_count_ < kVmsMax);
    vms_[vm_count_++] = &l2;
}

ClockSnapshot GuestPlatform::snapshot(unsigned cpu) {
    ClockSnapshot all;
    all.counter = tsc(cpu);
    const bool by_counter = clocksource_ != GuestClocksource::kOther;
    const std::uint64_t cycles = by_counter ? cycles_at(all.counter) : cycles_now(cpu);
    all.realtime_ns = real_.at(cycles);
    all.monotonic_ns = raw_.at(cycles);
    all.boot_ns = all.monotonic_ns + slept_ns;
    all.clocksource = clocksource_;
    all.changes = changes_;
    return all;
}

void GuestPlatform::tell() {
    ++changes_;
    for (unsigned i = 0; i < vm_count_; ++i)
        vms_[i]->clocksource_changed();
}

void GuestPlatform::set_clocksource(GuestClocksource clocksource) {
    const std::uint64_t old = cycles_now(0);
    const std::int64_t raw = raw_.at(old);
    const std::int64_t real = real_.at(old);
    clocksource_ = clocksource;
    was_stable_ = page_stable();
    restart_lines(cycles_now(0), raw, real);
    tell();
}

bool GuestPlatform::look() {
    if (clocksource_ != GuestClocksource::kKvmclock) return false;
    const bool stable = page_stable();
    const std::uint32_t khz = khz_of_page();
    if (stable == was_stable_ && khz == tsc_khz_) return false;
    was_stable_ = stable;
    tsc_khz_ = khz;
    tell();
    return true;
}

bool GuestPlatform::enter(KvmVm& l2, unsigned vcpu) {
    if (!l1_->enter(l2.vcpu(vcpu).thread_cpu)) return false;
    if (change_notifier_) look();
    return l2.enter(vcpu);
}

void GuestPlatform::rebind(KvmVm& l1) {
    l1_ = &l1;
    reader_.rebind(l1);
}

bool has_stale_page(KvmVm& vm) {
    if (vm.platform().tsc_clocksource()) return false;
    for (unsigned i = 0; i < vm.vcpu_count(); ++i)
        if (vm.in_guest(i) && vm.vcpu(i).page_active() &&
            (vm.page(i).flags & abi::kPVCLOCK_TSC_STABLE_BIT) != 0)
            return true;
    return false;
}

}  // namespace continuo::model
