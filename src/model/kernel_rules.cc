#include "continuo/model/kernel_rules.h"

namespace continuo::model {

KernelRules KernelRules::linux(unsigned major, unsigned minor) {
    const auto from = [=](unsigned first_major, unsigned first_minor) {
        return major > first_major || (major == first_major && minor >= first_minor);
    };
    KernelRules rules;
    rules.user_write_arms_sync = from(6, 7);
    rules.same_offset_is_noop = from(6, 7);
    rules.has_offset_attribute = from(5, 16);
    rules.has_clock_triple = from(5, 16);
    rules.cpu_khz_at_load = !from(6, 2);
    rules.wall_clock_by_one_read = from(6, 2);
    rules.global_update_by_work = !from(6, 19);
    rules.at_least_one_khz = from(6, 13);
    rules.has_tsc_adjust = from(3, 8);
    rules.has_kvmclock_ctrl = from(3, 4);
    rules.vm_khz_after_vcpus = !from(6, 13);
    rules.thread_change_waits = !from(6, 13);
    return rules;
}

}  // namespace continuo::model
