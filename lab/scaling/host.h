// The host under test, as all tests of this program need it: a KVM that scales, seen by doctor, and
// what KVM itself says in debugfs of the multiplier and offset that a vCPU has now.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "continuo/kvm/clock_machine.h"
#include "continuo/kvm/doctor.h"
#include "continuo/kvm/system.h"

namespace continuo::scaling {

using time::Count;
using time::GuestCounter;
using time::HostCounter;
using time::Hz;
using time::Instant;
using time::Kvmclock;
using time::PvclockLine;
using time::TscMap;

#define ASSERT_OK(expression)                                \
    do {                                                     \
        auto outcome_ = (expression);                        \
        ASSERT_TRUE(outcome_) << outcome_.error().message(); \
    } while (false)

/// A line of figures on stdout, found by lab/scaling/run.
void figure(const std::string& text);

/// Multiplier and offset of a vCPU as KVM gave them to the processor: debugfs, kvm/PID-FD/vcpuN
/// (arch/x86/kvm/debugfs.c). While the vCPU is in L2, those of L2.
struct InForce {
    std::uint64_t ratio = 0;
    std::uint64_t offset = 0;
    std::uint64_t frac_bits = 0;

    TscMap map() const;
    friend bool operator==(const InForce&, const InForce&) = default;
};
kvm::Result<InForce> in_force(const kvm::Vm& vm, std::uint32_t vcpu);

/// Skips, by reason, where there is no KVM or it does not scale.
class ScalingHost : public testing::Test {
  protected:
    void SetUp() override;

    const kvm::System& system() const { return *system_; }
    const kvm::DoctorReport& report() const;
    const kvm::HostClock& host() const { return *report().host; }
    std::uint32_t host_khz() const { return host().tsc_khz(); }

  private:
    const kvm::System* system_ = nullptr;
};

/// Frequencies of guests, in kHz, below, at and above this host's.
std::vector<std::uint32_t> guest_frequencies(std::uint32_t host_khz);

}  // namespace continuo::scaling
