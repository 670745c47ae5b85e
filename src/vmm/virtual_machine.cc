#include "continuo/vmm/virtual_machine.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <system_error>

#include "continuo/kvm/counter.h"
#include "continuo/vmm/confinement.h"
#include "continuo/vmm/witness_abi.h"

namespace continuo::vmm {

namespace {

using state::ErrorCode;

constexpr auto kStopTimeout = std::chrono::seconds{10};

int kick_signal() {
    return SIGRTMIN + 2;
}

/// The kick's handler does nothing: the signal's arrival makes KVM_RUN return.
void install_kick_handler() {
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction action {};
        action.sa_handler = [](int) {};
        sigemptyset(&action.sa_mask);
        sigaction(kick_signal(), &action, nullptr);
    });
}

void unblock_kick() {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, kick_signal());
    pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

bool holds_witness(const kvm::GuestMemory& memory) {
    const auto magic = memory.load<std::uint64_t>(witness::kControl);
    return magic && *magic == witness::kMagic;
}

std::string vcpu_name(std::uint32_t index) {
    return "vCPU " + std::to_string(index);
}

}  // namespace

Status check(const VmConfig& config) {
    if (config.vcpus == 0 || config.vcpus > kVcpusMax) {
        return state::fail(ErrorCode::kInvalidArgument, "vcpus",
                           std::to_string(config.vcpus) + " vCPUs; a VM has 1 to 64");
    }
    if (config.memory_bytes < kMemoryMin || config.memory_bytes > kMemoryMax ||
        config.memory_bytes % kvm::kPageSize != 0) {
        return state::fail(ErrorCode::kInvalidArgument, "memory",
                           std::to_string(config.memory_bytes) + " bytes; a VM has 4 MiB to " +
                               std::to_string(kMemoryMax >> 30) + " GiB in whole pages");
    }
    return {};
}

Result<std::unique_ptr<VirtualMachine>> VirtualMachine::create(const kvm::System& system,
                                                               const VmConfig& config) {
    auto model = host_cpu_model(system, config);
    if (!model) return tl::unexpected(std::move(model.error()));
    return create(system, config, *model);
}

Result<std::unique_ptr<VirtualMachine>> VirtualMachine::create(const kvm::System& system,
                                                               const VmConfig& config,
                                                               const CpuModel& model,
                                                               CounterControl control) {
    if (auto valid = check(config); !valid) return tl::unexpected(std::move(valid.error()));
    const auto offered = host_cpu_model(system, config);
    if (!offered) return tl::unexpected(offered.error());
    if (auto able = check_cpu_model(model, *offered); !able)
        return tl::unexpected(std::move(able.error()));
    install_kick_handler();
    std::unique_ptr<VirtualMachine> machine{new VirtualMachine};
    machine->config_ = config;
    machine->model_ = model;
    if (auto done = machine->set_up(system, control); !done)
        return tl::unexpected(std::move(done.error()));
    if (auto done = machine->start_threads(); !done) return tl::unexpected(std::move(done.error()));
    return machine;
}

