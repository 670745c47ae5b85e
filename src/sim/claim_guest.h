// A small guest on the model of KVM, for the claims that one call after another decides: it boots,
// its vCPUs enter, and its clocks are held against each other at one instant. Private to the
// claims.
#pragma once

#include <cstdint>

#include "continuo/abi/msr.h"
#include "continuo/model/guest_clock.h"
#include "continuo/model/kvm_vm.h"
#include "continuo/model/platform.h"

namespace continuo::sim {

/// All vCPUs are in guest mode, with nothing left to be carried out.
void enter_all(model::KvmVm& vm);
/// Enters, and gives every vCPU a page by the system-time MSR, the new one or the old.
void boot(model::KvmVm& vm, std::uint32_t msr = abi::kMSR_KVM_SYSTEM_TIME_NEW);

/// The most that two vCPUs' counters are apart, now, in guest ticks.
std::uint64_t skew_ticks(model::KvmVm& vm);
/// kvmclock on a vCPU now as its page says.
std::uint64_t own_page_ns(model::KvmVm& vm, unsigned vcpu);
/// The most that they are apart, each by its own page.
std::uint64_t own_page_spread_ns(model::KvmVm& vm);
/// The same where all read vCPU 0's page, as user mode does.
std::uint64_t page_spread_ns(model::KvmVm& vm);

}  // namespace continuo::sim
