#include "continuo/vmm/vm_state.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "interrupt_controller.h"
#include "serial.h"
#include "time_devices.h"

namespace continuo::vmm {

namespace {

using state::ErrorCode;

Status save_registers(const kvm::Vcpu& vcpu, VcpuState& state) {
    const auto ids = vcpu.reg_list();
    if (!ids) return tl::unexpected(ids.error());
    state.registers.reserve(ids->size());
    for (const std::uint64_t id : *ids) {
        if (arm64::owned_by_clock_record(id)) continue;
        arm64::Register one{id, std::vector<std::byte>(arm64::register_bytes(id))};
        if (auto read = vcpu.get_one_reg(id, one.value); !read) return read;
        state.registers.push_back(std::move(one));
    }
    return {};
}

Result<VcpuState> save_vcpu(const kvm::Vcpu& vcpu) {
    VcpuState state;
    const auto mp_state = vcpu.mp_state();
    if (!mp_state) return tl::unexpected(mp_state.error());
    state.mp_state = mp_state->mp_state;
    const auto events = vcpu.events();
    if (!events) return tl::unexpected(events.error());
    static_assert(sizeof state.events == sizeof *events);
    std::memcpy(&state.events, &*events, sizeof state.events);
    if (auto saved = save_registers(vcpu, state); !saved)
        return tl::unexpected(std::move(saved.error()));
    return state;
}

/// Is the refused register what the vCPU has already? Then nothing is lost.
bool has_value(const kvm::Vcpu& vcpu, const arm64::Register& wanted) {
    std::vector<std::byte> now(wanted.value.size());
    return vcpu.get_one_reg(wanted.id, now) && now == wanted.value;
}

Status register_refused(const kvm::Vcpu& vcpu, const arm64::Register& wanted, int sys_errno) {
    std::uint64_t value = 0;
    std::memcpy(&value, wanted.value.data(), std::min(wanted.value.size(), sizeof value));
    char text[112];
    std::snprintf(text, sizeof text, "vCPU %u: KVM_SET_ONE_REG of 0x%016llx to 0x%llx", vcpu.id(),
                  static_cast<unsigned long long>(wanted.id),
                  static_cast<unsigned long long>(value));
    return state::fail(ErrorCode::kKernel, text, "this host does not take the guest's value",
                       "the hosts' CPUs or kernels differ in what they offer the guest", sys_errno);
}

Status load_register(kvm::Vcpu& vcpu, const arm64::Register& one) {
    const Status set = vcpu.set_one_reg(one.id, one.value);
    if (set || has_value(vcpu, one)) return {};
    return register_refused(vcpu, one, set.error().sys_errno);
}

Status load_registers(kvm::Vcpu& vcpu, const VcpuState& state, bool timers) {
    for (const arm64::Register& one : state.registers) {
        if (arm64::belongs_to_timer(one.id) != timers) continue;
        if (auto loaded = load_register(vcpu, one); !loaded) return loaded;
    }
    return {};
}

Status check_shape(VirtualMachine& machine, const VmState& state) {
    if (machine.vcpus().size() != state.vcpus.size()) {
        return state::fail(ErrorCode::kInvalidArgument, "vCPU state",
                           std::to_string(state.vcpus.size()) + " vCPUs for a VM that has " +
                               std::to_string(machine.vcpus().size()));
    }
    if (state.gic.has_value() != (machine.board().gic() != nullptr)) {
        return state::fail(ErrorCode::kInvalidArgument, "interrupt controller",
                           state.gic ? "state of one for a VM that has none"
                                     : "no state of one for a VM that has a GICv3");
    }
    return {};
}

Status load_time_devices(VirtualMachine& machine, const VmState& state) {
    const arm64::GuestPages pages = arm64::pages_of(machine);
    arm64::TimeDevices& devices = machine.board().time_devices();
    if (state.notice) {
        auto device = NoticeDevice::restore(devices.notice_wiring(pages), *state.notice);
        if (!device) return tl::unexpected(std::move(device.error()));
        devices.add(std::move(*device));
    }
    if (state.vmclock) {
        auto device = VmclockDevice::create(devices.vmclock_wiring(pages), *state.vmclock);
        if (!device) return tl::unexpected(std::move(device.error()));
        devices.add(std::move(*device));
    }
    return {};
}

Status load_vcpu(kvm::Vcpu& vcpu, const VcpuState& state) {
    if (auto loaded = load_registers(vcpu, state, false); !loaded) return loaded;
    kvm_vcpu_events events{};
    std::memcpy(&events, &state.events, sizeof events);
    if (auto set = vcpu.set_events(events); !set) return set;
    return vcpu.set_mp_state(kvm_mp_state{state.mp_state});
}

}  // namespace

Result<VmState> save_state(VirtualMachine& machine, const kvm::System&) {
    VmState state;
    for (const kvm::Vcpu& vcpu : machine.vcpus()) {
        auto saved = save_vcpu(vcpu);
        if (!saved) return tl::unexpected(std::move(saved.error()));
        state.vcpus.push_back(std::move(*saved));
    }
    state.serial = machine.board().serial().state();
    if (NoticeDevice* notice = machine.board().notice()) state.notice = notice->save();
    if (VmclockDevice* vmclock = machine.board().vmclock()) state.vmclock = vmclock->save();
    if (const arm64::Gic* gic = machine.board().gic()) {
        auto saved = gic->save(machine.config().vcpus);
        if (!saved) return tl::unexpected(std::move(saved.error()));
        state.gic = std::move(*saved);
    }
    return state;
}

Status load_state(VirtualMachine& machine, const VmState& state) {
    if (auto fits = check_shape(machine, state); !fits) return fits;
    if (state.gic) {
        if (auto done = machine.board().gic()->load(*state.gic); !done) return done;
    }
    // After the interrupt controller, whose input it moves.
    machine.board().serial().load(state.serial);
    if (auto done = load_time_devices(machine, state); !done) return done;
    for (std::size_t i = 0; i < state.vcpus.size(); ++i) {
        if (auto done = load_vcpu(machine.vcpus()[i], state.vcpus[i]); !done) return done;
    }
    // A vCPU's first KVM_RUN takes milliseconds, which the common entry would be late by. Only now:
    // some registers take no value any more after it.
    return machine.on_all_vcpu_threads([](kvm::Vcpu& vcpu) { return kvm::claim_vcpu(vcpu); });
}

Status arm_timers(VirtualMachine& machine, const VmState& state) {
    for (std::size_t i = 0; i < state.vcpus.size() && i < machine.vcpus().size(); ++i) {
        if (auto done = load_registers(machine.vcpus()[i], state.vcpus[i], true); !done)
            return done;
    }
    return {};
}

}  // namespace continuo::vmm
