// The source's side of a migration.
#include <sys/socket.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include "continuo/kvm/counter.h"
#include "continuo/time/rate.h"
#include "continuo/vmm/migration.h"
#include "protocol.h"

namespace continuo::vmm {

namespace {

using state::Error;
using state::ErrorCode;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kAskAgain{50};
constexpr std::chrono::milliseconds kAskTimeout{2'000};
constexpr std::chrono::milliseconds kTellEvery{200};

/// Rounded down; the most there is where nothing took the time.
std::uint64_t bytes_a_second(std::uint64_t bytes, std::chrono::nanoseconds took) {
    if (took.count() <= 0) return ~std::uint64_t{0};
    return static_cast<std::uint64_t>(time::u128{bytes} * time::kNanosPerSecond /
                                      static_cast<std::uint64_t>(took.count()));
}

std::string in_words(std::chrono::nanoseconds length) {
    const std::int64_t us = length.count() / 1'000;
    return us < 10'000 ? std::to_string(us) + " us" : std::to_string(us / 1'000) + " ms";
}

/// Every byte equals the one before it, and the first is zero.
bool is_zero(std::span<const std::byte> page) {
    return page[0] == std::byte{0} &&
           std::memcmp(page.data(), page.data() + 1, page.size() - 1) == 0;
}

/// Collects pages into frames.
class PageSender {
  public:
    PageSender(FrameStream& stream, std::span<const std::byte> memory,
               const MigrationOptions& options, MigrationStats& stats)
        : stream_{stream}, memory_{memory}, options_{options}, stats_{stats} {}

    Status add(std::uint64_t page, bool skip_zero) {
        const auto from = memory_.subspan(page * kPageBytes, kPageBytes);
        // A copy first: the guest may write the page between the look and the sending.
        const std::size_t had = data_.size();
        data_.insert(data_.end(), from.begin(), from.end());
        const bool zero = is_zero(std::span{data_}.subspan(had));
        if (zero) data_.resize(had);
        if (zero && skip_zero) return {};
        entries_.push_back(page << 1 | (zero ? 0 : kPageHasData));
        ++(zero ? stats_.zero_pages : stats_.pages_sent);
        return entries_.size() == kPagesAFrame ? flush() : Status{};
    }

    Status flush() {
        if (entries_.empty()) return {};
        const Bytes payload = PayloadWriter{}
                                  .put(static_cast<std::uint32_t>(entries_.size()))
                                  .put(std::uint32_t{0})
                                  .put_bytes(std::as_bytes(std::span{entries_}))
                                  .put_bytes(data_)
                                  .take();
        entries_.clear();
        data_.clear();
        return stream_.send(FrameType::kPages, payload, after(options_.io_timeout));
    }

  private:
    FrameStream& stream_;
    std::span<const std::byte> memory_;
    const MigrationOptions& options_;
    MigrationStats& stats_;
    std::vector<std::uint64_t> entries_;
    Bytes data_;
};

/// Fewer bytes say nothing about the speed.
constexpr std::uint64_t kBytesThatTell = 100'000;

class Source {
  public:
    Source(kvm::Fd connection, SourceVm& vm, const std::function<Result<kvm::Fd>()>& reconnect,
           const MigrationOptions& options)
        : stream_{std::move(connection)}, vm_{vm}, reconnect_{reconnect}, options_{options} {}

    SourceOutcome run() {
        started_ = Clock::now();
        if (auto ready = up_to_ready(); !ready) return keep(std::move(ready.error()));
        // From here on the VM may be the destination's: whatever happens, it runs here again only
        // where the destination says that it has none, or is dead.
        step(Step::kSourceCommit);
        auto handed_over = commit();
        if (!handed_over) return decide(std::move(handed_over.error()));
        return moved();
    }

  private:
    void step(Step which) const {
        if (options_.observer) options_.observer(which);
    }
    Deadline io_deadline() const { return after(options_.io_timeout); }
    Status send(FrameType type, std::span<const std::byte> payload = {}) {
        return stream_.send(type, payload, io_deadline());
    }

    Status up_to_ready() {
        if (auto done = greet(); !done) return done;
        if (auto done = vm_.log_dirty_pages(true); !done) return done;
        logging_ = true;
        if (auto done = copy_while_running(); !done) return done;
        if (auto done = offer_exchange(); !done) return done;
        if (auto done = copy_stopped(); !done) return done;
        step(Step::kSourceAwaitReady);
        return answer_until(FrameType::kReady, after(options_.ready_timeout));
    }

    /// The guest runs on meanwhile. As late as it may: between here and the stop only the counters'
    /// rates are known.
    Status offer_exchange() {
        step(Step::kSourceExchange);
        if (auto done = send(FrameType::kConverged); !done) return done;
        return answer_until(FrameType::kProceed, io_deadline());
    }

