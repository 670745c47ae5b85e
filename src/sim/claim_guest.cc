#include "claim_guest.h"

#include <algorithm>

#include "continuo/abi/pvclock.h"

namespace continuo::sim {

namespace {

std::uint64_t page_at(const abi::pvclock_vcpu_time_info& page, std::uint64_t tsc) {
    const auto line = abi::pvclock_line(page);
    CONTINUO_CHECK(line.has_value());
    return page.system_time + line->scale().wrap_ns(tsc - page.tsc_timestamp);
}

/// The largest difference between what `value` gives for any two vCPUs. Modular: values wrap.
template <class Value>
std::uint64_t apart(model::KvmVm& vm, Value value) {
    std::int64_t low = 0;
    std::int64_t high = 0;
    const std::uint64_t first = value(0U);
    for (unsigned v = 1; v < vm.vcpu_count(); ++v) {
        const auto beyond = static_cast<std::int64_t>(value(v) - first);
        low = std::min(low, beyond);
        high = std::max(high, beyond);
    }
    return static_cast<std::uint64_t>(high - low);
}

}  // namespace

void enter_all(model::KvmVm& vm) {
    // A vCPU whose entry updates the masterclock kicks the others out; the third round finds
    // nothing.
    for (int round = 0; round < 3; ++round)
        for (unsigned v = 0; v < vm.vcpu_count(); ++v)
            if (!vm.in_guest(v) || vm.pending(v) != 0) {
                vm.exit(v);
                vm.enter(v);
            }
}

void boot(model::KvmVm& vm, std::uint32_t msr) {
    enter_all(vm);
    constexpr std::uint64_t first_page = 0x1000;
    for (unsigned v = 0; v < vm.vcpu_count(); ++v)
        (void)vm.guest_write_msr(
            v, msr, (first_page + v * abi::kPvclockLinuxStride) | abi::kKVM_MSR_ENABLED);
    enter_all(vm);
}

std::uint64_t skew_ticks(model::KvmVm& vm) {
    return apart(vm, [&vm](unsigned v) { return vm.guest_tsc(v); });
}

std::uint64_t own_page_ns(model::KvmVm& vm, unsigned vcpu) {
    return page_at(vm.page(vcpu), vm.guest_tsc(vcpu));
}

std::uint64_t own_page_spread_ns(model::KvmVm& vm) {
    return apart(vm, [&vm](unsigned v) { return own_page_ns(vm, v); });
}

std::uint64_t page_spread_ns(model::KvmVm& vm) {
    return apart(vm, [&vm](unsigned v) { return page_at(vm.page(0), vm.guest_tsc(v)); });
}

}  // namespace continuo::sim
