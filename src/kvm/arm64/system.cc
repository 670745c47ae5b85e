#include "continuo/kvm/system.h"

namespace continuo::kvm {

Result<System> System::open(const std::string& path) {
    System system;
    if (auto opened = system.open_device(path,
                                         "KVM needs a kernel that was started at EL2: check the "
                                         "firmware, or use an emulated host");
        !opened)
        return tl::unexpected(opened.error());
    return system;
}

Result<unsigned> System::ipa_bits_max() const {
    constexpr unsigned kIpaBitsOfOldKernels = 40;
    return check_extension(KVM_CAP_ARM_VM_IPA_SIZE).map([](int bits) {
        return bits == 0 ? kIpaBitsOfOldKernels : static_cast<unsigned>(bits);
    });
}

}  // namespace continuo::kvm
