// What the kernel said at boot of how KVM runs guests. No file says it to user space, and EL2
// cannot be asked from EL0.
#pragma once

#include <string>
#include <string_view>

namespace continuo::vmm::counter_bench {

/// How KVM entered EL2, by the line that it logs once (init of arch/arm64/kvm/arm.c): "VHE",
/// "nVHE", "protected nVHE", ... ; empty where the log has no such line.
std::string kvm_mode(std::string_view log);

/// True where the kernel logged that it found CNTPOFF_EL2 and will use it.
bool has_cntpoff(std::string_view log);

/// The kernel's log as far as it is kept. Empty where it may not be read (CAP_SYSLOG), with `why`.
std::string read_kernel_log(std::string& why);

}  // namespace continuo::vmm::counter_bench
