// The architecture's part of a VM's shape on the wire: x86/shape.cc, arm64/shape.cc.
#pragma once

#include "continuo/vmm/kvm_migration.h"

namespace continuo::vmm {

void put_cpus(PayloadWriter& out, const VmShape& shape);
/// Fills what put_cpus() wrote. False where it is not that, to the last byte.
bool get_cpus(PayloadReader& in, VmShape& shape);

}  // namespace continuo::vmm
