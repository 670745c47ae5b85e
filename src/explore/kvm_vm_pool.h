// KVM's timekeeping as part of an explored state. A KvmVm is some kilobytes, and a search holds
// many states with the same one: the state has its number, and the VMs themselves are here, each
// once. Two VMs are the same where every field of them is.
#pragma once

#include <cstdint>
#include <deque>
#include <unordered_map>
#include <vector>

#include "continuo/model/kvm_vm.h"

namespace continuo::explore {

class KvmVmPool {
  public:
    /// The VM's number; a copy of it is kept where it has none yet.
    std::uint32_t number(const model::KvmVm& vm);
    /// A copy that goes on on this platform.
    model::KvmVm vm(std::uint32_t number, model::Platform& platform) const {
        model::KvmVm copy = vms_[number];
        copy.rebind(platform);
        return copy;
    }
    std::uint64_t bytes() const;

    /// Every field of the VM that anything it does later can depend on. A test holds the sizes of
    /// KvmVcpu and KvmArch, so that no field is added to them and forgotten here.
    static std::vector<std::uint64_t> words(const model::KvmVm& vm);

  private:
    struct Hash {
        std::size_t operator()(const std::vector<std::uint64_t>& words) const;
    };
    std::unordered_map<std::vector<std::uint64_t>, std::uint32_t, Hash> numbers_;
    std::deque<model::KvmVm> vms_;
    std::uint64_t words_ = 0;
};

}  // namespace continuo::explore
