// The two sides of a move as a VMM's thread sees them: ioctls on a VM of the model, each a step at
// which the thread can lose its processor, and for Continuo's plan the same VM as a
// machine::Machine. What a strategy learns and does goes through these alone.
#pragma once

#include <cstdint>
#include <optional>

#include "continuo/abi/kvm_clock.h"
#include "continuo/machine/machine.h"
#include "continuo/model/kvm_machine.h"
#include "continuo/sim/strategy.h"
#include "continuo/sim/world.h"
#include "continuo/state/certificate.h"

namespace continuo::sim {

/// A stopped VM through its port, with the scheduler between any two calls, and the kernel's lies.
class SimMachine final : public machine::Machine {
  public:
    SimMachine(World& world, Host& host, model::KvmVm& vm);

    std::size_t vcpu_count() const override { return vm_.vcpu_count(); }
    state::Result<machine::HostFacts> host_facts() override;
    time::Count<time::HostCounter> now() override { return inner_.now(); }
    state::Result<state::Anchor<time::HostCounter>> anchor() override;
    state::Result<machine::VcpuClockState> vcpu_state(std::size_t vcpu) override;
    state::Result<machine::BracketedTsc> read_tsc_by_value(std::size_t vcpu) override;
    state::Result<std::optional<time::PvclockLine>> pvclock_page(std::size_t vcpu) override;
    state::Result<machine::KvmclockReading> kvmclock() override;
    state::Status set_tsc_khz(std::size_t vcpu, std::uint64_t khz) override;
    state::Status set_tsc_adjust(std::size_t vcpu, std::int64_t value) override;
    state::Status set_tsc_offset(std::size_t vcpu, std::uint64_t offset) override;
    state::Result<time::TscMap> tsc_map(std::size_t vcpu) override;
    state::Result<machine::WriteBracket> write_tsc_by_value(
        std::size_t vcpu, time::Count<time::GuestCounter> value) override;
    state::Status set_kvmclock(time::Instant<time::Kvmclock> clock) override;
    state::Status signal_guest_stopped(std::size_t vcpu) override;
    state::Status settle() override;

  private:
    template <class Call>
    auto step(Site site, Call call);
    std::uint64_t clock_of_host();

    World& world_;
    Host& host_;
    model::KvmVm& vm_;
    model::KvmMachine inner_;
    /// A bug's readback: the offset that was written, whatever is in force.
    std::array<std::optional<std::uint64_t>, kVcpusMax> claimed_{};
};

/// What both sides can do. Every call is one ioctl or clock_gettime of user space.
class VmmSide {
  public:
    VmmSide(World& world, Host& host, model::KvmVm& vm)
        : world_{world}, host_{host}, vm_{vm}, machine_{world, host, vm} {}
    VmmSide(const VmmSide&) = delete;
    VmmSide& operator=(const VmmSide&) = delete;

    unsigned vcpus() const { return vm_.vcpu_count(); }
    World& world() { return world_; }
    Host& host() { return host_; }
    SimMachine& machine() { return machine_; }

    std::uint64_t host_tsc() { return host_.tsc(0); }
    std::uint64_t realtime_ns();
    std::uint64_t tai_ns();
    abi::kvm_clock_data get_clock();
    void set_clock(const abi::kvm_clock_data& data);
    std::uint64_t read_tsc(unsigned vcpu);
    void write_tsc(unsigned vcpu, std::uint64_t value);
    std::int64_t read_adjust(unsigned vcpu);
    void write_adjust(unsigned vcpu, std::int64_t value);
    /// 0 where the kernel has no such attribute; write: false.
    std::uint64_t read_offset(unsigned vcpu);
    bool write_offset(unsigned vcpu, std::uint64_t offset);
    std::uint32_t tsc_khz(unsigned vcpu);
    /// False where the host cannot give it.
    bool set_tsc_khz(unsigned vcpu, std::uint32_t khz);
    void ctrl(unsigned vcpu);
    /// The tuple of S3.1, on kernels that have it.
    model::TscState tsc_state(unsigned vcpu);
    void set_tsc_state(unsigned vcpu, const Saved::Vcpu& from);
    /// A step that is no ioctl: encode, decode, plan.
    void think(Site site) {
        world_.before(site);
        world_.after(site);
    }

  protected:
    World& world_;
    Host& host_;
    model::KvmVm& vm_;
    SimMachine machine_;
};

class SourceSide : public VmmSide {
  public:
    using VmmSide::VmmSide;
    /// The instant that the saved clocks belong to, as a host counter value.
    void anchored(std::uint64_t host_counter) { anchor_ = host_counter; }
    /// The same, now.
    void anchored_now() { anchor_ = host_.count_now(); }
    std::optional<std::uint64_t> anchor() const { return anchor_; }

  private:
    std::optional<std::uint64_t> anchor_;
};

/// What a strategy that certifies certified; fixed size.
struct Certified {
    std::array<std::uint64_t, kVcpusMax> tsc_bound_ticks{};
    std::array<std::int64_t, kVcpusMax> tsc_seam_ticks{};
    std::optional<std::uint64_t> kvmclock_bound_ns;
    std::uint64_t kvmclock_at_resume = 0;
    std::int64_t kvmclock_seam_ns = 0;
    std::int64_t gap_ns = 0;
    std::uint64_t gap_bound_ns = 0;
    state::ElapsedBy elapsed_by{};
    state::RateChoice rate{};
    bool page_believed = false;
};

class DestinationSide : public VmmSide {
  public:
    using VmmSide::VmmSide;
    /// All vCPUs are to enter when the host's counter reads this.
    void resume_at(std::uint64_t host_counter) { resume_at_ = host_counter; }
    std::optional<std::uint64_t> resume_at() const { return resume_at_; }
    void certify(const Certified& certified) { certified_ = certified; }
    const std::optional<Certified>& certified() const { return certified_; }
    /// Tells the guest; delta: how far its REALTIME lags.
    void publish(std::int64_t delta_ns, std::int64_t gap_ns, std::uint64_t sequence);
    bool published() const { return published_; }
    /// The plan that was carried out last.
    void keep(state::Plan&& plan) { plan_ = std::move(plan); }
    const std::optional<state::Plan>& plan() const { return plan_; }

  private:
    std::optional<std::uint64_t> resume_at_;
    std::optional<Certified> certified_;
    std::optional<state::Plan> plan_;
    bool published_ = false;
};

}  // namespace continuo::sim
