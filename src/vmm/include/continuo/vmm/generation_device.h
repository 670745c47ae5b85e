// The VM generation ID of a VM: 16 bytes of guest memory that are others after each restore of a
// snapshot, and an interrupt ("Virtual Machine Generation ID", Microsoft, 2012). Linux from 5.18
// has its driver built in (drivers/virt/vmgenid.c), and seeds its random numbers anew. How the
// guest finds the bytes, and what an interrupt is, is the board's.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "continuo/kvm/memory.h"
#include "continuo/state/error.h"
#include "continuo/vmm/generation.h"

namespace continuo::vmm {

/// Called while no vCPU runs.
class GenerationDevice {
  public:
    /// What the device reaches of its VM.
    struct Wiring {
        kvm::GuestMemory& memory;
        std::function<void(std::uint64_t gpa)> mark_dirty;
        std::function<void()> interrupt;
    };
    /// For a guest that starts: the first generation is written. kInvalidArgument where `page` is
    /// not a whole page of memory.
    static state::Result<std::unique_ptr<GenerationDevice>> create(Wiring wiring,
                                                                   std::uint64_t page);
    /// For a guest that comes from elsewhere, with its memory; writes nothing. kMalformed where
    /// `page` cannot be: foreign bytes.
    static state::Result<std::unique_ptr<GenerationDevice>> restore(Wiring wiring,
                                                                    std::uint64_t page);

    std::uint64_t page() const { return page_; }
    /// Another life than the one before.
    void set(const Generation& generation);
    /// Its interrupt: before the first vCPU enters.
    void announce() { wiring_.interrupt(); }

  private:
    GenerationDevice(Wiring wiring, std::uint64_t page) : wiring_{std::move(wiring)}, page_{page} {}
    static bool fits(const kvm::GuestMemory& memory, std::uint64_t page);

    Wiring wiring_;
    std::uint64_t page_;
};

}  // namespace continuo::vmm
