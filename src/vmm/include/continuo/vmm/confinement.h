// What a thread that guests or peers may try to take over can still ask of the kernel: a seccomp
// filter (Documentation/userspace-api/seccomp_filter.rst) that ends the process at the first call
// which such a thread never makes (a vCPU's that opens a file is refused instead). No thread under
// it can start a program, open a file for writing, make memory executable, or reach a device beside
// KVM.
#pragma once

#include <cstdint>
#include <functional>

#include "continuo/state/error.h"

namespace continuo::vmm {

enum class Confinement : std::uint8_t {
    kVcpu,       ///< runs a guest: KVM's calls, and what the C library's threads and heap need
    kMigration,  ///< sends or receives a VM: sockets, files to read, and VMs with their threads too
    kControl,    ///< serves a running VM: the same, and removes the sockets that it listened on
};

/// Confines the calling thread, and every thread that it makes, for good. What a confined thread is
/// confined to further adds to what it was. kKernel where the kernel has no filters. Nothing, and
/// success, in a build with sanitizers, whose runtimes make calls of their own.
state::Status confine_this_thread(Confinement confinement);

/// Runs `work` on a confined thread of its own and waits for it; not at all where that cannot be.
state::Status run_confined(Confinement confinement, const std::function<void()>& work);

}  // namespace continuo::vmm
