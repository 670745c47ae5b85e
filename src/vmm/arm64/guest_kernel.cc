#include "continuo/vmm/guest_kernel.h"

namespace continuo::vmm {

Result<KernelFormat> load_guest_kernel(VirtualMachine& /*machine*/, const GuestKernel& kernel) {
    return state::fail(state::ErrorCode::kUnsupported, kernel.name,
                       "an arm64 VM has no interrupt controller and no console yet: it runs the "
                       "witness alone",
                       "boot it on an x86-64 host");
}

}  // namespace continuo::vmm
