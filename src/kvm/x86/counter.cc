#include "continuo/kvm/counter.h"

namespace continuo::kvm {

time::Count<time::HostCounter> host_counter() {
    std::uint32_t lo = 0;
    std::uint32_t hi = 0;
    asm volatile("lfence; rdtsc; lfence" : "=a"(lo), "=d"(hi)::"memory");
    return time::Count<time::HostCounter>::from_raw((static_cast<std::uint64_t>(hi) << 32) | lo);
}

}  // namespace continuo::kvm
