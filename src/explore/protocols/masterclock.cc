// The masterclock against running vCPUs, on the model of KVM's timekeeping itself: entries and
// masterclock updates in the kernel's steps, an update that kicks every vCPU out of guest mode, the
// clocksource lost and back, and guests that read kvmclock on every vCPU. kvmclock must never run
// backwards, whoever reads it where. A read is atomic here: no vCPU's own page is written while it
// is in guest mode, and how a page is read while it is written is pvclock-publish's matter.
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "../kvm_vm_pool.h"
#include "continuo/explore/protocol.h"
#include "continuo/model/kvm_vm.h"
#include "continuo/state/error.h"

namespace continuo::explore {

namespace {

using model::HostPlatform;
using model::KvmVm;

constexpr unsigned kVcpus = 2;
constexpr std::uint32_t kKhz = 2'000'000;
constexpr std::uint64_t kTick = 10ULL * kKhz;  ///< 10 ms
constexpr std::uint64_t kBoot = 1000ULL * 1000 * kKhz;

/// The host's raw clock against what KVM makes of the TSC's kHz: a new sample moves kvmclock by the
/// difference.
enum class RawClock : std::uint8_t {
    kFaster,  ///< 1 ppm: every sample moves kvmclock forwards
    kSlower,  ///< 1 ppm: every sample moves it back
};

struct Masterclock {
    RawClock raw = RawClock::kFaster;
    bool loses_clocksource = false;
    bool kicks = true;       ///< false: guest mode goes on while the masterclock is sampled
    bool falls_back = true;  ///< without the stable bit the guest keeps a last_value
    bool reads_page_of_0 =
        false;  ///< user mode reads vCPU 0's page wherever it runs (Linux's vDSO)
    unsigned ticks = 2;
    unsigned reads = 2;  ///< of each vCPU
};

enum class Event : std::uint8_t { kRewriteOffset, kLoseClocksource, kRegainClocksource };

/// No padding, and nothing that a later step cannot depend on.
struct State {
    std::uint64_t returned = 0;    ///< the highest value that a read has returned
    std::uint64_t last_value = 0;  ///< the guest's
    std::uint32_t vm = 0;
    std::uint8_t time = 0;
    std::uint8_t event = 0;
    std::array<std::uint8_t, kVcpus> reads{};
    std::array<std::uint8_t, kVcpus> exits{};
    std::array<std::uint8_t, kVcpus> inside{};  ///< as the guest knows it
    std::uint8_t pad[4] = {};
};
static_assert(sizeof(State) == 32);

enum Agent : unsigned { kTime = kVcpus, kHost, kAgents };
enum Choice : unsigned { kReadOwnPage, kReadPageOf0, kExit, kStepKvm };

class MasterclockSystem final : public System {
  public:
    explicit MasterclockSystem(const Masterclock& how) : how_{how} {
        if (how.loses_clocksource)
            script_ = {Event::kLoseClocksource, Event::kRewriteOffset, Event::kRegainClocksource,
                       Event::kRewriteOffset};
        else
            script_ = {Event::kRewriteOffset, Event::kRewriteOffset};
    }

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
        return agent == kHost ? "host" : fmt::format("vcpu{}", agent);
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
    bool clocksource_is_tsc(const State& state) const {
        const auto done = std::vector<Event>(script_.begin(), script_.begin() + state.event);
        return std::count(done.begin(), done.end(), Event::kLoseClocksource) ==
               std::count(done.begin(), done.end(), Event::kRegainClocksource);
    }
    HostPlatform host(const State& state) const {
        HostPlatform host{kKhz};
        const std::uint32_t ppm = host.raw.mult / 1'000'000;
        host.raw.mult = how_.raw == RawClock::kFaster ? host.raw.mult + ppm : host.raw.mult - ppm;
        host.counter = kBoot + state.time * kTick;
        host.is_tsc_clocksource = clocksource_is_tsc(state);
        return host;
    }
    void vcpu_steps(const State& state, unsigned vcpu, Successors& out) const;
    void read_clock(const State& state, unsigned vcpu, unsigned page, Successors& out) const;
    bool carry_out(State& state, KvmVm& vm, HostPlatform& host) const;
    void put(const State& state, unsigned agent, unsigned choice, Successors& out) const {
        out.add(reinterpret_cast<const std::uint8_t*>(&state), agent, choice);
    }