    /// Answers every PROBE with our counter until a frame of this type comes.
    Status answer_until(FrameType end, Deadline deadline) {
        for (;;) {
            auto frame = stream_.receive(deadline);
            if (!frame) return tl::unexpected(std::move(frame.error()));
            if (frame->type == end) return {};
            if (frame->type == FrameType::kFail)
                return tl::unexpected(decode_failure(frame->payload));
            if (frame->type != FrameType::kProbe || !frame->payload.empty())
                return unexpected_frame(frame->type, name(end));
            if (++probes_ > kProbesMax)
                return state::fail(ErrorCode::kPeer, "PROBE frame", "the questions do not end");
            if (auto done = echo(frame->arrived); !done) return done;
        }
    }

    Status echo(time::Count<time::HostCounter> arrived) {
        // Nothing stands between the second reading and the call that sends it but its own frame.
        const Bytes answer = encode_echo(
            {time::recorded_counter(arrived), time::recorded_counter(kvm::host_counter())});
        return send(FrameType::kEcho, answer);
    }

    Status greet() {
        step(Step::kSourceHello);
        ProcessIdentity self = this_process();
        // How a destination on another host can tell, where the connection breaks, whether we died.
        if (over_tcp()) self.life_port = life_port(family() == AF_INET6);
        const Bytes hello = encode_hello({id_, self, vm_.shape()});
        if (auto done = send(FrameType::kHello, hello); !done) return done;
        auto frame = expect_frame(stream_, FrameType::kWelcome, after(options_.ready_timeout));
        if (!frame) return tl::unexpected(std::move(frame.error()));
        const auto welcome = decode_welcome(frame->payload);
        if (!welcome) return tl::unexpected(welcome.error());
        if (welcome->id != id_)
            return state::fail(ErrorCode::kPeer, "WELCOME frame", "it answers another migration");
        refusal_counts_ = over_tcp() || welcome->process.boot_id == self.boot_id;
        if (options_.watch_processes) destination_ = ProcessWatch::on(welcome->process);
        return {};
    }

    /// The family of our connection's socket; AF_UNSPEC where it has none.
    sa_family_t family() const {
        sockaddr_storage storage{};
        socklen_t length = sizeof storage;
        const bool known =
            ::getsockname(stream_.fd(), reinterpret_cast<sockaddr*>(&storage), &length) == 0;
        return known ? storage.ss_family : sa_family_t{AF_UNSPEC};
    }
    bool over_tcp() const { return family() == AF_INET || family() == AF_INET6; }

    Status send_pages(const std::vector<std::uint64_t>& bitmap, bool first) {
        PageSender pages{stream_, vm_.memory(), options_, stats_};
        const std::uint64_t count = vm_.memory().size() / kPageBytes;
        for (std::size_t word = 0; word < bitmap.size(); ++word) {
            for (std::uint64_t bits = bitmap[word]; bits != 0; bits &= bits - 1) {
                const std::uint64_t page =
                    word * 64 + static_cast<std::uint64_t>(std::countr_zero(bits));
                if (page >= count) break;
                if (auto done = pages.add(page, first); !done) return done;
                ++progress_.pages_done;
                tell(Clock::now() >= tell_next_);
            }
        }
        return pages.flush();
    }

    void tell(bool now) {
        if (!now || stopped_ || !options_.progress) return;
        tell_next_ = Clock::now() + kTellEvery;
        progress_.bytes = stream_.bytes_sent();
        if (const auto rate = rate_of_pass()) progress_.bytes_a_second = *rate;
        options_.progress(progress_);
    }

    /// nullopt where too little was sent to say: what that took is mostly waiting.
    std::optional<std::uint64_t> rate_of_pass() const {
        const std::uint64_t sent = stream_.bytes_sent() - bytes_before_pass_;
        if (sent <= kBytesThatTell) return std::nullopt;
        return bytes_a_second(sent, Clock::now() - pass_began_);
    }

    static std::uint64_t count_pages(const std::vector<std::uint64_t>& bitmap) {
        std::uint64_t count = 0;
        for (const std::uint64_t word : bitmap)
            count += static_cast<std::uint64_t>(std::popcount(word));
        return count;
    }

    Status one_round(const std::vector<std::uint64_t>& bitmap) {
        step(Step::kSourceRound);
        pass_began_ = Clock::now();
        bytes_before_pass_ = stream_.bytes_sent();
        progress_.round = stats_.rounds + 1;
        progress_.pages = count_pages(bitmap);
        progress_.pages_done = 0;
        tell(true);
        if (auto done = send_pages(bitmap, stats_.rounds == 0); !done) return done;
        const Bytes number = PayloadWriter{}.put(stats_.rounds).take();
        if (auto done = send(FrameType::kRoundEnd, number); !done) return done;
        if (const auto rate = rate_of_pass()) bytes_a_second_ = *rate;
        ++stats_.rounds;
        return {};
    }

