#include "continuo/vmm/notice_device.h"

#include <cstddef>
#include <cstdio>
#include <string>
#include <utility>

namespace continuo::vmm {

namespace {

using abi::TimeTravelHost;
using state::ErrorCode;

std::string page_name(std::uint64_t page) {
    char text[40];
    std::snprintf(text, sizeof text, "notice page 0x%llx", static_cast<unsigned long long>(page));
    return text;
}

}  // namespace

NoticeDevice::NoticeDevice(Wiring wiring, std::uint64_t page, std::uint64_t release_after_ns)
    : wiring_{std::move(wiring)},
      page_{page},
      release_after_ns_{release_after_ns},
      host_{release_after_ns},
      before_{release_after_ns} {}

bool NoticeDevice::fits(const kvm::GuestMemory& memory, std::uint64_t page) {
    return page % kvm::kPageSize == 0 && memory.contains(page, kvm::kPageSize);
}

state::Result<std::unique_ptr<NoticeDevice>> NoticeDevice::create(Wiring wiring, std::uint64_t page,
                                                                  std::uint64_t release_after_ns) {
    if (!fits(wiring.memory, page))
        return state::fail(ErrorCode::kInvalidArgument, page_name(page),
                           "it is not a whole page of the guest's memory");
    std::unique_ptr<NoticeDevice> device{
        new NoticeDevice{std::move(wiring), page, release_after_ns}};
    device->write(device->host_.reset());
    device->take_as_before();
    return device;
}

state::Result<std::unique_ptr<NoticeDevice>> NoticeDevice::restore(Wiring wiring,
                                                                   const NoticeState& state) {
    if (state.page != 0 && !fits(wiring.memory, state.page))
        return state::fail(ErrorCode::kMalformed, page_name(state.page),
                           "it is not a whole page of the guest's memory");
    const auto host = TimeTravelHost::restore(state.sums, state.release_after_ns, 0);
    if (!host)
        return state::fail(ErrorCode::kMalformed, page_name(state.page),
                           "an even sequence with something unanswered cannot be");
    std::unique_ptr<NoticeDevice> device{
        new NoticeDevice{std::move(wiring), state.page, state.release_after_ns}};
    device->host_ = *host;
    device->take_as_before();
    return device;
}

// Each store is one aligned word of the page, which the guest cannot take away: it cannot fail.
void NoticeDevice::write(const abi::TimeTravelStores& stores) {
    if (page_ == 0 || stores.empty()) return;
    for (const abi::TimeTravelStore& store : stores.list()) {
        const auto done = wiring_.memory.store(page_ + store.offset, store.value);
        CONTINUO_CHECK(done);
    }
    // After the stores: a look at the dirty log in between sends the page once more, later.
    wiring_.mark_dirty(page_);
}

std::uint64_t NoticeDevice::found() const {
    if (page_ == 0) return host_.sequence();
    const auto word = wiring_.memory.load<std::uint64_t>(
        page_ + offsetof(abi::time_travel_page, migration_sequence));
    CONTINUO_CHECK(word);
    return *word;
}

std::uint64_t NoticeDevice::ran_ns() const {
    const auto now = running_since_ ? Clock::now() - *running_since_ : Clock::duration::zero();
    return ran_before_ns_ + static_cast<std::uint64_t>(std::chrono::nanoseconds{now}.count());
}

bool NoticeDevice::place(std::uint64_t page) {
    const std::lock_guard lock{mutex_};
    page_ = fits(wiring_.memory, page) ? page : 0;
    write(host_.reset());
    garbage_.reset();
    return page_ != 0;
}

std::uint64_t NoticeDevice::page() const {
    const std::lock_guard lock{mutex_};
    return page_;
}

bool NoticeDevice::raise(const abi::TimeTravel& travel) {
    const std::lock_guard lock{mutex_};
    host_ = before_;
    raised_at_ns_ = ran_ns();
    answered_after_ns_.reset();
    write(host_.raise(travel, found_before_, raised_at_ns_));
    return page_ != 0;
}

void NoticeDevice::announce() {
    wiring_.interrupt();
}

void NoticeDevice::on_running(bool runs) {
    const std::lock_guard lock{mutex_};
    if (runs == running_since_.has_value()) return;
    ran_before_ns_ = ran_ns();
    running_since_.reset();
    if (runs)
        running_since_ = Clock::now();
    else
        take_as_before();
}

void NoticeDevice::take_as_before() {
    before_ = host_;
    found_before_ = found();
}

std::optional<NoticeDevice::Event> NoticeDevice::tend() {
    const std::lock_guard lock{mutex_};
    const std::uint64_t now = ran_ns();
    const std::uint64_t sequence = found();
    const auto deadline = host_.deadline();
    const bool due = deadline && now >= *deadline;
    // The same garbage again is not news.
    if (garbage_ == sequence && !due) return std::nullopt;
    const TimeTravelHost::Look look = host_.look(sequence, now);
    write(look.stores);
    return note(look.seen, sequence);
}

std::optional<NoticeDevice::Event> NoticeDevice::note(TimeTravelHost::Seen seen,
                                                      std::uint64_t found) {
    switch (seen) {
        case TimeTravelHost::Seen::kNothing:
            return std::nullopt;
        case TimeTravelHost::Seen::kAnswered:
            answered_after_ns_ = ran_ns() - raised_at_ns_;
            return Event::kAnswered;
        case TimeTravelHost::Seen::kReleased:
            return Event::kReleased;
        case TimeTravelHost::Seen::kGarbage:
            break;
    }
    garbage_ = found;
    return Event::kGarbage;
}

NoticeState NoticeDevice::save() {
    const std::lock_guard lock{mutex_};
    if (const std::uint64_t sequence = found(); garbage_ != sequence) {
        // At the instant 0 no time is up, but for a guest that is given none: its readers are
        // released, and the page goes with the memory.
        const TimeTravelHost::Look look = host_.look(sequence, 0);
        write(look.stores);
        (void)note(look.seen, sequence);
    }
    return {page_, release_after_ns_, host_.state()};
}

NoticeStatus NoticeDevice::status() const {
    const std::lock_guard lock{mutex_};
    return {
        {page_, release_after_ns_, host_.state()}, host_.counts(), answered_after_ns_, garbage_};
}

}  // namespace continuo::vmm
