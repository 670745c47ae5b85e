#include "kvm_subject.h"

#include <sched.h>

#include <cerrno>
#include <ctime>
#include <span>

#include "continuo/abi/msr.h"
#include "continuo/kvm/counter.h"
#include "continuo/kvm/fd.h"
#include "continuo/kvm/settle.h"

namespace continuo::differential {

namespace {

Result<std::vector<std::size_t>> usable_cpus() {
    cpu_set_t may;
    CPU_ZERO(&may);
    if (::sched_getaffinity(0, sizeof may, &may) != 0)
        return kvm::kernel_failure("sched_getaffinity", errno);
    std::vector<std::size_t> cpus;
    for (std::size_t cpu = 0; cpu < CPU_SETSIZE; ++cpu)
        if (CPU_ISSET(cpu, &may)) cpus.push_back(cpu);
    return cpus;
}

/// The calling thread runs only on these from here on.
Status bind_to(std::span<const std::size_t> cpus) {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (const std::size_t cpu : cpus)
        CPU_SET(cpu, &set);
    if (::sched_setaffinity(0, sizeof set, &set) != 0)
        return kvm::kernel_failure("sched_setaffinity", errno);
    return {};
}

/// A refusal by the kernel is an answer; anything else ends the run.
Status answer(const Status& done, Step& step) {
    if (done) return {};
    if (done.error().sys_errno == 0) return done;
    step.error = done.error().sys_errno;
    return {};
}

}  // namespace

Result<std::unique_ptr<KvmSubject>> KvmSubject::open(std::uint32_t host_khz) {
    auto cpus = usable_cpus();
    if (!cpus) return tl::unexpected(cpus.error());
    auto system = kvm::System::open();
    if (!system) return tl::unexpected(system.error());
    return std::unique_ptr<KvmSubject>{
        new KvmSubject{std::move(*system), host_khz, std::move(*cpus)}};
}

std::uint64_t KvmSubject::now() {
    return kvm::host_counter().raw();
}

RealtimeAnchor KvmSubject::realtime() {
    RealtimeAnchor anchor;
    timespec now_ts{};
    anchor.at.before = now();
    ::clock_gettime(CLOCK_REALTIME, &now_ts);
    anchor.at.after = now();
    anchor.ns = now_ts.tv_sec * 1'000'000'000 + now_ts.tv_nsec;
    return anchor;
}

KvmSubject::~KvmSubject() {
    if (letting_go_.joinable()) letting_go_.join();
}

void KvmSubject::let_go() {
    if (letting_go_.joinable()) letting_go_.join();
    if (!vm_) return;
    letting_go_ = std::thread{[old = std::move(vm_), this]() mutable {
        (void)bind_to(cpus_);
        old.reset();
    }};
}

Result<Bracket> KvmSubject::create() {
    let_go();
    vcpus_ = 0;
    // The model's VM is made on CPU 0, and this one on its first.
    if (auto bound = bind_to(std::span{cpus_}.first(1)); !bound)
        return tl::unexpected(bound.error());
    Bracket at;
    at.before = now();
    auto made = kvm::ProbeVm::create(system_, 0, false);
    at.after = now();
    if (!made) return tl::unexpected(made.error());
    vm_ = std::move(*made);
    return at;
}

Status KvmSubject::try_guest(Abilities& abilities) {
    if (auto made = create(); !made) return tl::unexpected(made.error());
    if (auto added = vm_->add_vcpu(); !added) return added;
    abilities.cpus = static_cast<unsigned>(cpus_.size());
    abilities.guest_runs = vm_->guest_rdtsc(0).has_value();
    abilities.guest_msrs =
        abilities.guest_runs && vm_->guest_wrmsr(0, abi::kMSR_IA32_TSC_ADJUST, 0).has_value();
    abilities.hypercalls =
        abilities.guest_runs && vm_->guest_hypercall(0, abi::kKVM_HC_CLOCK_PAIRING, kPairingGpa,
                                                     abi::kKVM_CLOCK_PAIRING_WALLCLOCK)
                                    .has_value();
    return {};
}

Result<bool> KvmSubject::system_time_write_stores() {
    if (auto made = create(); !made) return tl::unexpected(made.error());
    Act act;
    act.kind = OpKind::kCreateVcpu;
    auto last = perform(act);
    act.kind = OpKind::kSystemTime;
    act.msr = abi::kMSR_KVM_SYSTEM_TIME_NEW;
    act.value = kPageGpa | abi::kKVM_MSR_ENABLED;
    if (last) last = perform(act);
    Act settle;
    if (last) last = perform(settle);
    if (!last) return tl::unexpected(last.error());
    const std::uint32_t before = last->after.vcpu[0].pages[0].version;
    last = perform(act);
    if (!last) return tl::unexpected(last.error());
    return last->after.vcpu[0].pages[0].version != before;
}

Result<VcpuView> KvmSubject::look_at(unsigned vcpu) {
    VcpuView view;
    kvm::Vcpu& cpu = vm_->vcpu(vcpu);
    const auto offset = cpu.tsc_offset();
    if (!offset) return tl::unexpected(offset.error());
    const auto khz = cpu.tsc_khz();
    if (!khz) return tl::unexpected(khz.error());
    kvm::MsrBatch batch;
    batch.add(abi::kMSR_IA32_TSC_ADJUST);
    batch.add(abi::kMSR_KVM_SYSTEM_TIME_NEW);
    if (auto read = cpu.get_msrs(batch); !read) return tl::unexpected(read.error());
    view.offset = *offset;
    view.khz = *khz;
    view.adjust = batch.data(0);
    view.system_time = batch.data(1);
    for (unsigned other = 0; other < 2; ++other) {
        const auto page =
            vm_->memory().read_object<abi::pvclock_vcpu_time_info>(page_gpa(vcpu, other != 0));
        if (!page) return tl::unexpected(page.error());
        view.pages[other] = *page;
    }
    return view;
}

Result<View> KvmSubject::look() {
    View view;
    view.vcpus = vcpus_;
    const auto vm_khz = vm_->vm().tsc_khz();
    if (!vm_khz) return tl::unexpected(vm_khz.error());
    view.vm_khz = *vm_khz;
    for (unsigned i = 0; i < vcpus_; ++i) {
        auto vcpu = look_at(i);
        if (!vcpu) return tl::unexpected(vcpu.error());
        view.vcpu[i] = *vcpu;
    }
    const auto wall = vm_->memory().read_object<abi::pvclock_wall_clock>(kWallGpa);
    if (!wall) return tl::unexpected(wall.error());
    view.wall = *wall;
    view.clock_at.before = now();
    const auto clock = vm_->vm().get_clock();
    view.clock_at.after = now();
    if (!clock) return tl::unexpected(clock.error());
    view.clock = {clock->clock, clock->flags, 0, clock->realtime, clock->host_tsc, {}};
    return view;
}

Status KvmSubject::clear_stopped(unsigned vcpu) {
    const auto msr = vm_->vcpu(vcpu).msr(abi::kMSR_KVM_SYSTEM_TIME_NEW);
    if (!msr) return tl::unexpected(msr.error());
    if (*msr == 0) return {};
    auto page = vm_->memory().read_object<abi::pvclock_vcpu_time_info>(abi::system_time_gpa(*msr));
    if (!page) return tl::unexpected(page.error());
    page->flags = static_cast<std::uint8_t>(page->flags & ~abi::kPVCLOCK_GUEST_STOPPED);
    return vm_->memory().write_object(abi::system_time_gpa(*msr), *page);
}

Status KvmSubject::wait(std::uint64_t us) {
    timespec duration{};
    duration.tv_sec = static_cast<time_t>(us / 1'000'000);
    duration.tv_nsec = static_cast<long>(us % 1'000'000 * 1000);
    if (::nanosleep(&duration, nullptr) != 0 && errno != EINTR)
        return kvm::kernel_failure("nanosleep", errno);
    return {};
}

Status KvmSubject::guest_acts(const Act& act, Step& step) {
    if (act.kind == OpKind::kGuestReadTsc) {
        const auto read = vm_->guest_rdtsc(act.vcpu);
        if (!read) return tl::unexpected(read.error());
        step.answer = read->value.raw();
        return {};
    }
    if (act.kind == OpKind::kClockPairing) {
        const auto said = vm_->guest_hypercall(act.vcpu, abi::kKVM_HC_CLOCK_PAIRING, kPairingGpa,
                                               abi::kKVM_CLOCK_PAIRING_WALLCLOCK);
        if (!said) return tl::unexpected(said.error());
        step.answer = *said;
        const auto pairing = vm_->memory().read_object<abi::kvm_clock_pairing>(kPairingGpa);
        if (!pairing) return tl::unexpected(pairing.error());
        step.pairing = *pairing;
        return {};
    }
    return vm_->guest_wrmsr(act.vcpu, act.msr, act.value);
}

Status KvmSubject::act_on(const Act& act, Step& step) {
    switch (act.kind) {
        case OpKind::kCreateVcpu: {
            if (auto added = vm_->add_vcpu(); !added) return added;
            ++vcpus_;
            return {};
        }
        case OpKind::kSetOffset:
            return answer(vm_->vcpu(act.vcpu).set_tsc_offset(act.value), step);
        case OpKind::kWriteTsc:
        case OpKind::kWriteAdjust:
        case OpKind::kSystemTime:
        case OpKind::kWallClock:
            return vm_->vcpu(act.vcpu).set_msr(act.msr, act.value);
        case OpKind::kReadTsc: {
            const auto read = vm_->vcpu(act.vcpu).msr(abi::kMSR_IA32_TSC);
            if (!read) return tl::unexpected(read.error());
            step.answer = *read;
            return {};
        }
        case OpKind::kSetKhz:
            return answer(vm_->vcpu(act.vcpu).set_tsc_khz(static_cast<std::uint32_t>(act.value)),
                          step);
        case OpKind::kSetClock:
        case OpKind::kHandBack:
        case OpKind::kSetClockReal:
        case OpKind::kSetClockBad: {
            kvm_clock_data data{};
            data.clock = act.clock.clock;
            data.flags = act.clock.flags;
            data.realtime = act.clock.realtime;
            data.host_tsc = act.clock.host_tsc;
            return answer(vm_->vm().set_clock(data), step);
        }
        case OpKind::kSetVmKhz:
            return answer(vm_->vm().set_tsc_khz(static_cast<std::uint32_t>(act.value)), step);
        case OpKind::kMoveToCpu:
            return bind_to(std::span{cpus_}.subspan(act.value % cpus_.size(), 1));
        case OpKind::kStopped:
            return answer(vm_->vcpu(act.vcpu).kvmclock_ctrl(), step);
        case OpKind::kClearStopped:
            return clear_stopped(act.vcpu);
        case OpKind::kSettle:
            return kvm::settle_vcpu(vm_->vcpu(act.vcpu));
        case OpKind::kWait:
            return wait(act.value);
        default:
            return guest_acts(act, step);
    }
}

Result<Step> KvmSubject::perform(const Act& act) {
    Step step;
    step.act = act;
    step.at.before = now();
    Status done = act_on(act, step);
    step.at.after = now();
    if (!done) return tl::unexpected(done.error());
    auto view = look();
    if (!view) return tl::unexpected(view.error());
    step.after = *view;
    return step;
}

}  // namespace continuo::differential
