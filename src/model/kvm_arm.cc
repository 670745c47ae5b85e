#include "continuo/model/kvm_arm.h"

#include <fmt/format.h>

#include <cerrno>

#include "continuo/time/line.h"

namespace continuo::model {

namespace {

using state::ErrorCode;

/// CNTV_CTL_EL0 and CNTP_CTL_EL0.
constexpr std::uint32_t kEnable = 1U << 0;
constexpr std::uint32_t kMask = 1U << 1;
constexpr std::uint32_t kStatus = 1U << 2;

enum class Field : std::uint8_t { kCtl, kCount, kCval };

struct TimerRegister {
    ArmTimer timer;
    Field field;
};

std::optional<TimerRegister> timer_register(std::uint64_t id) {
    switch (id) {
        case abi::kKVM_REG_ARM_TIMER_CTL:
            return TimerRegister{ArmTimer::kVirtual, Field::kCtl};
        case abi::kKVM_REG_ARM_TIMER_CNT:
            return TimerRegister{ArmTimer::kVirtual, Field::kCount};
        case abi::kKVM_REG_ARM_TIMER_CVAL:
            return TimerRegister{ArmTimer::kVirtual, Field::kCval};
        case abi::kKVM_REG_ARM_PTIMER_CTL:
            return TimerRegister{ArmTimer::kPhysical, Field::kCtl};
        case abi::kKVM_REG_ARM_PTIMER_CNT:
            return TimerRegister{ArmTimer::kPhysical, Field::kCount};
        case abi::kKVM_REG_ARM_PTIMER_CVAL:
            return TimerRegister{ArmTimer::kPhysical, Field::kCval};
        default:
            return std::nullopt;
    }
}

/// Before Linux 6.4 the physical counter's register does not exist.
std::optional<TimerRegister> register_of(std::uint64_t id, const ArmRules& rules) {
    const auto found = timer_register(id);
    const bool newer =
        found && found->timer == ArmTimer::kPhysical && found->field == Field::kCount;
    if (newer && !rules.counter_offset) return std::nullopt;
    return found;
}

tl::unexpected<state::Error> no_such_register(std::uint64_t id) {
    return state::fail(ErrorCode::kUnsupported, fmt::format("register {:#x}", id),
                       "this kernel has none of that number", "use a timer register it lists",
                       ENOENT);
}

std::size_t index(ArmTimer timer) {
    return static_cast<std::size_t>(timer);
}

}  // namespace

ArmRules ArmRules::linux(unsigned major, unsigned minor) {
    return {major > 6 || (major == 6 && minor >= 4)};
}

std::uint32_t ArmHost::cntfrq_of(unsigned cpu) const {
    const std::uint32_t written = cntfrq[cpu % kCpus];
    return written != 0 ? written : static_cast<std::uint32_t>(frequency.hz());
}

std::uint64_t ArmHost::realtime_ns(std::uint64_t at) const {
    using Count = time::Count<time::HostCounter>;
    const auto line = time::clock_line(
        Count{}, time::Instant<time::Realtime>::from_raw(boot_realtime_ns), frequency);
    return line.at(Count::from_raw(at)).raw();
}

KvmArm::KvmArm(ArmHost& host, ArmRules rules, bool guest_is_protected)
    : host_{host}, rules_{rules}, guest_is_protected_{guest_is_protected} {}

Status KvmArm::known(unsigned vcpu) const {
    if (vcpu < vcpus_) return {};
    return state::fail(ErrorCode::kInvalidArgument, fmt::format("vCPU {}", vcpu),
                       fmt::format("the VM has {}", vcpus_));
}

Result<unsigned> KvmArm::create_vcpu() {
    if (vcpus_ == kVcpusMax)
        return state::fail(ErrorCode::kInvalidArgument, "KVM_CREATE_VCPU",
                           fmt::format("the VM has {} vCPUs, as many as it can", vcpus_), {},
                           EINVAL);
    if (!offset_was_set_ && !guest_is_protected_) {
        voffset_ = host_.counter;
        poffset_ = 0;
    }
    return vcpus_++;
}

bool KvmArm::any_running() const {
    for (unsigned i = 0; i < vcpus_; ++i)
        if (vcpu_[i].running) return true;
    return false;
}

Status KvmArm::set_counter_offset(const abi::kvm_arm_counter_offset& offset) {
    constexpr const char* kCall = "KVM_ARM_SET_COUNTER_OFFSET";
    if (!rules_.counter_offset)
        return state::fail(ErrorCode::kUnsupported, kCall, "this kernel has no such call",
                           "restore the counter by value, through KVM_REG_ARM_TIMER_CNT", ENOTTY);
    if (offset.reserved != 0)
        return state::fail(ErrorCode::kInvalidArgument, kCall,
                           fmt::format("reserved is {:#x}", offset.reserved), "set it to 0",
                           EINVAL);
    if (guest_is_protected_)
        return state::fail(ErrorCode::kInvalidArgument, kCall,
                           "the guest is protected, and its counters are the host's",
                           "run it unprotected where it is to move", EINVAL);
    if (any_running())
        return state::fail(ErrorCode::kBusy, kCall, "a vCPU is in KVM_RUN",
                           "stop all vCPUs before their counter is moved", EBUSY);
    offset_was_set_ = true;
    voffset_ = offset.counter_offset;
    poffset_ = offset.counter_offset;
    return {};
}

Status KvmArm::set_one_reg(unsigned vcpu, std::uint64_t id, std::uint64_t value) {
    if (Status is = known(vcpu); !is) return is;
    const auto reg = register_of(id, rules_);
    if (!reg) return no_such_register(id);
    Timer& timer = vcpu_[vcpu].timers[index(reg->timer)];
    switch (reg->field) {
        case Field::kCtl:
            timer.ctl = static_cast<std::uint32_t>(value) & ~kStatus;
            return {};
        case Field::kCval:
            timer.cval = value;
            return {};
        case Field::kCount:
            break;
    }
    if (offset_was_set_ || guest_is_protected_) return {};
    (reg->timer == ArmTimer::kVirtual ? voffset_ : poffset_) = host_.counter - value;
    return {};
}

Result<std::uint64_t> KvmArm::one_reg(unsigned vcpu, std::uint64_t id) const {
    if (Status is = known(vcpu); !is) return tl::unexpected(is.error());
    const auto reg = register_of(id, rules_);
    if (!reg) return no_such_register(id);
    const Timer& timer = vcpu_[vcpu].timers[index(reg->timer)];
    switch (reg->field) {
        case Field::kCtl:
            return timer.ctl | (timer_due(vcpu, reg->timer) ? kStatus : 0);
        case Field::kCval:
            return timer.cval;
        case Field::kCount:
            break;
    }
    return host_.counter - offset_of(reg->timer);
}

const std::uint64_t& KvmArm::offset_of(ArmTimer timer) const {
    return timer == ArmTimer::kVirtual ? voffset_ : poffset_;
}

KvmArm::Loaded KvmArm::load() const {
    Loaded loaded{voffset_, poffset_, PhysicalAccess::kNative};
    const bool moved = poffset_ != 0 && host_.mode != ArmMode::kProtected;
    if (!moved) return loaded;
    const bool subtracts = host_.mode == ArmMode::kVhe && host_.ecv_cntpoff;
    loaded.access = subtracts ? PhysicalAccess::kCntpoff : PhysicalAccess::kTrapped;
    return loaded;
}

void KvmArm::enter(unsigned vcpu, unsigned cpu) {
    Vcpu& entered = vcpu_[vcpu];
    entered.cpu = cpu;
    entered.loaded = load();
    entered.running = true;
}

void KvmArm::exit(unsigned vcpu) {
    vcpu_[vcpu].running = false;
}

std::uint64_t KvmArm::guest_cntvct(unsigned vcpu) const {
    return host_.counter - seen_by(vcpu_[vcpu]).voffset;
}

std::uint64_t KvmArm::guest_cntpct(unsigned vcpu) const {
    const Loaded seen = seen_by(vcpu_[vcpu]);
    switch (seen.access) {
        case PhysicalAccess::kNative:
            return host_.counter;
        case PhysicalAccess::kCntpoff:
            return host_.counter - (host_.cntpoff_without_effect ? 0 : seen.poffset);
        case PhysicalAccess::kTrapped:
            break;
    }
    return host_.counter - poffset_;
}

PhysicalAccess KvmArm::physical_access(unsigned vcpu) const {
    return seen_by(vcpu_[vcpu]).access;
}

std::uint32_t KvmArm::guest_cntfrq(unsigned vcpu) const {
    return host_.cntfrq_of(vcpu_[vcpu].cpu);
}

bool KvmArm::timer_due(unsigned vcpu, ArmTimer which) const {
    const Timer& timer = vcpu_[vcpu].timers[index(which)];
    const bool armed = (timer.ctl & (kEnable | kMask)) == kEnable;
    return armed && timer.cval <= host_.counter - offset_of(which);
}

std::optional<std::array<std::uint64_t, 4>> KvmArm::ptp(std::uint32_t which) const {
    if (!host_.arch_counter_clocksource) return std::nullopt;
    if (which != abi::kKVM_PTP_VIRT_COUNTER && which != abi::kKVM_PTP_PHYS_COUNTER)
        return std::nullopt;
    const std::uint64_t offset = which == abi::kKVM_PTP_VIRT_COUNTER ? voffset_ : poffset_;
    const std::uint64_t count = host_.counter - offset;
    const std::uint64_t real = host_.realtime_ns(host_.counter);
    return std::array<std::uint64_t, 4>{real >> 32, real & 0xffff'ffffU, count >> 32,
                                        count & 0xffff'ffffU};
}

}  // namespace continuo::model