    Status copy_while_running() {
        if (auto done = vm_.fetch_touched_pages(dirty_); !done) return done;
        for (;;) {
            if (auto done = one_round(dirty_); !done) return done;
            if (stream_.readable()) {
                auto word = stream_.receive(io_deadline());
                if (!word) return tl::unexpected(std::move(word.error()));
                if (word->type == FrameType::kFail)
                    return tl::unexpected(decode_failure(word->payload));
                return unexpected_frame(word->type, "nothing");
            }
            if (auto done = vm_.fetch_dirty_pages(dirty_); !done) return done;
            const std::uint64_t rest = count_pages(dirty_);
            stats_.expected_downtime = time_for(rest);
            progress_.expected_downtime = stats_.expected_downtime;
            tell(true);
            if (stats_.expected_downtime <= options_.downtime_max) return {};
            if (stats_.rounds < options_.rounds_max) continue;
            return options_.force ? Status{} : does_not_converge(rest);
        }
    }

    /// Rounded up.
    std::chrono::nanoseconds time_for(std::uint64_t pages) const {
        const auto rate = time::u128{std::max<std::uint64_t>(bytes_a_second_, 1)};
        const auto ns = (time::u128{pages * kPageBytes} * time::kNanosPerSecond + rate - 1) / rate;
        constexpr auto kMost = time::u128{std::chrono::nanoseconds::max().count()};
        return std::chrono::nanoseconds{static_cast<std::int64_t>(std::min(ns, kMost))};
    }

    Status does_not_converge(std::uint64_t rest) const {
        return state::fail(
            ErrorCode::kTimeout, "pre-copy",
            "after " + std::to_string(stats_.rounds) + " passes the guest still has " +
                std::to_string(rest) + " dirty pages, for which it would stand still " +
                in_words(stats_.expected_downtime) + "; the limit is " +
                in_words(options_.downtime_max),
            "raise the limit (--downtime-limit), or stop the guest all the same (--force)");
    }

    Status copy_stopped() {
        step(Step::kSourceStop);
        stopped_at_ = Clock::now();
        stopped_ = true;
        if (auto done = vm_.stop(); !done) return done;
        auto clocks = vm_.capture_clocks();
        if (!clocks) return tl::unexpected(std::move(clocks.error()));
        if (auto done = send(FrameType::kStopped); !done) return done;
        // Before the last look at the log: reading a vCPU's state may write into its memory.
        auto state = vm_.save_state();
        if (!state) return tl::unexpected(std::move(state.error()));

        step(Step::kSourceLastPages);
        // The pages that the last look at the log has left, and those dirtied since.
        std::vector<std::uint64_t> late;
        if (auto done = vm_.fetch_dirty_pages(late); !done) return done;
        for (std::size_t i = 0; i < std::min(late.size(), dirty_.size()); ++i)
            dirty_[i] |= late[i];
        const std::uint64_t sent_before = stats_.pages_sent + stats_.zero_pages;
        if (auto done = send_pages(dirty_, false); !done) return done;
        stats_.last_pages = stats_.pages_sent + stats_.zero_pages - sent_before;

        step(Step::kSourceState);
        if (auto done = send(FrameType::kState, *state); !done) return done;
        if (auto done = send(FrameType::kClocks, *clocks); !done) return done;
        step(Step::kSourceComplete);
        return send(FrameType::kComplete);
    }

    /// A failure before COMMIT: the VM goes on here.
    SourceOutcome keep(Error reason) {
        // A destination that gave up has said why before it closed.
        if (reason.code == ErrorCode::kPeer && stream_.readable()) {
            auto last_word = stream_.receive(after(std::chrono::milliseconds{200}));
            if (last_word && last_word->type == FrameType::kFail)
                reason = decode_failure(last_word->payload);
        }
        (void)stream_.send(FrameType::kFail, encode_failure(reason), after(kAskTimeout));
        stream_.close();
        return resume_here(std::move(reason));
    }

    SourceOutcome resume_here(Error reason) {
        if (logging_) (void)vm_.log_dirty_pages(false);
        if (stopped_) {
            if (auto resumed = vm_.resume(); !resumed) return Undecided{std::move(resumed.error())};
        }
        return Kept{std::move(reason)};
    }

