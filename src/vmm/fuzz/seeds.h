// The seeds that only one architecture has: x86_seeds.cc, arm64_seeds.cc.
#pragma once

#include "continuo/vmm/kvm_migration.h"

namespace continuo::vmm {

VmState sample_vm_state();
VmShape sample_vm_shape();

}  // namespace continuo::vmm
