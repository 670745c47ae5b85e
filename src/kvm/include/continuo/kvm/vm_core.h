// One KVM virtual machine, as far as all architectures have it: memory slots, capabilities and
// device attributes. Each architecture's Vm (vm.h, of which the build picks one) adds the rest. Raw
// on purpose: what a value means, and whether a control has any effect, is decided above
// (ClockMachine, doctor).
#pragma once

#include <linux/kvm.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "continuo/kvm/memory.h"
#include "continuo/kvm/system_core.h"

namespace continuo::kvm {

class VmCore {
  public:
    int fd() const { return fd_.get(); }
    std::size_t vcpu_mmap_size() const { return vcpu_mmap_size_; }

    /// KVM_CHECK_EXTENSION on the VM.
    Result<int> check_extension(int capability) const;
    /// KVM_ENABLE_CAP on the VM with up to one argument.
    Status enable_capability(std::uint32_t capability, std::uint64_t arg0 = 0);

    /// Maps `memory` as slot `slot`, and as the next one what lies behind a hole in its addresses;
    /// with `log_dirty`, its writes are logged from here on. The
    /// memory must outlive the VM. Called again with another `log_dirty`, it switches the log.
    Status set_memory(std::uint32_t slot, const GuestMemory& memory, bool log_dirty);
    /// Fetches and clears the dirty log of what set_memory() mapped: one bit for each page of the
    /// memory, bit 0 of word 0 first, and no bits for a hole. `bitmap` holds at least one bit a
    /// page, in whole words.
    Status get_dirty_log(std::uint32_t slot, const GuestMemory& memory,
                         std::span<std::uint64_t> bitmap) const;

    /// Device attributes of the VM.
    bool has_attribute(std::uint32_t group, std::uint64_t attribute) const;

  protected:
    VmCore() = default;
    /// KVM_CREATE_VM with the architecture's machine type.
    Status create_vm(const SystemCore& system, unsigned long type);
    /// An ioctl without an answer: success or its Error.
    Status call(unsigned long request, void* arg, const char* name) const;
    Status call(unsigned long request, unsigned long arg, const char* name) const;

  private:
    Fd fd_;
    std::size_t vcpu_mmap_size_ = 0;
};

}  // namespace continuo::kvm