    Masterclock how_;
    std::vector<Event> script_;
    mutable KvmVmPool pool_;
};

void MasterclockSystem::initial(std::uint8_t* out) const {
    State state;
    HostPlatform platform = host(state);
    // 6.1: every write of an offset asks for a new sample.
    KvmVm vm{platform, model::KernelRules::linux(6, 1), kVcpus};
    for (unsigned vcpu = 0; vcpu < kVcpus; ++vcpu)
        CONTINUO_CHECK(vm.guest_write_msr(vcpu, abi::kMSR_KVM_SYSTEM_TIME_NEW, (64 * vcpu) | 1));
    for (int pass = 0; pass < 4; ++pass)
        for (unsigned vcpu = 0; vcpu < kVcpus; ++vcpu)
            CONTINUO_CHECK(vm.in_guest(vcpu) || vm.enter(vcpu));
    CONTINUO_CHECK(vm.masterclock());
    for (unsigned vcpu = 0; vcpu < kVcpus; ++vcpu)
        state.inside[vcpu] = 1;
    state.vm = pool_.number(vm);
    std::memcpy(out, &state, sizeof state);
}

// The value that a guest makes of a page, and of last_value where the page is not stable.
void MasterclockSystem::read_clock(const State& state, unsigned vcpu, unsigned page,
                                   Successors& out) const {
    HostPlatform platform = host(state);
    KvmVm vm = pool_.vm(state.vm, platform);
    const abi::pvclock_vcpu_time_info& at = vm.page(page);
    const bool stable = (at.flags & abi::kPVCLOCK_TSC_STABLE_BIT) != 0;
    if (page != vcpu && (abi::update_in_progress(at.version) || !stable)) return;
    const auto line = abi::pvclock_line(at);
    CONTINUO_CHECK(line);
    State next = state;
    std::uint64_t value =
        line->at(time::Count<time::GuestCounter>::from_raw(vm.guest_tsc(vcpu))).raw();
    if (!stable && how_.falls_back) next.last_value = value = std::max(value, state.last_value);
    ++next.reads[vcpu];
    next.returned = std::max(value, state.returned);
    put(next, vcpu, page == vcpu ? kReadOwnPage : kReadPageOf0, out);
    if (value < state.returned) out.fail("kvmclock never runs backwards, whoever reads it where");
}

void MasterclockSystem::vcpu_steps(const State& state, unsigned vcpu, Successors& out) const {
    HostPlatform platform = host(state);
    KvmVm vm = pool_.vm(state.vm, platform);
    const bool in_guest = how_.kicks ? vm.in_guest(vcpu) : state.inside[vcpu] != 0;
    if (in_guest && state.reads[vcpu] < how_.reads) {
        read_clock(state, vcpu, vcpu, out);
        if (how_.reads_page_of_0 && vcpu != 0) read_clock(state, vcpu, 0, out);
    }
    if (vm.in_guest(vcpu)) {
        if (state.exits[vcpu] > 0) return;
        State next = state;
        vm.exit(vcpu);
        next.vm = pool_.number(vm);
        next.inside[vcpu] = 0;
        next.exits[vcpu] = 1;
        put(next, vcpu, kExit, out);
        return;
    }
    const model::Step step = vm.step(vcpu);
    if (step == model::Step::kBlocked) return;
    // Store by store only where somebody else reads this page.
    while (!how_.reads_page_of_0 && vm.vcpu(vcpu).update_step != 0)
        vm.step(vcpu);
    State next = state;
    next.inside[vcpu] = step == model::Step::kEntered ? 1 : 0;
    next.vm = pool_.number(vm);
    put(next, vcpu, kStepKvm, out);
}

// False where it cannot be done now: a vCPU's ioctl waits until its KVM_RUN has come back.
bool MasterclockSystem::carry_out(State& state, KvmVm& vm, HostPlatform& platform) const {
    const Event event = script_[state.event];
    if (event == Event::kRewriteOffset) {
        // The write that was last in the script is vCPU 0's, the one before it vCPU 1's.
        const unsigned vcpu = (script_.size() - state.event) % kVcpus;
        if (vm.vcpu(vcpu).loaded || vm.arch().update_in_progress) return false;
        CONTINUO_CHECK(vm.set_tsc_offset(vcpu, *vm.tsc_offset(vcpu)));
    }
    ++state.event;
    if (event == Event::kRewriteOffset) return true;
    platform.is_tsc_clocksource = clocksource_is_tsc(state);
    vm.clocksource_changed();
    return true;
}

void MasterclockSystem::successors(const std::uint8_t* bytes, unsigned agent,
                                   Successors& out) const {
    const State state = read(bytes);
    if (agent < kVcpus) return vcpu_steps(state, agent, out);
    State next = state;
    if (agent == kTime) {
        if (state.time == how_.ticks) return;
        ++next.time;
        return put(next, agent, 0, out);
    }
    if (state.event == script_.size()) return;
    HostPlatform platform = host(state);
    KvmVm vm = pool_.vm(state.vm, platform);
    if (!carry_out(next, vm, platform)) return;
    next.vm = pool_.number(vm);
    put(next, agent, 0, out);
}

// A vCPU that has read all that it will has nothing more to do; whoever waits for it is the host.
bool MasterclockSystem::may_rest(const std::uint8_t* bytes, unsigned agent) const {
    const State state = read(bytes);
    if (agent == kTime) return state.time == how_.ticks;
    // An offset is written while its vCPU is out of KVM_RUN, and a vCPU leaves it once at most.
    return true;
}

std::string MasterclockSystem::step_text(const std::uint8_t* bytes, unsigned agent,
                                         unsigned choice) const {
    const State state = read(bytes);
    if (agent == kTime) return "10 ms pass";
    if (agent == kHost) {
        switch (script_[state.event]) {
            case Event::kLoseClocksource:
                return "the clocksource is no longer the TSC";
            case Event::kRegainClocksource:
                return "the clocksource is the TSC again";
            case Event::kRewriteOffset:
                return fmt::format("the VMM writes vCPU {}'s offset over itself",
                                   (script_.size() - state.event) % kVcpus);
        }
    }
    if (choice == kReadOwnPage) return "read kvmclock by its own page";
    if (choice == kReadPageOf0) return "read kvmclock by vCPU 0's page";
    if (choice == kExit) return "leave KVM_RUN";
    HostPlatform platform = host(state);
    KvmVm vm = pool_.vm(state.vm, platform);
    switch (vm.step(agent)) {
        case model::Step::kMasterclockBegin:
            return "masterclock update: every vCPU out of guest mode";
        case model::Step::kMasterclockSample:
            return "masterclock update: sample";
        case model::Step::kMasterclockEnd:
            return "masterclock update: entries let in again";
        case model::Step::kGlobalClockUpdate:
            return "global clock update";
        case model::Step::kPageBegin:
            return how_.reads_page_of_0 ? "its page: computed, version odd" : "its page is written";
        case model::Step::kPageStep:
            return "its page: one more store";
        case model::Step::kEntered:
            return "enter guest mode";
        default:
            return "step";
    }
}

Fields MasterclockSystem::fields(const std::uint8_t* bytes) const {
    const State state = read(bytes);
    HostPlatform platform = host(state);
    KvmVm vm = pool_.vm(state.vm, platform);
    Fields out{{"time", fmt::format("{} ms", 10 * state.time)},
               {"clocksource", platform.is_tsc_clocksource ? "tsc" : "other"},
               {"masterclock", vm.masterclock() ? "on" : "off"},
               {"returned", std::to_string(state.returned)},
               {"last_value", std::to_string(state.last_value)}};
    for (unsigned vcpu = 0; vcpu < kVcpus; ++vcpu) {
        const auto& page = vm.page(vcpu);
        const std::string who = fmt::format("vcpu{}.", vcpu);
        out.emplace_back(who + "in_guest", vm.in_guest(vcpu) ? "yes" : "no");
        out.emplace_back(who + "requests", std::to_string(vm.pending(vcpu)));
        out.emplace_back(who + "page.version", std::to_string(page.version));
        out.emplace_back(who + "page.tsc_timestamp", std::to_string(page.tsc_timestamp));
        out.emplace_back(who + "page.system_time", std::to_string(page.system_time));
        out.emplace_back(who + "page.flags", std::to_string(page.flags));
    }
    return out;
}

Variant variant(std::string name, std::string summary, const Masterclock& how, bool wrong) {
    return {std::move(name), std::move(summary),
            wrong ? std::optional{Violation::Kind::kAssertion} : std::nullopt, false,
            [how] { return std::make_unique<MasterclockSystem>(how); }};
}

}  // namespace

Protocol masterclock_update() {
    Protocol out{"masterclock-update",
                 "KVM's masterclock against running vCPUs, on the model of its timekeeping",
                 {}};
    out.variants = {
        variant("samples", "2 vCPUs, updates at any moment, each moving kvmclock forwards",
                Masterclock{}, false),
        variant("lost-and-back", "the clocksource is lost and comes back at any moment",
                Masterclock{.loses_clocksource = true, .reads = 1}, false),
        variant("no-kick", "guest mode goes on while the masterclock is sampled",
                Masterclock{.kicks = false}, true),
        variant("no-fallback", "the masterclock is lost, and the guest keeps no last_value",
                Masterclock{.loses_clocksource = true, .falls_back = false, .reads = 1}, true),
        variant("samples-go-back",
                "as Linux is where the raw clock is slower than tsc_khz says: a "
                "new sample takes kvmclock back",
                Masterclock{.raw = RawClock::kSlower}, true),
        variant("vdso-page-of-vcpu0",
                "as Linux is: user mode reads vCPU 0's page, which is written "
                "when vCPU 0 enters next and not before",
                Masterclock{.reads_page_of_0 = true}, true),
    };
    return out;
}

}  // namespace continuo::explore
