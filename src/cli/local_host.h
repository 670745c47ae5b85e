// This machine's KVM, examined: what every command that runs a VM begins with.
#pragma once

#include "continuo/kvm/doctor.h"
#include "continuo/kvm/system.h"
#include "continuo/vmm/kvm_migration.h"

namespace continuo::cli {

struct LocalHost {
    kvm::System system;
    kvm::DoctorReport report;
    vmm::HostFindings findings;
};

/// Opens /dev/kvm and has doctor examine it. kUnsupported where there is no usable KVM.
state::Result<LocalHost> examine_local_host();

/// True inside a host that the lab emulates.
bool is_emulated_host();

}  // namespace continuo::cli