    Status commit() {
        if (auto done = stream_.send(FrameType::kCommit, {}, io_deadline()); !done) return done;
        step(Step::kSourceAwaitRunning);
        auto frame = stream_.receive(after(options_.ready_timeout));
        if (!frame) return tl::unexpected(std::move(frame.error()));
        if (frame->type == FrameType::kRunning) return {};
        if (frame->type != FrameType::kFail) return unexpected_frame(frame->type, "RUNNING");
        // Said after the destination has discarded its VM, never before.
        destination_failed_ = true;
        return tl::unexpected(decode_failure(frame->payload));
    }

    SourceOutcome moved() {
        stats_.downtime = Clock::now() - stopped_at_;
        step(Step::kSourceDestroy);
        vm_.destroy();
        step(Step::kSourceDone);
        (void)stream_.send(FrameType::kDone, {}, after(kAskTimeout));
        stats_.total = Clock::now() - started_;
        stats_.bytes = stream_.bytes_sent();
        return Moved{stats_};
    }

    /// COMMIT may have arrived or not. Asks until the destination knows, or is dead.
    SourceOutcome decide(Error reason) {
        stream_.close();
        if (destination_failed_) return resume_here(std::move(reason));
        const auto until = after(options_.decide_timeout);
        do {
            if (destination_.life() == Life::kDead) return resume_here(std::move(reason));
            switch (ask()) {
                case DestinationStatus::kRunning:
                    return moved();
                case DestinationStatus::kDiscarded:
                    return resume_here(std::move(reason));
                default:
                    break;
            }
            (void)destination_.wait(kAskAgain);
            if (destination_.life() == Life::kUnknown) std::this_thread::sleep_for(kAskAgain);
        } while (Clock::now() < until);
        reason.what += "; whether the destination runs the VM could not be found out";
        reason.advice =
            "the VM is whole and stands still here: resume it only if you know that the "
            "destination does not run it";
        return Undecided{std::move(reason)};
    }

    /// kUnknown where there is no answer.
    DestinationStatus ask() {
        if (!reconnect_) return DestinationStatus::kUnknown;
        auto connection = reconnect_();
        if (!connection) {
            return connection.error().sys_errno == ECONNREFUSED ? not_there()
                                                                : DestinationStatus::kUnknown;
        }
        const auto status = ask_status(std::move(*connection), id_, kAskTimeout);
        if (!status) return DestinationStatus::kUnknown;
        return *status == DestinationStatus::kUnknown ? not_there() : *status;
    }

    /// Nobody listens there any more, or somebody who does not know this migration: the process
    /// that had our VM is gone. Unless we can see that it is not, or the socket is a forwarder's: a
    /// Unix socket reaches no other boot by itself.
    DestinationStatus not_there() const {
        const bool proven = refusal_counts_ && destination_.life() != Life::kAlive;
        return proven ? DestinationStatus::kDiscarded : DestinationStatus::kUnknown;
    }

    const MigrationId id_ = new_migration_id();
    FrameStream stream_;
    SourceVm& vm_;
    const std::function<Result<kvm::Fd>()>& reconnect_;
    const MigrationOptions& options_;
    ProcessWatch destination_;
    MigrationStats stats_;
    std::size_t probes_ = 0;
    std::vector<std::uint64_t> dirty_;
    MigrationProgress progress_;
    Clock::time_point tell_next_;
    Clock::time_point pass_began_;
    std::uint64_t bytes_before_pass_ = 0;
    std::uint64_t bytes_a_second_ = 100'000'000;
    bool logging_ = false;
    bool stopped_ = false;
    bool destination_failed_ = false;
    bool refusal_counts_ = false;
    Clock::time_point started_;
    Clock::time_point stopped_at_;
};

}  // namespace

SourceOutcome send_vm(kvm::Fd connection, SourceVm& vm,
                      const std::function<Result<kvm::Fd>()>& reconnect,
                      const MigrationOptions& options) {
    return Source{std::move(connection), vm, reconnect, options}.run();
}

Result<DestinationStatus> ask_status(kvm::Fd connection, const MigrationId& id,
                                     std::chrono::milliseconds timeout) {
    FrameStream stream{std::move(connection)};
    const Bytes query = PayloadWriter{}.put(id).take();
    if (auto sent = stream.send(FrameType::kStatusQuery, query, after(timeout)); !sent)
        return tl::unexpected(std::move(sent.error()));
    auto frame = expect_frame(stream, FrameType::kStatus, after(timeout));
    if (!frame) return tl::unexpected(std::move(frame.error()));
    PayloadReader in{frame->payload};
    const auto answered = in.get<MigrationId>();
    const auto status = in.get<std::uint32_t>();
    const bool known = status <= static_cast<std::uint32_t>(DestinationStatus::kDiscarded);
    if (!in.complete() || answered != id || !known)
        return state::fail(ErrorCode::kMalformed, "STATUS frame", "it answers something else");
    return static_cast<DestinationStatus>(status);
}

}  // namespace continuo::vmm
