#include "interrupt_controller.h"

#include <linux/kvm.h>

#include "continuo/abi/arm64.h"
#include "continuo/vmm/arm64_board.h"

namespace continuo::vmm::arm64 {

namespace {

using state::Result;
using state::Status;

// ---- Where the registers are: Arm's IHI 0069, 12.8 to 12.11; of the SPIs the first 32 ----

constexpr std::uint32_t kDistributorControl = 0x0000;
constexpr std::uint32_t kImplementer = 0x0008;
constexpr std::uint32_t kGroup = 0x0080;  // of both frames, as the five that follow
constexpr std::uint32_t kEnable = 0x0100;
constexpr std::uint32_t kPending = 0x0200;
constexpr std::uint32_t kActive = 0x0300;
constexpr std::uint32_t kPriority = 0x0400;
constexpr std::uint32_t kConfig = 0x0c00;
constexpr std::uint32_t kRoute = 0x6000;
constexpr std::uint32_t kSgiFrame = 0x1'0000;  // of a redistributor

/// Bytes from the first interrupt's bits to the first SPI's, in an array with so many for each.
constexpr std::uint32_t to_spis(std::uint32_t bits) {
    return kFirstSpi * bits / 8;
}

/// The encoding that KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS wants.
constexpr std::uint64_t instruction(std::uint32_t crm, std::uint32_t op2, std::uint32_t crn = 12) {
    return abi::arm64_sysreg(3, 0, crn, crm, op2) & 0xffff;
}
constexpr std::uint64_t kPriorityMask = instruction(6, 0, 4);
constexpr std::uint64_t kBinaryPoint[2] = {instruction(8, 3), instruction(12, 3)};
constexpr std::uint64_t kActivePriorities[2] = {instruction(8, 4), instruction(9, 0)};
constexpr std::uint64_t kInterfaceControl = instruction(12, 4);
constexpr std::uint64_t kSystemRegisters = instruction(12, 5);
constexpr std::uint64_t kGroupEnable[2] = {instruction(12, 6), instruction(12, 7)};

constexpr std::uint64_t of_vcpu(std::uint32_t vcpu) {
    return std::uint64_t{affinity(vcpu)} << KVM_DEV_ARM_VGIC_V3_MPIDR_SHIFT;
}

constexpr std::uint64_t kLineLevel = std::uint64_t{VGIC_LEVEL_INFO_LINE_LEVEL}
                                     << KVM_DEV_ARM_VGIC_LINE_LEVEL_INFO_SHIFT;

// ---- One walk over the registers for both ways ----

/// Reads each register that it is shown into the word.
class Saving {
  public:
    explicit Saving(const kvm::Device& device) : device_{device} {}
    void word(std::uint32_t group, std::uint64_t attribute, std::uint32_t& value) {
        take(device_.attribute_u32(group, attribute), value);
    }
    void wide(std::uint64_t attribute, std::uint64_t& value) {
        take(device_.attribute_u64(KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, attribute), value);
    }
    Status status = {};

  private:
    template <class T>
    void take(Result<T> read, T& value) {
        if (!status) return;
        if (read)
            value = *read;
        else
            status = tl::unexpected(std::move(read.error()));
    }
    const kvm::Device& device_;
};

/// Writes the word into each register that it is shown.
class Loading {
  public:
    explicit Loading(kvm::Device& device) : device_{device} {}
    void word(std::uint32_t group, std::uint64_t attribute, std::uint32_t value) {
        if (status) status = device_.set_attribute_u32(group, attribute, value);
    }
    void wide(std::uint64_t attribute, std::uint64_t value) {
        if (status)
            status = device_.set_attribute_u64(KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, attribute, value);
    }
    Status status = {};

