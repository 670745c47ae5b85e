// The real kernel as a subject: VMs of a few bytes of guest code on /dev/kvm, on one CPU of the
// host at a time, so that nothing but the acts asks the kernel for anything.
#pragma once

#include <memory>
#include <thread>
#include <vector>

#include "continuo/kvm/system.h"
#include "probe_vm.h"
#include "subject.h"

namespace continuo::differential {

class KvmSubject final : public Subject {
  public:
    /// All calls are to come from the calling thread, which is bound to one of its CPUs.
    static Result<std::unique_ptr<KvmSubject>> open(std::uint32_t host_khz);

    /// Switches off what a guest cannot do here: run, WRMSR, hypercalls. Seen by trying.
    Status try_guest(Abilities& abilities);
    /// HostFacts'. Seen by trying.
    Result<bool> system_time_write_stores();

    KvmSubject(const KvmSubject&) = delete;
    KvmSubject& operator=(const KvmSubject&) = delete;
    ~KvmSubject() override;

    Result<Bracket> create() override;
    std::uint64_t now() override;
    std::uint32_t host_khz() const override { return host_khz_; }
    RealtimeAnchor realtime() override;
    Result<Step> perform(const Act& act) override;
    Result<View> look() override;

  private:
    KvmSubject(kvm::System system, std::uint32_t host_khz, std::vector<std::size_t> cpus)
        : system_{std::move(system)}, host_khz_{host_khz}, cpus_{std::move(cpus)} {}
    Result<VcpuView> look_at(unsigned vcpu);
    Status act_on(const Act& act, Step& step);
    Status guest_acts(const Act& act, Step& step);
    Status clear_stopped(unsigned vcpu);
    Status wait(std::uint64_t us);
    void let_go();

    kvm::System system_;
    std::uint32_t host_khz_;
    std::vector<std::size_t> cpus_;  ///< that it may use, of which it uses one at a time
    std::unique_ptr<kvm::ProbeVm> vm_;
    /// Lets the VM before go, on the other CPUs: the kernel waits for grace periods there.
    std::thread letting_go_;
    unsigned vcpus_ = 0;
};

}  // namespace continuo::differential
