#include "kvm_vm_pool.h"

#define XXH_INLINE_ALL 1  // as a cross build says it, too
#include <xxhash.h>

namespace continuo::explore {

namespace {

using Words = std::vector<std::uint64_t>;

template <class... T>
void add(Words& out, T... values) {
    (out.push_back(static_cast<std::uint64_t>(values)), ...);
}

void add_page(Words& out, const abi::pvclock_vcpu_time_info& page) {
    add(out, page.version, page.pad0, page.tsc_timestamp, page.system_time, page.tsc_to_system_mul,
        page.tsc_shift, page.flags, page.pad[0], page.pad[1]);
}

template <class T>
void add_optional(Words& out, const std::optional<T>& value) {
    add(out, value.has_value(), value.value_or(0));
}

void add_vcpu(Words& out, const model::KvmVcpu& vcpu) {
    add(out, vcpu.map.ratio(), vcpu.map.offset(), vcpu.user_khz, vcpu.ns_to_ticks.mul(),
        vcpu.ns_to_ticks.shift(), vcpu.generation, vcpu.this_tsc_nsec, vcpu.this_tsc_write,
        vcpu.last_guest_tsc, vcpu.last_host_tsc, vcpu.tsc_offset_adjustment, vcpu.tsc_adjust,
        vcpu.system_time_msr, vcpu.hw_khz, vcpu.page_scale.mul(), vcpu.page_scale.shift(), vcpu.cpu,
        vcpu.thread_cpu, vcpu.thread, vcpu.requests, vcpu.tsc_catchup, vcpu.tsc_always_catchup,
        vcpu.set_guest_stopped, vcpu.in_guest, vcpu.loaded, vcpu.tsc_state.flags,
        vcpu.tsc_state.nsec, vcpu.tsc_state.tsc, vcpu.tsc_state.tsc_adjust, vcpu.update_step);
    add_page(out, vcpu.page);
    // What a finished publication has left behind matters to nobody.
    if (vcpu.update_step != 0) add_page(out, vcpu.update.fresh());
}

void add_arch(Words& out, const model::KvmArch& arch) {
    add(out, arch.use_master_clock, arch.guest_has_master_clock, arch.backwards_tsc_observed,
        arch.boot_vcpu_runs_old_kvmclock, arch.user_set_tsc, arch.cpuid_tsc_adjust,
        arch.update_in_progress, arch.sampled, arch.updater, arch.master_cycle_now,
        arch.master_kernel_ns, arch.kvmclock_offset, arch.cur_tsc_generation, arch.cur_tsc_nsec,
        arch.cur_tsc_write, arch.cur_tsc_offset, arch.last_tsc_nsec, arch.last_tsc_write,
        arch.last_tsc_offset, arch.last_tsc_khz, arch.nr_vcpus_matched_tsc, arch.default_tsc_khz,
        arch.wall_clock_msr, arch.wall_clock.version, arch.wall_clock.sec, arch.wall_clock.nsec,
        arch.ratelimit_left);
    add_optional(out, arch.update_work_ns);
    add_optional(out, arch.sync_work_ns);
    add_optional(out, arch.ratelimit_begin_ns);
}

}  // namespace

Words KvmVmPool::words(const model::KvmVm& vm) {
    Words out;
    add(out, vm.vmm_cpu());
    add_arch(out, vm.arch());
    for (unsigned i = 0; i < vm.vcpu_count(); ++i)
        add_vcpu(out, vm.vcpu(i));
    return out;
}

std::size_t KvmVmPool::Hash::operator()(const Words& words) const {
    return XXH3_64bits(words.data(), words.size() * sizeof(std::uint64_t));
}

std::uint32_t KvmVmPool::number(const model::KvmVm& vm) {
    Words key = words(vm);
    const auto next = static_cast<std::uint32_t>(vms_.size());
    const std::size_t size = key.size();
    const auto [at, is_new] = numbers_.try_emplace(std::move(key), next);
    if (is_new) {
        vms_.push_back(vm);
        words_ += size;
    }
    return at->second;
}

std::uint64_t KvmVmPool::bytes() const {
    constexpr std::uint64_t node = 80;  // of the table, with what the heap adds
    return vms_.size() * (sizeof(model::KvmVm) + node) + words_ * sizeof(std::uint64_t);
}

}  // namespace continuo::explore