  private:
    kvm::Device& device_;
};

/// The interrupts' part that both kinds of frame have. How they are triggered comes before what is
/// pending: a line pends only an interrupt that is triggered by level.
template <class Walk, class Frame>
void walk_interrupts(Walk& walk, std::uint32_t group, std::uint64_t frame, bool spis,
                     std::uint64_t level, Frame& state) {
    const auto at = [&](std::uint32_t array, std::uint32_t bits, std::size_t index) {
        return frame + array + (spis ? to_spis(bits) : 0) + 4 * index;
    };
    walk.word(group, at(kGroup, 1, 0), state.group);
    for (std::size_t i = 0; i < std::size(state.config); ++i)
        walk.word(group, at(kConfig, 2, i), state.config[i]);
    for (std::size_t i = 0; i < std::size(state.priority); ++i)
        walk.word(group, at(kPriority, 8, i), state.priority[i]);
    walk.word(group, at(kEnable, 1, 0), state.enabled);
    walk.word(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, level, state.level);
    walk.word(group, at(kPending, 1, 0), state.pending);
    walk.word(group, at(kActive, 1, 0), state.active);
}

template <class Walk, class State>
void walk_distributor(Walk& walk, State& state) {
    constexpr std::uint32_t kGroupOfAttributes = KVM_DEV_ARM_VGIC_GRP_DIST_REGS;
    // First, so that this kernel behaves as the source's did, or says that it cannot.
    walk.word(kGroupOfAttributes, kImplementer, state.implementer);
    walk.word(kGroupOfAttributes, kDistributorControl, state.control);
    for (std::size_t i = 0; i < std::size(state.route); ++i)
        walk.word(kGroupOfAttributes, kRoute + to_spis(64) + 8 * i, state.route[i]);
    walk_interrupts(walk, kGroupOfAttributes, 0, true, kLineLevel | kFirstSpi, state);
}

template <class Walk, class State>
void walk_redistributor(Walk& walk, std::uint32_t vcpu, State& state) {
    walk_interrupts(walk, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, of_vcpu(vcpu) | kSgiFrame, false,
                    of_vcpu(vcpu) | kLineLevel, state);
}

template <class Walk, class State>
void walk_cpu_interface(Walk& walk, std::uint32_t vcpu, State& state) {
    const std::uint64_t self = of_vcpu(vcpu);
    walk.wide(self | kSystemRegisters, state.sre);
    // KVM compares what it can with what the guest was told; and with its CBPR it decides what the
    // binary points mean.
    walk.wide(self | kInterfaceControl, state.control);
    walk.wide(self | kPriorityMask, state.priority_mask);
    for (std::size_t group = 0; group < 2; ++group) {
        walk.wide(self | kGroupEnable[group], state.group_enable[group]);
        walk.wide(self | kBinaryPoint[group], state.binary_point[group]);
        for (std::uint32_t i = 0; i < active_priority_words(state.control); ++i)
            walk.wide(self | (kActivePriorities[group] + i), state.active_priorities[group][i]);
    }
}

}  // namespace

Result<Gic> Gic::create(const kvm::Vm& vm) {
    return kvm::Device::create(vm, KVM_DEV_TYPE_ARM_VGIC_V3).map([](kvm::Device&& device) {
        return Gic{std::move(device)};
    });
}

Status Gic::initialise() {
    const auto place = [&](std::uint64_t what, std::uint64_t gpa) {
        return device_.set_attribute_u64(KVM_DEV_ARM_VGIC_GRP_ADDR, what, gpa);
    };
    if (auto done = place(KVM_VGIC_V3_ADDR_TYPE_DIST, kDistributor); !done) return done;
    if (auto done = place(KVM_VGIC_V3_ADDR_TYPE_REDIST, kRedistributors); !done) return done;
    if (auto done = device_.set_attribute_u32(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, kInterrupts); !done)
        return done;
    return device_.command(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT);
}

Result<GicState> Gic::save(std::uint32_t vcpus) const {
    GicState state;
    state.vcpus.resize(vcpus);
    Saving walk{device_};
    walk_distributor(walk, state.distributor);
    for (std::uint32_t i = 0; i < vcpus; ++i) {
        walk_redistributor(walk, i, state.vcpus[i].redistributor);
        walk_cpu_interface(walk, i, state.vcpus[i].cpu_interface);
    }
    if (!walk.status) return tl::unexpected(std::move(walk.status.error()));
    return state;
}

Status Gic::load(const GicState& state) {
    Loading walk{device_};
    walk_distributor(walk, state.distributor);
    for (std::uint32_t i = 0; i < state.vcpus.size(); ++i) {
        walk_redistributor(walk, i, state.vcpus[i].redistributor);
        walk_cpu_interface(walk, i, state.vcpus[i].cpu_interface);
    }
    return walk.status;
}

}  // namespace continuo::vmm::arm64
