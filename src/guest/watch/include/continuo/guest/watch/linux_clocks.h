// The clocks of a Linux guest: clock_gettime(2), by its vDSO where it has one, the counter, the
// pages and the PTP clock of its hypervisor, and adjtimex(2).
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "continuo/guest/pvclock_reader.h"
#include "continuo/guest/time_travel_page.h"
#include "continuo/guest/vmclock_reader.h"
#include "continuo/guest/watch/clock_source.h"

namespace continuo::guest::watch {

class LinuxClocks final : public ClockSource {
  public:
    /// Files that could not be used: a path and an errno.
    struct Problem {
        std::string path;
        int error = 0;
    };

    LinuxClocks() = default;
    ~LinuxClocks() override;

    /// The vmclock page: a device or file, from `offset` on. 0, or an errno.
    int open_vmclock(const std::string& path, std::uint64_t offset);
    /// The notice page of the time-travel device (docs/formats/time-travel.md), as open_vmclock().
    /// EBADMSG where there is another page.
    int open_notice(const std::string& path, std::uint64_t offset);
    /// Its physical address by ACPI, for /dev/mem; nullopt where this machine has no such device.
    static std::optional<std::uint64_t> notice_address();
    /// A PTP clock whose time is the host's, in the kernel's numbering. 0, or an errno.
    int open_phc(const std::string& path);
    /// The path of the PTP clock that KVM offers through its hypercall ("KVM virtual PTP"); empty
    /// where there is none.
    static std::string kvm_phc();
    /// Looks for kvmclock's page where the kernel maps it for its vDSO, [vvar] or [vvar_vclock].
    /// That mapping is no interface: a page is believed only where it has kvmclock's form and runs
    /// at MONOTONIC_RAW's rate, and pages that cannot be read are tried in a child. False where
    /// none is found: on arm64, with another clock than kvm-clock ever in use, or where KVM does
    /// not call the page stable. Call it before any thread is made. Takes 10 ms.
    bool find_kvmclock();

    bool has_vmclock() const { return vmclock_ != nullptr; }
    bool has_kvmclock() const { return kvmclock_ != nullptr; }
    bool has_notice() const { return notice_ != nullptr; }
    bool has_phc() const { return phc_ >= 0; }

    void read(std::uint64_t number, Pass& pass) override;
    Count counter() override;

  private:
    void read_system_calls(std::uint64_t number, Pass& pass);

    const continuo_vmclock_page* vmclock_ = nullptr;
    const continuo_pvclock_page* kvmclock_ = nullptr;
    const continuo_time_travel_page* notice_ = nullptr;
    int phc_ = -1;
};

}  // namespace continuo::guest::watch
