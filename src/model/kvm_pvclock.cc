// kvmclock: the masterclock, the vCPUs' pages, KVM_GET_CLOCK and KVM_SET_CLOCK.
#include <cerrno>
#include <cstring>

#include "continuo/model/kvm_vm.h"
#include "time_scale.h"

namespace continuo::model {

namespace {

using state::ErrorCode;

constexpr std::uint64_t kPageBytes = 4096;

/// KVM maps the guest's page of memory, and no structure that crosses into the next one.
bool within_one_page(std::uint64_t gpa) {
    return gpa % kPageBytes <= kPageBytes - sizeof(abi::pvclock_vcpu_time_info);
}

}  // namespace

void PageUpdate::carry_out(unsigned step, abi::pvclock_vcpu_time_info& page) {
    constexpr std::size_t word_bytes = 8;
    constexpr std::size_t first_word = 2;
    if (step == 0) {
        page.version = fresh_.version = (page.version + 1) | 1;
    } else if (step == 1) {
        fresh_.flags |= page.flags & abi::kPVCLOCK_GUEST_STOPPED;
    } else if (step == kSteps - 1) {
        page.version = ++fresh_.version;
    } else {
        const std::size_t from = (step - first_word) * word_bytes;
        std::memcpy(reinterpret_cast<unsigned char*>(&page) + from,
                    reinterpret_cast<const unsigned char*>(&fresh_) + from, word_bytes);
    }
}

// Field by field: a copy of all 32 bytes at once would wait for the stores that made fresh_.
void PageUpdate::carry_out_all(abi::pvclock_vcpu_time_info& page) const {
    page.version = ((page.version + 1) | 1) + 1;
    page.pad0 = fresh_.pad0;
    page.tsc_timestamp = fresh_.tsc_timestamp;
    page.system_time = fresh_.system_time;
    page.tsc_to_system_mul = fresh_.tsc_to_system_mul;
    page.tsc_shift = fresh_.tsc_shift;
    page.flags = fresh_.flags | (page.flags & abi::kPVCLOCK_GUEST_STOPPED);
    page.pad[0] = fresh_.pad[0];
    page.pad[1] = fresh_.pad[1];
}

/// get_cpu_tsc_khz()
std::uint32_t KvmVm::cpu_khz(unsigned cpu) {
    return rules_.cpu_khz_at_load || !platform_->constant_tsc() ? platform_->cpu_khz(cpu)
                                                                : platform_->tsc_khz();
}

/// pvclock_update_vm_gtod_copy(): without a TSC clocksource the last sample stays as it was.
void KvmVm::sample_masterclock(unsigned cpu) {
    const bool by_tsc = platform_->tsc_clocksource();
    if (by_tsc) {
        arch_.master_cycle_now = platform_->tsc(cpu);
        arch_.master_kernel_ns = platform_->base_ns(arch_.master_cycle_now);
    }
    arch_.use_master_clock = by_tsc && all_matched() && !arch_.backwards_tsc_observed &&
                             !arch_.boot_vcpu_runs_old_kvmclock;
    if (arch_.use_master_clock) arch_.guest_has_master_clock = true;
}

/// kvm_start_pvclock_update(): every vCPU leaves guest mode and stays out.
void KvmVm::begin_update() {
    CONTINUO_CHECK(!arch_.update_in_progress);
    arch_.update_in_progress = true;
    arch_.sampled = false;
    for (unsigned i = 0; i < count_; ++i)
        leave_guest(vcpus_[i]);
}

/// kvm_end_pvclock_update()
void KvmVm::end_update() {
    for (unsigned i = 0; i < count_; ++i)
        vcpus_[i].requests |= kClockUpdate;
    arch_.update_in_progress = false;
}

void KvmVm::update_masterclock(unsigned cpu) {
    begin_update();
    sample_masterclock(cpu);
    end_update();
}

/// kvm_guest_time_update() up to the page's publication. False where no page can be computed; the
/// request then stays.
bool KvmVm::time_update(KvmVcpu& vcpu) {
    std::uint32_t khz = cpu_khz(vcpu.thread_cpu);
    if (khz == 0) return false;
    if (rules_.scaling_frac_bits) khz = static_cast<std::uint32_t>(vcpu.scaled(khz));
    if (khz == 0 && rules_.at_least_one_khz) khz = 1;
    // Without that guard kvm_get_time_scale() never comes back from 0 kHz; a vCPU that never had
    // another frequency does not call it, and has no scale.
    if (khz == 0 && vcpu.hw_khz != 0) return false;
    const bool master = arch_.use_master_clock;
    const std::uint64_t host_tsc = master ? arch_.master_cycle_now : read_tsc(vcpu);
    const std::int64_t kernel_ns =
        master ? arch_.master_kernel_ns : platform_->base_now_ns(vcpu.thread_cpu);
    std::uint64_t tsc_timestamp = vcpu.l1_tsc(host_tsc);
    if (vcpu.tsc_catchup) tsc_timestamp = caught_up(vcpu, kernel_ns, tsc_timestamp);
    if (vcpu.hw_khz != khz) {
        vcpu.page_scale = time_scale(time::kNanosPerSecond, std::uint64_t{khz} * 1000);
        vcpu.hw_khz = khz;
    }
    vcpu.last_guest_tsc = tsc_timestamp;
    abi::pvclock_vcpu_time_info& fresh = vcpu.update.fresh();
    fresh.tsc_timestamp = tsc_timestamp;
    fresh.system_time = kvmclock_at(kernel_ns);
    fresh.tsc_to_system_mul = vcpu.page_scale.mul();
    fresh.tsc_shift = vcpu.page_scale.shift();
    fresh.flags = master ? abi::kPVCLOCK_TSC_STABLE_BIT : std::uint8_t{0};
    if (rules_.counts_from_zero) fresh.flags |= abi::kPVCLOCK_COUNTS_FROM_ZERO;
    return true;
}

/// The guest's TSC is moved forwards to where its frequency would have brought it by now; never
/// back. Returns tsc_timestamp.
std::uint64_t KvmVm::caught_up(KvmVcpu& vcpu, std::int64_t kernel_ns, std::uint64_t timestamp) {
    const std::uint64_t passed = static_cast<std::uint64_t>(kernel_ns) - vcpu.this_tsc_nsec;
    const std::uint64_t wanted = vcpu.this_tsc_write + vcpu.ns_to_ticks.wrap_ns(passed);
    if (wanted <= timestamp) return timestamp;
    write_offset(vcpu, vcpu.map.offset() + (wanted - timestamp));
    return wanted;
}

bool KvmVm::has_page(const KvmVcpu& vcpu) {
    return vcpu.page_active() && within_one_page(abi::system_time_gpa(vcpu.system_time_msr));
}

/// GUEST_STOPPED that was asked for goes out with this update.
void KvmVm::tell_stopped(KvmVcpu& vcpu) {
    if (!vcpu.set_guest_stopped) return;
    vcpu.update.fresh().flags |= abi::kPVCLOCK_GUEST_STOPPED;
    vcpu.set_guest_stopped = false;
}

bool KvmVm::publish(KvmVcpu& vcpu) {
    if (!time_update(vcpu)) return false;
    if (!has_page(vcpu)) return true;
    tell_stopped(vcpu);
    vcpu.update.carry_out_all(vcpu.page);
    return true;
}

/// kvmclock at a host counter value as the kernel itself reads it: by the host's scale, also where
/// the guests' pages have a scaled one.
std::uint64_t KvmVm::masterclock_at(std::uint64_t tsc, std::uint32_t khz) const {
    const PvclockScale scale = time_scale(time::kNanosPerSecond, std::uint64_t{khz} * 1000);
    return kvmclock_at(arch_.master_kernel_ns) + scale.wrap_ns(tsc - arch_.master_cycle_now);
}

abi::kvm_clock_data KvmVm::get_clock() {
    return clock_on(vmm_cpu_);
}

/// __get_kvmclock()
abi::kvm_clock_data KvmVm::clock_on(unsigned cpu) {
    abi::kvm_clock_data data{};
    const std::uint32_t khz = arch_.use_master_clock ? cpu_khz(cpu) : 0;
    if (khz == 0) {
        data.clock = kvmclock_at(platform_->base_now_ns(cpu));
        return data;
    }
    const std::uint64_t tsc = platform_->tsc(cpu);
    data.clock = masterclock_at(tsc, khz);
    data.flags = abi::kKVM_CLOCK_TSC_STABLE;
    if (!rules_.has_clock_triple) return data;
    data.host_tsc = tsc;
    if (platform_->tsc_clocksource()) {
        data.realtime = static_cast<std::uint64_t>(platform_->realtime_ns(tsc));
        data.flags |= abi::kKVM_CLOCK_REALTIME | abi::kKVM_CLOCK_HOST_TSC;
    }
    return data;
}

Status KvmVm::set_clock(const abi::kvm_clock_data& data) {
    const std::uint32_t known =
        rules_.has_clock_triple
            ? abi::kKVM_CLOCK_TSC_STABLE | abi::kKVM_CLOCK_REALTIME | abi::kKVM_CLOCK_HOST_TSC
            : 0;
    if ((data.flags & ~known) != 0)
        return state::fail(ErrorCode::kKernel, "KVM_SET_CLOCK", "a flag that it does not know",
                           "Leave flags 0, or KVM_CLOCK_REALTIME from Linux 5.16 on", EINVAL);
    begin_update();
    sample_masterclock(vmm_cpu_);
    std::uint64_t clock = data.clock;
    if ((data.flags & abi::kKVM_CLOCK_REALTIME) != 0) {
        const auto now = static_cast<std::uint64_t>(platform_->realtime_now_ns(vmm_cpu_));
        if (now > data.realtime) clock += now - data.realtime;
    }
    const std::int64_t sampled =
        arch_.use_master_clock ? arch_.master_kernel_ns : platform_->base_now_ns(vmm_cpu_);
    arch_.kvmclock_offset = static_cast<std::int64_t>(clock - static_cast<std::uint64_t>(sampled));
    end_update();
    return {};
}

/// REALTIME at kvmclock 0 (kvm_get_wall_clock_epoch()).
std::uint64_t KvmVm::wall_clock_epoch(unsigned cpu) {
    const std::uint32_t khz =
        rules_.wall_clock_by_one_read && arch_.use_master_clock ? cpu_khz(cpu) : 0;
    if (khz != 0 && platform_->tsc_clocksource()) {
        const std::uint64_t tsc = platform_->tsc(cpu);
        return static_cast<std::uint64_t>(platform_->realtime_ns(tsc)) - masterclock_at(tsc, khz);
    }
    const auto real = static_cast<std::uint64_t>(platform_->realtime_now_ns(cpu));
    return real - clock_on(cpu).clock;
}

}  // namespace continuo::model
