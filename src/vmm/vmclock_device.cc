#include "continuo/vmm/vmclock_device.h"

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>

#include "continuo/state/plan.h"
#include "continuo/vmm/cpu_model.h"

namespace continuo::vmm {

namespace {

using abi::VmclockHost;
using state::ErrorCode;

constexpr std::uint8_t kCounterId = kArchitecture == state::Architecture::kX86_64
                                        ? abi::kVMCLOCK_COUNTER_X86_TSC
                                        : abi::kVMCLOCK_COUNTER_ARM_VCNT;
constexpr std::size_t kWords = sizeof(abi::vmclock_abi) / 8;
constexpr std::size_t kSequenceWord = offsetof(abi::vmclock_abi, seq_count) / 8;

std::string page_name(std::uint64_t page) {
    char text[40];
    std::snprintf(text, sizeof text, "vmclock page 0x%llx", static_cast<unsigned long long>(page));
    return text;
}

abi::VmclockSample sample_of(const kvm::DisciplinedAnchor& read, const VmclockCounter& counter) {
    const state::Anchor<time::HostCounter>& anchor = read.anchor;
    abi::VmclockSample sample{};
    sample.counter = counter.map.at(anchor.counter);
    sample.time_ns = anchor.tai.raw();
    // A tick of the guest's counter is cut off by the map.
    sample.bound_ns = anchor.tai_bound_ns + time::kNanosPerSecond / counter.guest.hz() + 1;
    sample.tai_offset_sec = static_cast<std::int16_t>(anchor.tai_offset_sec);
    sample.synchronised = anchor.synchronised;
    sample.rate = abi::VmclockRate::make(counter.guest, read.correction_ppb, anchor.rate_bound_ppb);
    return sample;
}

}  // namespace

state::Result<std::optional<VmclockCounter>> vmclock_counter(machine::Machine& clocks) {
    const auto facts = clocks.host_facts();
    if (!facts) return tl::unexpected(facts.error());
    const bool told = !has(facts->quirks, state::Quirk::kNoTscOffset) &&
                      !has(facts->quirks, state::Quirk::kTscOffsetIgnored);
    if (!told) return std::optional<VmclockCounter>{};
    const auto vcpu = clocks.vcpu_state(0);
    if (!vcpu) return tl::unexpected(vcpu.error());
    if (!vcpu->map) return std::optional<VmclockCounter>{};
    return std::optional{VmclockCounter{*vcpu->map, facts->counter_frequency, vcpu->frequency}};
}

VmclockDevice::VmclockDevice(Wiring wiring, const VmclockDeviceState& state)
    : wiring_{std::move(wiring)},
      page_{state.page},
      before_{state.clock},
      host_{state.clock, kCounterId} {}

state::Result<std::unique_ptr<VmclockDevice>> VmclockDevice::create(
    Wiring wiring, const VmclockDeviceState& state) {
    if (state.page % kvm::kPageSize != 0 || !wiring.memory.contains(state.page, kvm::kPageSize))
        return state::fail(ErrorCode::kMalformed, page_name(state.page),
                           "it is not a whole page of the guest's memory");
    if (state.clock.sequence % 2 != 0)
        return state::fail(ErrorCode::kMalformed, page_name(state.page),
                           "an odd sequence: somebody was writing it");
    return std::unique_ptr<VmclockDevice>{new VmclockDevice{std::move(wiring), state}};
}

state::Result<std::optional<abi::VmclockSample>> VmclockDevice::sample() const {
    if (!counter_) return std::optional<abi::VmclockSample>{};
    const auto read = wiring_.read_clocks(counter_->host);
    if (!read) return tl::unexpected(read.error());
    return std::optional{sample_of(*read, *counter_)};
}

// The page as words of 8 bytes, seq_count odd while they are written (the header's protocol). The
// guest may read meanwhile, and may write what it likes: all of it is written each time.
void VmclockDevice::write() {
    std::array<std::uint64_t, kWords> words;
    const abi::vmclock_abi page = host_.page();
    std::memcpy(words.data(), &page, sizeof page);
    const auto store = [this](std::size_t word, std::uint64_t value) {
        CONTINUO_CHECK(wiring_.memory.store(page_ + 8 * word, value));
    };
    constexpr std::uint64_t kSequenceOne = std::uint64_t{1} << 32;  // in the upper half of its word
    store(kSequenceWord, words[kSequenceWord] - kSequenceOne);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    for (std::size_t word = 0; word < kWords; ++word)
        if (word != kSequenceWord) store(word, words[word]);
    store(kSequenceWord, words[kSequenceWord]);
    // After the stores: a look at the dirty log in between sends the page once more, later.
    wiring_.mark_dirty(page_);
}

state::Status VmclockDevice::start(const std::optional<VmclockCounter>& counter) {
    const std::lock_guard lock{mutex_};
    counter_ = counter;
    const auto now = sample();
    if (!now) return tl::unexpected(now.error());
    host_.begin(*now);
    before_ = host_.state();
    write();
    return {};
}

state::Status VmclockDevice::disrupt(const std::optional<VmclockCounter>& counter,
                                     std::optional<std::uint64_t> generation) {
    const std::lock_guard lock{mutex_};
    counter_ = counter;
    const auto now = sample();
    if (!now) return tl::unexpected(now.error());
    host_ = VmclockHost{before_, kCounterId};
    if (generation)
        host_.restore(*now, *generation);
    else
        host_.disrupt(*now);
    write();
    return {};
}

void VmclockDevice::announce() {
    wiring_.interrupt();
}

state::Result<VmclockHost::Change> VmclockDevice::tend() {
    const std::lock_guard lock{mutex_};
    if (Clock::now() < next_look_) return VmclockHost::Change::kNone;
    next_look_ = Clock::now() + kPeriod;
    const auto now = sample();
    if (!now) return tl::unexpected(now.error());
    if (!*now) return VmclockHost::Change::kNone;
    const VmclockHost::Change change = host_.offer(**now);
    if (change == VmclockHost::Change::kNone) return change;
    write();
    wiring_.interrupt();
    return change;
}

VmclockDeviceState VmclockDevice::save() {
    const std::lock_guard lock{mutex_};
    before_ = host_.state();
    return {page_, before_};
}

VmclockStatus VmclockDevice::status() const {
    const std::lock_guard lock{mutex_};
    return {host_.page(), host_.counts(), host_.step_ns()};
}

}  // namespace continuo::vmm
