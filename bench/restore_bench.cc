// capture() and apply() on a real KVM against the bare ioctls that the job needs, in turn, pair by
// pair, and the heap allocations of each. The bare side makes the same kernel calls with arguments
// that were prepared before: for each vCPU the offset read, its MSRs, the offset written and read
// back, TSC_ADJUST, and twice the cancelled KVM_RUN that has KVM publish; for the VM one
// KVM_GET_CLOCK and as many rounds of KVM_SET_CLOCK and KVM_GET_CLOCK as the trim took.
#include <fmt/format.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "continuo/abi/msr.h"
#include "continuo/kvm/clock_machine.h"
#include "continuo/kvm/settle.h"
#include "continuo/kvm/system.h"
#include "continuo/machine/migration.h"

namespace {

std::atomic<std::uint64_t> allocations{0};

}  // namespace

void* operator new(std::size_t size) {
    allocations.fetch_add(1, std::memory_order_relaxed);
    if (void* block = std::malloc(size)) return block;
    throw std::bad_alloc{};
}
void operator delete(void* block) noexcept {
    std::free(block);
}
void operator delete(void* block, std::size_t) noexcept {
    std::free(block);
}

namespace {

using namespace continuo;

template <class T>
T need(state::Result<T> result) {
    if (result) return std::move(*result);
    fmt::print(stderr, "restore_bench: {}\n", result.error().message());
    std::exit(result.error().code == state::ErrorCode::kUnsupported ? 77 : 1);
}
void need(const state::Status& status) {
    if (status) return;
    fmt::print(stderr, "restore_bench: {}\n", status.error().message());
    std::exit(1);
}

constexpr std::uint64_t kPages = 0x1000;

/// A VM whose vCPUs have kvmclock on and never run.
struct Subject {
    Subject(const kvm::System& system, std::size_t count)
        : vm{need(kvm::Vm::create(system))}, memory{need(kvm::GuestMemory::create(1U << 20))} {
        need(vm.create_irqchip());
        need(vm.set_memory(0, memory, false));
        for (std::uint32_t id = 0; id < count; ++id)
            vcpus.push_back(std::make_unique<kvm::Vcpu>(need(kvm::Vcpu::create(vm, id))));
        for (std::size_t id = 0; id < count; ++id) {
            need(vcpus[id]->set_mp_state(kvm_mp_state{KVM_MP_STATE_RUNNABLE}));
            need(vcpus[id]->set_msr(abi::kMSR_KVM_SYSTEM_TIME_NEW, (kPages + 64 * id) | 1));
            pointers.push_back(vcpus[id].get());
        }
    }
    kvm::Vm vm;
    kvm::GuestMemory memory;
    std::vector<std::unique_ptr<kvm::Vcpu>> vcpus;
    std::vector<kvm::Vcpu*> pointers;
};

using Clock = std::chrono::steady_clock;
double since_us(Clock::time_point start) {
    return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

struct Cost {
    double capture_us = 0;
    double apply_us = 0;
    double total_us() const { return capture_us + apply_us; }
};

/// What our side did, for the bare side to do the same.
struct Ours {
    Cost cost;
    std::uint64_t allocations = 0;
    std::uint32_t rounds = 0;
};

Ours ours(machine::Machine& machine) {
    Ours out;
    std::uint64_t before = allocations.load();
    auto start = Clock::now();
    const auto record = need(machine::capture(machine));
    out.cost.capture_us = since_us(start);
    out.allocations = allocations.load() - before;

    const auto destination = need(machine::destination_for(machine, record));
    const auto plan = state::plan(record, destination, {});
    if (!plan) {
        fmt::print(stderr, "restore_bench: {}\n", plan.error().front().message);
        std::exit(1);
    }
    // A line that is where it should be is left there: the trim must have something to do.
    need(machine.set_kvmclock(time::Instant<time::Kvmclock>::from_raw(1)));
    before = allocations.load();
    start = Clock::now();
    const auto applied = need(machine::apply(machine, *plan));
    out.cost.apply_us = since_us(start);
    out.allocations += allocations.load() - before;
    out.rounds = applied.trim.rounds;
    return out;
}

/// The same kernel calls, prepared.
class Bare {
  public:
    explicit Bare(Subject& subject) : subject_{subject} {
        offset_.group = KVM_VCPU_TSC_CTRL;
        offset_.attr = KVM_VCPU_TSC_OFFSET;
        offset_.addr = reinterpret_cast<std::uint64_t>(&value_);
        for (const auto index :
             {abi::kMSR_IA32_TSC_ADJUST, abi::kMSR_KVM_SYSTEM_TIME_NEW, abi::kMSR_KVM_SYSTEM_TIME})
            read_.add(index);
        write_.add(abi::kMSR_IA32_TSC_ADJUST);
    }

    Cost run(std::uint32_t rounds) {
        Cost cost;
        auto start = Clock::now();
        for (const auto& vcpu : subject_.vcpus) {
            call(vcpu->fd(), KVM_GET_DEVICE_ATTR, &offset_);
            call(vcpu->fd(), abi_get_msrs(), read_.raw());
            call(vcpu->fd(), KVM_GET_TSC_KHZ, nullptr);
        }
        call(subject_.vm.fd(), KVM_GET_CLOCK, &clock_);
        cost.capture_us = since_us(start);
        start = Clock::now();
        for (const auto& vcpu : subject_.vcpus)
            call(vcpu->fd(), abi_set_msrs(), write_.raw());
        for (const auto& vcpu : subject_.vcpus) {
            call(vcpu->fd(), KVM_SET_DEVICE_ATTR, &offset_);
            call(vcpu->fd(), KVM_GET_DEVICE_ATTR, &offset_);
        }
        settle();
        for (std::uint32_t i = 0; i < rounds; ++i) {
            kvm_clock_data set{};
            set.clock = clock_.clock;
            call(subject_.vm.fd(), KVM_SET_CLOCK, &set);
            call(subject_.vm.fd(), KVM_GET_CLOCK, &clock_);
        }
        settle();
        cost.apply_us = since_us(start);
        return cost;
    }

  private:
    static unsigned long abi_get_msrs() { return 0xc008ae88UL; }
    static unsigned long abi_set_msrs() { return 0x4008ae89UL; }
    static void call(int fd, unsigned long request, void* argument) {
        if (::ioctl(fd, request, argument) >= 0) return;
        std::perror("restore_bench: ioctl");
        std::exit(1);
    }
    void settle() {
        const auto pending = need(kvm::PendingSignal::raise());
        for (const auto& vcpu : subject_.vcpus)
            need(kvm::settle_vcpu(*vcpu, pending));
    }

    Subject& subject_;
    std::uint64_t value_ = 0;
    kvm_device_attr offset_{};
    kvm::MsrBatch read_;
    kvm::MsrBatch write_;
    kvm_clock_data clock_{};
};

double median(std::vector<double> values) {
    std::nth_element(values.begin(),
                     values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
    return values[values.size() / 2];
}

double median(const std::vector<Cost>& costs, double Cost::*part) {
    std::vector<double> values;
    for (const Cost& cost : costs)
        values.push_back(cost.*part);
    return median(std::move(values));
}

void measure(const kvm::System& system, const kvm::HostClock& host, std::size_t vcpus, int pairs) {
    Subject subject{system, vcpus};
    kvm::ClockMachine machine{subject.vm, subject.pointers, subject.memory, host, {}};
    Bare bare{subject};
    std::vector<Cost> us;
    std::vector<Cost> bare_us;
    std::vector<double> ratios;
    std::vector<double> rounds;
    std::uint64_t most = 0;
    need(machine.settle());
    for (int pair = 0; pair < pairs; ++pair) {
        const Ours out = ours(machine);
        us.push_back(out.cost);
        bare_us.push_back(bare.run(out.rounds));
        ratios.push_back(us.back().total_us() / bare_us.back().total_us());
        rounds.push_back(out.rounds);
        most = std::max(most, out.allocations);
    }
    fmt::print("{:>6}{:>12.1f}{:>12.1f}{:>12.1f}{:>12.1f}{:>9.2f}{:>9.0f}{:>13}\n", vcpus,
               median(us, &Cost::capture_us), median(bare_us, &Cost::capture_us),
               median(us, &Cost::apply_us), median(bare_us, &Cost::apply_us), median(ratios),
               median(rounds), most);
}

}  // namespace

int main(int argc, char** argv) {
    const int pairs = argc > 1 ? std::max(1, std::atoi(argv[1])) : 51;
    const auto system = need(kvm::System::open());
    const auto host = need(kvm::examine_host(system));
    fmt::print("capture and apply in us, medians of {} pairs, on {}\n", pairs,
               host.identity.kernel);
    fmt::print("{:>6}{:>12}{:>12}{:>12}{:>12}{:>9}{:>9}{:>13}\n", "vCPUs", "capture", "its ioctls",
               "apply", "its ioctls", "ratio", "rounds", "heap blocks");
    for (const std::size_t vcpus : {1U, 4U, 16U, 64U})
        measure(system, host, vcpus, pairs);
    return 0;
}
