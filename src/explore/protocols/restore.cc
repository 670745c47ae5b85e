// Restoring the TSCs of a VM's vCPUs one after the other, by a VMM thread that can be preempted
// between any two steps, on the model of KVM's timekeeping itself: by value, where KVM's heuristics
// of synchronisation decide what a write meant (S3.3), and by offset (S2.2). vCPUs enter as soon as
// they are restored, whatever the others have. Time passes in steps of 0.6 s, so that two writes
// are less than a second apart, or more.
#include <fmt/format.h>

#include <array>

#include "../kvm_vm_pool.h"
#include "continuo/explore/protocol.h"
#include "continuo/model/kvm_vm.h"
#include "continuo/state/error.h"

namespace continuo::explore {

namespace {

using model::HostPlatform;
using model::KernelRules;
using model::KvmVm;

constexpr unsigned kVcpusMax = 3;
constexpr unsigned kReads = 2;  ///< of its TSC, by each vCPU
constexpr std::uint32_t kKhz = 2'000'000;
constexpr std::uint64_t kSecond = 1000ULL * kKhz;
constexpr std::uint64_t kPause = kSecond * 6 / 10;
constexpr std::uint64_t kBoot = 1000 * kSecond;  ///< of the host, when the VM is created

enum class By : std::uint8_t { kOffset, kValue, kTuple };

struct Restore {
    unsigned vcpus = 3;
    By by = By::kOffset;
    KernelRules rules = KernelRules::linux(6, 12);
    std::uint64_t saved = 5000 * kSecond;  ///< vCPU 0's TSC at the stop
    std::uint64_t apart = 0;               ///< by how much each vCPU is ahead of the one before it
    unsigned rounds = 1;                   ///< how often the VMM goes through all vCPUs
    unsigned pauses = 2;
};

/// No padding.
struct State {
    std::array<std::uint64_t, kVcpusMax> seen{};  ///< the TSC that the vCPU's guest has read last
    std::uint32_t vm = 0;
    std::uint8_t time = 0;
    std::uint8_t written = 0;  ///< steps that the VMM has done
    std::array<std::uint8_t, kVcpusMax> reads{};
    std::uint8_t pad[7] = {};
};
static_assert(sizeof(State) == 40);

enum Agent : unsigned { kTime = kVcpusMax, kVmm, kAgents };  // the vCPUs come before them
enum Choice : unsigned { kEnter, kRead, kExit };

class RestoreSystem final : public System {
  public:
    explicit RestoreSystem(const Restore& how) : how_{how} {}

    std::size_t state_bytes() const override { return sizeof(State); }
    unsigned agents() const override { return kAgents; }
    void initial(std::uint8_t* out) const override;
    void successors(const std::uint8_t* bytes, unsigned agent, Successors& out) const override;
    // Everybody touches the VM: no agent can go alone.
    Footprint step(const std::uint8_t*, unsigned) const override { return {1, 1}; }
    Footprint future(const std::uint8_t*, unsigned) const override { return {1, 1}; }
    unsigned rank(const std::uint8_t*, unsigned) const override { return 0; }
    bool ranked(unsigned) const override { return true; }
    bool may_rest(const std::uint8_t* bytes, unsigned agent) const override;
    std::uint64_t own_bytes() const override { return pool_.bytes(); }
    std::string agent_name(unsigned agent) const override {
        if (agent == kTime) return "time";
        return agent == kVmm ? "vmm" : fmt::format("vcpu{}", agent);
    }
    std::string step_text(const std::uint8_t* bytes, unsigned agent,
                          unsigned choice) const override;
    Fields fields(const std::uint8_t* bytes) const override;

  private:
    static State read(const std::uint8_t* bytes) {
        State state;
        std::memcpy(&state, bytes, sizeof state);
        return state;
    }
    HostPlatform host(const State& state) const {
        HostPlatform host{kKhz};
        host.counter = kBoot + state.time * kPause;
        return host;
    }
    std::uint64_t saved(unsigned vcpu) const { return how_.saved + vcpu * how_.apart; }
    /// Of the line that the plan prescribes: as if the VM had been restored when it was created.
    std::uint64_t offset(unsigned vcpu) const { return saved(vcpu) - kBoot; }
    bool done(const State& state) const { return state.written == how_.rounds * how_.vcpus; }
    void vmm_step(const State& state, Successors& out) const;
    void vcpu_steps(const State& state, unsigned vcpu, Successors& out) const;
    const char* broken(const State& state, KvmVm& vm) const;
    static void put(const State& state, unsigned agent, unsigned choice, Successors& out) {
        out.add(reinterpret_cast<const std::uint8_t*>(&state), agent, choice);
    }