Status VirtualMachine::set_up(const kvm::System& system, CounterControl control) {
    attention_ = kvm::Fd{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    if (!attention_) return kvm::kernel_failure("eventfd", errno);
    auto vm = create_vm(system, control);
    if (!vm) return tl::unexpected(std::move(vm.error()));
    vm_.emplace(std::move(*vm));
    auto memory = create_memory(config_.memory_bytes);
    if (!memory) return tl::unexpected(std::move(memory.error()));
    memory_.emplace(std::move(*memory));
    vcpus_.reserve(config_.vcpus);
    auto board = Board::create(*vm_, *memory_, config_, model_, console_, vcpus_);
    if (!board) return tl::unexpected(std::move(board.error()));
    board_ = std::move(*board);
    return {};
}

Status VirtualMachine::start_threads() {
    runners_ = std::vector<Runner>(config_.vcpus);
    try {
        for (std::uint32_t i = 0; i < config_.vcpus; ++i)
            runners_[i].thread = std::thread{[this, i] { thread_main(i); }};
    } catch (const std::system_error& error) {
        // Those that started are ended by the destructor.
        return kvm::kernel_failure("a thread for each vCPU", error.code().value(),
                                   "raise the limit of processes (ulimit -u)");
    }
    return {};
}

VirtualMachine::~VirtualMachine() {
    if (running_) (void)stop();
    {
        std::lock_guard lock{mutex_};
        phase_ = Phase::kQuit;
        stop_wanted_ = true;
        for (const kvm::Vcpu& vcpu : vcpus_)
            vcpu.set_immediate_exit(true);
    }
    for (Runner& runner : runners_)
        runner.commanded.notify_one();
    kick_all();
    for (Runner& runner : runners_)
        if (runner.thread.joinable()) runner.thread.join();
}

void VirtualMachine::thread_main(std::uint32_t index) {
    unblock_kick();
    const Status confined = confine_this_thread(Confinement::kVcpu);
    if (!confined) set_failure(confined.error());
    Runner& self = runners_[index];
    std::unique_lock lock{mutex_};
    for (;;) {
        self.commanded.wait(lock, [&] { return phase_ == Phase::kQuit || self.seen != command_; });
        if (phase_ == Phase::kQuit) return;
        self.seen = command_;
        if (phase_ == Phase::kJob) {
            const auto* job = job_;
            lock.unlock();
            Status result = (*job)(vcpus_[index]);
            lock.lock();
            self.job_result = std::move(result);
        } else if (phase_ == Phase::kRun) {
            // Under the mutex, as stop() sets it: a stop that came first is seen here, and one that
            // comes later finds immediate_exit clear and sets it. No kick is lost.
            vcpus_[index].set_immediate_exit(false);
            const std::optional<HostCount> gate = gate_;
            lock.unlock();
            if (confined) run_guest(index, gate);
            lock.lock();
        }
        if (--busy_ == 0) done_.notify_all();
    }
}

std::int64_t VirtualMachine::pass_gate(HostCount gate) const {
    for (;;) {
        const std::int64_t past = (kvm::host_counter() - gate).raw();
        if (past >= 0 || stop_wanted_.load(std::memory_order_acquire)) return past;
        if (-past > kGateSpinTicks) sched_yield();
    }
}

void VirtualMachine::run_guest(std::uint32_t index, std::optional<HostCount> gate) {
    if (gate) {
        Runner& self = runners_[index];
        const bool late = (kvm::host_counter() - *gate).raw() >= 0;
        const std::int64_t past = pass_gate(*gate);
        self.past_gate_ticks.store(past, std::memory_order_relaxed);
        self.gate.store(late ? Gate::kLate : Gate::kInTime, std::memory_order_release);
    }
    while (run_once(index)) {
    }
}

bool VirtualMachine::run_once(std::uint32_t index) {
    const auto end = vcpus_[index].run();
    if (!end) {
        set_failure(end.error());
        return false;
    }
    // A port access is finished by the next KVM_RUN, so a stop is taken only where one came back
    // with nothing left to do.
    if (*end == kvm::RunEnd::kInterrupted) return !stop_wanted_.load(std::memory_order_acquire);
    return handle_exit(index);
}

bool VirtualMachine::handle_exit(std::uint32_t index) {
    kvm_run& run = vcpus_[index].run_page();
    if (const auto access = board_.access(run)) return handle_access(index, *access);
    switch (run.exit_reason) {
        case KVM_EXIT_INTR:
        case KVM_EXIT_IRQ_WINDOW_OPEN:
            return true;
        case KVM_EXIT_SHUTDOWN:
            set_failure({ErrorCode::kGuest, vcpu_name(index),
                         "the guest shut down (triple fault)" + where_it_stands(vcpus_[index]), "",
                         0});
            set_end(GuestEnd::kReset);
            return false;
        case KVM_EXIT_SYSTEM_EVENT:
            set_failure({ErrorCode::kGuest, vcpu_name(index),
                         "the guest switched itself off or reset itself, event " +
                             std::to_string(run.system_event.type),
                         "", 0});
            return false;
        case KVM_EXIT_FAIL_ENTRY:
            set_failure({ErrorCode::kKernel, vcpu_name(index) + ": KVM_RUN",
                         "the CPU refused to enter the guest, hardware reason " +
                             std::to_string(run.fail_entry.hardware_entry_failure_reason) +
                             where_it_stands(vcpus_[index]),
                         "", 0});
            return false;
        case KVM_EXIT_INTERNAL_ERROR:
            set_failure({ErrorCode::kKernel, vcpu_name(index) + ": KVM_RUN",
                         "KVM gave up on the guest, suberror " +
                             std::to_string(run.internal.suberror) + where_it_stands(vcpus_[index]),
                         "", 0});
            return false;
        default:
            set_failure({ErrorCode::kGuest, vcpu_name(index) + ": KVM_RUN",
                         "the guest did what this VM has no device for, exit reason " +
                             std::to_string(run.exit_reason) + where_it_stands(vcpus_[index]),
                         "", 0});
            return false;
    }
}

bool VirtualMachine::handle_access(std::uint32_t index, const DeviceAccess& access) {
    switch (access.request) {
        case GuestRequest::kNone:
            return true;
        case GuestRequest::kExit: {
            const std::lock_guard lock{mutex_};
            exit_code_ = access.code;
            break;
        }
        case GuestRequest::kPowerOff:
            set_end(GuestEnd::kPowerOff);
            return false;
        case GuestRequest::kReset:
            set_end(GuestEnd::kReset);
            return false;
    }
    if (access.code == witness::kExitFault && holds_witness(*memory_))
        set_failure({ErrorCode::kGuest, vcpu_name(index),
                     "the guest took an exception; its report says which", "", 0});
    set_end(GuestEnd::kExit);
    return true;
}

void VirtualMachine::set_end(GuestEnd end) {
    {
        const std::lock_guard lock{mutex_};
        if (!end_) end_ = end;
    }
    draw_attention();
}

void VirtualMachine::set_failure(state::Error error) {
    {
        const std::lock_guard lock{mutex_};
        if (!failure_) failure_ = std::move(error);
    }
    draw_attention();
}

Status VirtualMachine::command_run(std::optional<HostCount> gate) {
    if (running_) return {};
    if (auto well = health(); !well) return well;
    {
        std::lock_guard lock{mutex_};
        for (Runner& runner : runners_)
            runner.gate = Gate::kNotPassed;
        stop_wanted_ = false;
        gate_ = gate;
        phase_ = Phase::kRun;
        busy_ = config_.vcpus;
        ++command_;
    }
    running_ = true;
    board_.on_running(true);
    for (Runner& runner : runners_)
        runner.commanded.notify_one();
    return {};
}

Status VirtualMachine::resume() {
    return command_run(std::nullopt);
}
Status VirtualMachine::resume_at(HostCount gate) {
    return command_run(gate);
}

void VirtualMachine::kick_all() {
    for (Runner& runner : runners_)
        if (runner.thread.joinable()) pthread_kill(runner.thread.native_handle(), kick_signal());
}

Status VirtualMachine::stop() {
    if (!running_) return {};
    std::unique_lock lock{mutex_};
    stop_wanted_ = true;
    // Commands that a thread has not taken yet are taken back, so that it does not enter at all.
    for (const kvm::Vcpu& vcpu : vcpus_)
        vcpu.set_immediate_exit(true);
    for (Runner& runner : runners_) {
        if (runner.seen == command_) continue;
        runner.seen = command_;
        --busy_;
    }
    lock.unlock();
    kick_all();
    lock.lock();
    if (!done_.wait_for(lock, kStopTimeout, [&] { return busy_ == 0; })) {
        return state::fail(ErrorCode::kTimeout, "stop", "a vCPU has not left the guest for 10 s",
                           "look for a hang in the host's kernel log");
    }
    phase_ = Phase::kStopped;
    running_ = false;
    board_.on_running(false);
    return {};
}

GateReport VirtualMachine::gate_report() const {
    GateReport report;
    for (const Runner& runner : runners_) {
        const Gate gate = runner.gate.load(std::memory_order_acquire);
        if (gate == Gate::kNotPassed) continue;
        ++report.vcpus;
        if (gate == Gate::kLate) ++report.late;
        report.worst_past_ticks = std::max(report.worst_past_ticks,
                                           runner.past_gate_ticks.load(std::memory_order_relaxed));
    }
    return report;
}

Status VirtualMachine::run_jobs(std::optional<std::uint32_t> only,
                                const std::function<Status(kvm::Vcpu&)>& job) {
    if (running_) {
        return state::fail(ErrorCode::kBusy, "on_vcpu_thread", "the vCPUs are running", "stop()");
    }
    std::unique_lock lock{mutex_};
    for (Runner& runner : runners_)
        runner.job_result = {};
    job_ = &job;
    phase_ = Phase::kJob;
    busy_ = 0;
    ++command_;
    for (std::uint32_t i = 0; i < runners_.size(); ++i) {
        if (only && *only != i) {
            runners_[i].seen = command_;
            continue;
        }
        ++busy_;
        runners_[i].commanded.notify_one();
    }
    done_.wait(lock, [&] { return busy_ == 0; });
    phase_ = Phase::kStopped;
    job_ = nullptr;
    for (Runner& runner : runners_)
        if (!runner.job_result) return runner.job_result;
    return {};
}

Status VirtualMachine::on_vcpu_thread(std::uint32_t vcpu,
                                      const std::function<Status(kvm::Vcpu&)>& job) {
    return run_jobs(vcpu, job);
}

Status VirtualMachine::on_all_vcpu_threads(const std::function<Status(kvm::Vcpu&)>& job) {
    return run_jobs(std::nullopt, job);
}

Status VirtualMachine::health() const {
    std::lock_guard lock{mutex_};
    if (failure_) return tl::unexpected(*failure_);
    return {};
}

std::string VirtualMachine::take_console() {
    std::string text = console_.take();
    board_.on_console_taken();
    return text;
}

std::optional<GuestEnd> VirtualMachine::ended() const {
    std::lock_guard lock{mutex_};
    return end_;
}

void VirtualMachine::draw_attention() {
    const std::uint64_t one = 1;
    // It fails only where it is readable already.
    (void)!::write(attention_.get(), &one, sizeof one);
}

void VirtualMachine::clear_attention() {
    std::uint64_t count = 0;
    (void)!::read(attention_.get(), &count, sizeof count);
}

std::optional<std::uint32_t> VirtualMachine::exit_code() const {
    std::lock_guard lock{mutex_};
    return exit_code_;
}

Status VirtualMachine::log_dirty_pages(bool on) {
    return vm_->set_memory(0, *memory_, on);
}

void VirtualMachine::mark_dirty(std::uint64_t gpa) {
    const auto offset = memory_->offset_of(gpa);
    if (!offset) return;
    std::lock_guard lock{mutex_};
    const std::uint64_t page = *offset / kvm::kPageSize;
    // Where nobody fetches the log for long, a page that is written often is kept once.
    if (std::find(marked_pages_.begin(), marked_pages_.end(), page) == marked_pages_.end())
        marked_pages_.push_back(page);
}

Status VirtualMachine::fetch_dirty_pages(std::vector<std::uint64_t>& bitmap) {
    const std::uint64_t pages = memory_->size() / kvm::kPageSize;
    bitmap.assign((pages + 63) / 64, 0);
    if (auto done = vm_->get_dirty_log(0, *memory_, bitmap); !done) return done;
    std::lock_guard lock{mutex_};
    for (const std::uint64_t page : marked_pages_) {
        if (page < pages) bitmap[page / 64] |= std::uint64_t{1} << (page % 64);
    }
    marked_pages_.clear();
    return {};
}

}  // namespace continuo::vmm
