#include "continuo/kvm/counter.h"

namespace continuo::kvm {

time::Count<time::HostCounter> host_counter() {
    std::uint64_t value = 0;
    // The counter may be read ahead of what stands before it, and what stands behind it ahead of
    // the counter: ISB on both sides (Arm ARM, D12.2 "The system counter").
    asm volatile("isb; mrs %0, cntvct_el0; isb" : "=r"(value)::"memory");
    return time::Count<time::HostCounter>::from_raw(value);
}

}  // namespace continuo::kvm