    Restore how_;
    mutable KvmVmPool pool_;
};

void RestoreSystem::initial(std::uint8_t* out) const {
    State state;
    HostPlatform platform = host(state);
    KvmVm vm{platform, how_.rules, how_.vcpus};
    for (unsigned vcpu = 0; vcpu < how_.vcpus; ++vcpu)
        CONTINUO_CHECK(vm.host_write_msr(vcpu, abi::kMSR_KVM_SYSTEM_TIME_NEW, (64 * vcpu) | 1));
    state.vm = pool_.number(vm);
    std::memcpy(out, &state, sizeof state);
}

void RestoreSystem::vmm_step(const State& state, Successors& out) const {
    if (done(state)) return;
    const unsigned vcpu = state.written % how_.vcpus;
    HostPlatform platform = host(state);
    KvmVm vm = pool_.vm(state.vm, platform);
    if (vm.vcpu(vcpu).loaded) return;  // its ioctls wait until KVM_RUN has come back
    switch (how_.by) {
        case By::kOffset:
            CONTINUO_CHECK(vm.set_tsc_offset(vcpu, offset(vcpu)));
            break;
        case By::kValue:
            CONTINUO_CHECK(vm.host_write_msr(vcpu, abi::kMSR_IA32_TSC, saved(vcpu)));
            break;
        case By::kTuple: {
            const auto at = static_cast<std::uint64_t>(platform.realtime_ns(kBoot));
            CONTINUO_CHECK(
                vm.set_tsc_state(vcpu, {model::TscState::kTimestampValid, at, saved(vcpu), 0}));
            break;
        }
    }
    State next = state;
    ++next.written;
    next.vm = pool_.number(vm);
    put(next, kVmm, 0, out);
    if (const char* what = broken(next, vm)) out.fail(what);
}

// Once every vCPU has been written: the distances are the saved ones, and the masterclock can be
// had. An entry is where the tuple takes effect, so of it only vCPUs that have entered are asked.
const char* RestoreSystem::broken(const State& state, KvmVm& vm) const {
    if (state.written < how_.vcpus) return nullptr;
    bool all_in_force = true;
    for (unsigned vcpu = 0; vcpu < how_.vcpus; ++vcpu)
        all_in_force = all_in_force && (vm.pending(vcpu) & model::kTscStateWrite) == 0;
    if (!all_in_force) return nullptr;
    for (unsigned vcpu = 1; vcpu < how_.vcpus; ++vcpu)
        if (vm.guest_tsc(vcpu) - vm.guest_tsc(0) != saved(vcpu) - saved(0))
            return "the vCPUs' TSCs are as far apart as they were saved";
    if (how_.by == By::kValue) return nullptr;
    for (unsigned vcpu = 0; vcpu < how_.vcpus; ++vcpu)
        if (vm.tsc_map(vcpu).offset() != offset(vcpu))
            return "whatever the delays, each vCPU has the line that was prescribed";
    return nullptr;
}

void RestoreSystem::vcpu_steps(const State& state, unsigned vcpu, Successors& out) const {
    if (vcpu >= how_.vcpus || state.written <= vcpu) return;  // none, or not restored yet
    HostPlatform platform = host(state);
    KvmVm vm = pool_.vm(state.vm, platform);
    State next = state;
    if (!vm.in_guest(vcpu) && state.reads[vcpu] < kReads) {  // new, or kicked out by an update
        if (!vm.enter(vcpu)) return;
        next.vm = pool_.number(vm);
        put(next, vcpu, kEnter, out);
        if (const char* what = broken(next, vm)) out.fail(what);
        return;
    }
    if (state.reads[vcpu] < kReads) {
        const std::uint64_t tsc = vm.guest_tsc(vcpu);
        ++next.reads[vcpu];
        next.seen[vcpu] = next.reads[vcpu] < kReads ? tsc : 0;
        put(next, vcpu, kRead, out);
        if (tsc < state.seen[vcpu]) out.fail("no vCPU's TSC goes back");
        return;
    }
    if (!vm.vcpu(vcpu).loaded) return;
    vm.exit(vcpu);
    next.vm = pool_.number(vm);
    put(next, vcpu, kExit, out);
}

void RestoreSystem::successors(const std::uint8_t* bytes, unsigned agent, Successors& out) const {
    const State state = read(bytes);
    if (agent < kVcpusMax) return vcpu_steps(state, agent, out);
    if (agent == kVmm) return vmm_step(state, out);
    if (state.time == how_.pauses) return;
    State next = state;
    ++next.time;
    put(next, agent, 0, out);
}

bool RestoreSystem::may_rest(const std::uint8_t* bytes, unsigned agent) const {
    const State state = read(bytes);
    if (agent < kVcpusMax) return agent >= how_.vcpus || state.reads[agent] == kReads;
    return agent == kVmm ? done(state) : state.time == how_.pauses;
}

std::string RestoreSystem::step_text(const std::uint8_t* bytes, unsigned agent,
                                     unsigned choice) const {
    const State state = read(bytes);
    if (agent == kTime) return "the VMM's thread does not run for 0.6 s";
    if (agent == kVmm) {
        const unsigned vcpu = state.written % how_.vcpus;
        if (how_.by == By::kOffset) return fmt::format("write the offset of vCPU {}", vcpu);
        if (how_.by == By::kValue) return fmt::format("write the TSC of vCPU {}", vcpu);
        return fmt::format("write the TSC state of vCPU {}", vcpu);
    }
    if (choice == kEnter) return "enter guest mode";
    return choice == kRead ? "RDTSC" : "leave KVM_RUN";
}

Fields RestoreSystem::fields(const std::uint8_t* bytes) const {
    const State state = read(bytes);
    HostPlatform platform = host(state);
    KvmVm vm = pool_.vm(state.vm, platform);
    Fields out{{"time", fmt::format("{} ms", 600 * state.time)},
               {"masterclock", vm.masterclock() ? "on" : "off"},
               {"generation", std::to_string(vm.generation())}};
    for (unsigned vcpu = 0; vcpu < how_.vcpus; ++vcpu) {
        const std::string who = fmt::format("vcpu{}.", vcpu);
        out.emplace_back(who + "offset", fmt::format("{:#x}", vm.tsc_map(vcpu).offset()));
        out.emplace_back(who + "in_guest", vm.in_guest(vcpu) ? "yes" : "no");
    }
    return out;
}

KernelRules with_tuple() {
    KernelRules rules = KernelRules::linux(6, 12);
    rules.precise_tuple = true;
    return rules;
}

KernelRules with_quirk(KernelRules rules) {
    rules.host_access_quirk = true;
    return rules;
}

Variant variant(std::string name, std::string summary, const Restore& how, bool wrong) {
    return {std::move(name), std::move(summary),
            wrong ? std::optional{Violation::Kind::kAssertion} : std::nullopt, !wrong,
            [how] { return std::make_unique<RestoreSystem>(how); }};
}

}  // namespace

Protocol vcpu_restore() {
    const KernelRules linux61 = KernelRules::linux(6, 1);
    const std::uint64_t third = kSecond * 3 / 10;
    Protocol out{"vcpu-restore",
                 "vCPUs restored one by one, with delays, on the model of KVM's timekeeping",
                 {}};
    out.variants = {
        variant("by-offset", "Linux 6.12, the offset attribute, 3 vCPUs", Restore{}, false),
        variant("by-offset-twice", "2 vCPUs, each offset written again: nothing changes",
                Restore{.vcpus = 2, .rounds = 2}, false),
        variant("by-offset-linux-6-1", "Linux 6.1, twice",
                Restore{.vcpus = 2, .rules = linux61, .rounds = 2}, false),
        variant("by-offset-apart", "TSCs that were 0.3 s apart stay so",
                Restore{.vcpus = 2, .apart = third, .rounds = 2}, false),
        variant("by-tuple", "the tuple of S3.1, in force at the first entry",
                Restore{.by = By::kTuple, .rules = with_tuple(), .apart = third}, false),
        variant("by-value", "Linux 6.12, IA32_TSC by value: more than a second between two writes",
                Restore{.by = By::kValue}, true),
        variant("by-value-apart", "by value without any delay: 0.3 s apart is taken for noise",
                Restore{.by = By::kValue, .apart = third, .pauses = 0}, true),
        variant(
            "by-value-quirk", "by value without the heuristics (S3.2): each delay is skew",
            Restore{.by = By::kValue, .rules = with_quirk(KernelRules::linux(6, 12)), .pauses = 1},
            true),
    };
    return out;
}

}  // namespace continuo::explore
