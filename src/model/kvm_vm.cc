// The VM and its vCPUs from creation on: which call loads what, who is in guest mode, and how the
// requests of a vCPU are carried out.
#include "continuo/model/kvm_vm.h"

#include <algorithm>
#include <cerrno>
#include <string>

namespace continuo::model {

namespace {

using state::ErrorCode;

constexpr std::int64_t kMillisecond = 1'000'000;
/// KVMCLOCK_UPDATE_DELAY and KVMCLOCK_SYNC_PERIOD, the interval of kvmclock_update_rs and its
/// burst.
constexpr std::int64_t kUpdateDelayNs = 100 * kMillisecond;
constexpr std::int64_t kSyncPeriodNs = 300'000 * kMillisecond;
constexpr std::int64_t kRatelimitNs = 1'000 * kMillisecond;
constexpr std::uint32_t kRatelimitBurst = 10;

}  // namespace

/// kvm_arch_init_vm()
KvmVm::KvmVm(Platform& platform, const KernelRules& rules, unsigned vcpus)
    : platform_{&platform}, rules_{rules} {
    CONTINUO_CHECK(vcpus <= kVcpusMax);
    arch_.kvmclock_offset = -platform_->base_now_ns(vmm_cpu_);
    sample_masterclock(vmm_cpu_);
    arch_.default_tsc_khz = platform_->tsc_khz();
    for (unsigned i = 0; i < vcpus; ++i)
        create();
}

Result<unsigned> KvmVm::create_vcpu() {
    if (count_ == kVcpusMax)
        return state::fail(ErrorCode::kTooLarge, "KVM_CREATE_VCPU",
                           "the model has room for " + std::to_string(kVcpusMax) + " vCPUs",
                           "Model a smaller VM");
    create();
    return count_ - 1;
}

/// kvm_arch_vcpu_create(), and kvm_arch_vcpu_postcreate() once it counts as online.
void KvmVm::create() {
    KvmVcpu& vcpu = vcpus_[count_];
    vcpu.thread_cpu = vmm_cpu_;
    load(vcpu);
    set_khz(vcpu, arch_.default_tsc_khz);
    put(vcpu);
    ++count_;
    load(vcpu);
    synchronize(vcpu, std::nullopt);
    put(vcpu);
    if (count_ == 1 && rules_.global_update_by_work)
        arch_.sync_work_ns = platform_->base_now_ns(vmm_cpu_) + kSyncPeriodNs;
}

Status KvmVm::set_vm_tsc_khz(std::uint32_t khz) {
    const bool in_range = !rules_.scaling_frac_bits || khz < khz_max();
    if (!in_range || (count_ != 0 && !rules_.vm_khz_after_vcpus))
        return state::fail(ErrorCode::kKernel, "KVM_SET_TSC_KHZ of the VM",
                           in_range ? "there are vCPUs already" : "over what this host can give",
                           "Set the vCPUs' own frequency", EINVAL);
    arch_.default_tsc_khz = khz != 0 ? khz : platform_->tsc_khz();
    return {};
}

/// kvm_arch_vcpu_load()
void KvmVm::load(KvmVcpu& vcpu) {
    vcpu.loaded = true;
    if (vcpu.tsc_offset_adjustment != 0) {
        write_offset(vcpu, vcpu.map.offset() + vcpu.scaled(vcpu.tsc_offset_adjustment));
        vcpu.tsc_offset_adjustment = 0;
        vcpu.requests |= kClockUpdate;
    }
    if (vcpu.cpu != static_cast<int>(vcpu.thread_cpu) || platform_->tsc_unstable())
        load_elsewhere(vcpu);
}

void KvmVm::load_elsewhere(KvmVcpu& vcpu) {
    if (vcpu.last_host_tsc != 0 &&
        static_cast<std::int64_t>(read_tsc(vcpu) - vcpu.last_host_tsc) < 0)
        platform_->mark_tsc_unstable();
    if (platform_->tsc_unstable()) {
        write_offset(vcpu, offset_for(vcpu, vcpu.last_guest_tsc));
        vcpu.tsc_catchup = true;
    }
    if (!arch_.use_master_clock || vcpu.cpu == -1)
        vcpu.requests |=
            rules_.global_update_by_work || ratelimit(vcpu) ? kGlobalClockUpdate : kClockUpdate;
    vcpu.cpu = static_cast<int>(vcpu.thread_cpu);
}

/// kvm_arch_vcpu_put()
void KvmVm::put(KvmVcpu& vcpu) {
    vcpu.last_host_tsc = read_tsc(vcpu);
    vcpu.loaded = false;
}

/// __ratelimit(&kvmclock_update_rs): so many in a second that begins with the first of them.
bool KvmVm::ratelimit(const KvmVcpu& vcpu) {
    const std::int64_t now = platform_->base_now_ns(vcpu.thread_cpu);
    if (!arch_.ratelimit_begin_ns || now - *arch_.ratelimit_begin_ns > kRatelimitNs) {
        arch_.ratelimit_begin_ns = now;
        arch_.ratelimit_left = kRatelimitBurst;
    }
    if (arch_.ratelimit_left == 0) return false;
    --arch_.ratelimit_left;
    return true;
}

KvmVcpu& KvmVm::ioctl(unsigned vcpu) {
    KvmVcpu& on = at(vcpu);
    load(on);
    put(on);
    return on;
}

std::uint64_t KvmVm::guest_tsc(unsigned vcpu) {
    const KvmVcpu& reader = at(vcpu);
    return reader.map.wrap_scale(read_tsc(reader)) + reader.map.offset();
}

bool KvmVm::enter(unsigned vcpu) {
    KvmVcpu& to = at(vcpu);
    if (!to.loaded) load(to);
    if (to.requests != 0 && !carry_out_requests(to)) return false;
    to.in_guest = true;
    return true;
}

void KvmVm::settle(unsigned vcpu) {
    KvmVcpu& to = at(vcpu);
    if (!to.loaded) load(to);
    if (to.requests != 0) carry_out_requests(to);
    put(to);
}

/// vcpu_enter_guest(), as far as it is about time.
bool KvmVm::carry_out_requests(KvmVcpu& vcpu) {
    if ((vcpu.requests & kTscStateWrite) != 0) apply_tsc_state(vcpu);
    if ((vcpu.requests & kMasterclockUpdate) != 0) {
        vcpu.requests &= static_cast<Requests>(~kMasterclockUpdate);
        update_masterclock(vcpu.thread_cpu);
    }
    if ((vcpu.requests & kGlobalClockUpdate) != 0) global_clock_update(vcpu);
    if ((vcpu.requests & kClockUpdate) != 0) {
        if (!publish(vcpu)) return false;
        vcpu.requests &= static_cast<Requests>(~kClockUpdate);
    }
    return true;
}

/// kvm_gen_kvmclock_update()
void KvmVm::global_clock_update(KvmVcpu& vcpu) {
    vcpu.requests &= static_cast<Requests>(~kGlobalClockUpdate);
    if (!rules_.global_update_by_work) {
        request_all_pages();
        return;
    }
    vcpu.requests |= kClockUpdate;
    if (!arch_.update_work_ns)
        arch_.update_work_ns = platform_->base_now_ns(vcpu.thread_cpu) + kUpdateDelayNs;
}

/// Every page is to be written again, and who is in guest mode leaves it for that.
void KvmVm::request_all_pages() {
    for (unsigned i = 0; i < count_; ++i) {
        vcpus_[i].requests |= kClockUpdate;
        leave_guest(vcpus_[i]);
    }
}

Step KvmVm::step(unsigned vcpu) {
    KvmVcpu& to = at(vcpu);
    if (to.update_step != 0) return step_page(to);
    if (arch_.update_in_progress && arch_.updater != vcpu) return Step::kBlocked;
    if (arch_.update_in_progress) {
        if (!arch_.sampled) {
            sample_masterclock(to.thread_cpu);
            arch_.sampled = true;
            return Step::kMasterclockSample;
        }
        end_update();
        return Step::kMasterclockEnd;
    }
    if (!to.loaded) load(to);
    if ((to.requests & kTscStateWrite) != 0) {
        apply_tsc_state(to);
        return Step::kTscState;
    }
    if ((to.requests & kMasterclockUpdate) != 0) {
        to.requests &= static_cast<Requests>(~kMasterclockUpdate);
        begin_update();
        arch_.updater = vcpu;
        return Step::kMasterclockBegin;
    }
    if ((to.requests & kGlobalClockUpdate) != 0) {
        global_clock_update(to);
        return Step::kGlobalClockUpdate;
    }
    if ((to.requests & kClockUpdate) != 0) return begin_page(to);
    to.in_guest = true;
    return Step::kEntered;
}

Step KvmVm::begin_page(KvmVcpu& vcpu) {
    if (!time_update(vcpu)) return Step::kBlocked;
    vcpu.requests &= static_cast<Requests>(~kClockUpdate);
    if (!has_page(vcpu)) return Step::kPageBegin;
    tell_stopped(vcpu);
    vcpu.update.carry_out(0, vcpu.page);
    vcpu.update_step = 1;
    return Step::kPageBegin;
}

Step KvmVm::step_page(KvmVcpu& vcpu) {
    vcpu.update.carry_out(vcpu.update_step, vcpu.page);
    vcpu.update_step = static_cast<std::uint8_t>((vcpu.update_step + 1) % PageUpdate::kSteps);
    return Step::kPageStep;
}

/// Any way out of guest mode; the vCPU stays loaded (vcpu_enter_guest() after the exit).
void KvmVm::leave_guest(KvmVcpu& vcpu) {
    if (!vcpu.in_guest) return;
    vcpu.in_guest = false;
    vcpu.last_guest_tsc = vcpu.l1_tsc(read_tsc(vcpu));
    if (vcpu.tsc_always_catchup) vcpu.requests |= kClockUpdate;
}

void KvmVm::exit(unsigned vcpu) {
    KvmVcpu& from = at(vcpu);
    leave_guest(from);
    if (from.loaded) put(from);
}

bool KvmVm::run_on_thread(unsigned vcpu, int thread) {
    KvmVcpu& to = at(vcpu);
    const bool changes = to.thread != -1 && to.thread != thread;
    to.thread = thread;
    return changes && rules_.thread_change_waits;
}

void KvmVm::reset_vcpu(unsigned vcpu) {
    KvmVcpu& of = at(vcpu);
    leave_guest(of);
    of.system_time_msr = 0;
}

void KvmVm::clocksource_changed() {
    const bool lost = !platform_->tsc_clocksource() && arch_.guest_has_master_clock;
    if (!lost && !rules_.change_notifier) return;
    for (unsigned i = 0; i < count_; ++i) {
        vcpus_[i].requests |= kMasterclockUpdate;
        if (rules_.change_notifier) leave_guest(vcpus_[i]);
    }
    if (lost) arch_.guest_has_master_clock = false;
}

void KvmVm::cpu_frequency_changed(unsigned cpu, bool faster) {
    for (unsigned i = 0; i < count_; ++i) {
        if (vcpus_[i].cpu != static_cast<int>(cpu)) continue;
        vcpus_[i].requests |= kClockUpdate;
        if (faster) leave_guest(vcpus_[i]);
    }
}

void KvmVm::vcpu_migrated(unsigned vcpu, unsigned cpu) {
    KvmVcpu& moves = at(vcpu);
    leave_guest(moves);
    const bool was_loaded = moves.loaded;
    if (was_loaded) put(moves);
    moves.thread_cpu = cpu;
    if (was_loaded) load(moves);
}

void KvmVm::host_suspended() {
    for (unsigned i = 0; i < count_; ++i)
        set_guest_stopped(vcpus_[i]);
    for (unsigned i = 0; i < count_; ++i) {
        leave_guest(vcpus_[i]);
        if (vcpus_[i].loaded) put(vcpus_[i]);
    }
}

void KvmVm::host_resumed(unsigned cpu) {
    const std::uint64_t local = platform_->tsc(cpu);
    const bool stable = !platform_->tsc_unstable();
    std::uint64_t latest = local;
    for (unsigned i = 0; i < count_; ++i) {
        KvmVcpu& vcpu = vcpus_[i];
        if (!stable && vcpu.cpu == static_cast<int>(cpu)) vcpu.requests |= kClockUpdate;
        if (stable) latest = std::max(latest, vcpu.last_host_tsc);
    }
    if (latest == local) return;
    arch_.backwards_tsc_observed = true;
    for (unsigned i = 0; i < count_; ++i) {
        vcpus_[i].tsc_offset_adjustment += latest - local;
        vcpus_[i].last_host_tsc = local;
        vcpus_[i].requests |= kMasterclockUpdate;
    }
    arch_.last_tsc_nsec = 0;
    arch_.last_tsc_write = 0;
}

std::optional<std::int64_t> KvmVm::next_work_ns() const {
    if (!arch_.update_work_ns) return arch_.sync_work_ns;
    if (!arch_.sync_work_ns) return arch_.update_work_ns;
    return std::min(*arch_.update_work_ns, *arch_.sync_work_ns);
}

void KvmVm::run_work(std::int64_t now_ns) {
    if (arch_.sync_work_ns && *arch_.sync_work_ns <= now_ns) {
        arch_.sync_work_ns = now_ns + kSyncPeriodNs;
        // A work item that waits already keeps its time (schedule_delayed_work()).
        if (!arch_.update_work_ns) arch_.update_work_ns = now_ns;
    }
    if (!arch_.update_work_ns || now_ns < *arch_.update_work_ns) return;
    arch_.update_work_ns.reset();
    request_all_pages();
}

}  // namespace continuo::model
