// The destination's side of a migration, and the listener that answers for it.
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "continuo/kvm/counter.h"
#include "continuo/vmm/confinement.h"
#include "continuo/vmm/migration.h"
#include "protocol.h"

namespace continuo::vmm {

namespace {

using state::Error;
using state::ErrorCode;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kShort{2'000};
constexpr std::chrono::milliseconds kProbeAgain{100};
/// Rounds of the exchange while the VM stands still; the narrowest of a few is narrow enough.
constexpr std::uint32_t kRoundsStopped = 8;

class Destination {
  public:
    Destination(kvm::Fd connection, DestinationVm& vm, const StatusSink& sink,
                const MigrationOptions& options)
        : stream_{std::move(connection)}, vm_{vm}, sink_{sink}, options_{options} {}

    DestinationOutcome run() {
        started_ = Clock::now();
        if (auto done = greet(); !done) return discard(std::move(done.error()));
        if (auto done = receive_all(); !done) return discard(std::move(done.error()));
        // Everything is here. From now on the source's death does not mean the VM's.
        if (auto done = load(); !done) return discard(std::move(done.error()));
        auto committed = await_commit();
        if (!committed) return without_commit(std::move(committed.error()));
        return go(false);
    }

  private:
    void step(Step which) const {
        if (options_.observer) options_.observer(which);
    }
    bool set_status(DestinationStatus status) const { return !sink_ || sink_(id_, status); }
    Deadline io_deadline() const { return after(options_.io_timeout); }

    Status greet() {
        auto frame = expect_frame(stream_, FrameType::kHello, io_deadline());
        if (!frame) return tl::unexpected(std::move(frame.error()));
        const auto hello = decode_hello(frame->payload);
        if (!hello) return tl::unexpected(hello.error());
        id_ = hello->id;
        if (!set_status(DestinationStatus::kReceiving)) {
            return state::fail(ErrorCode::kPeer, "HELLO frame",
                               "a migration of this id has been here before");
        }
        named_ = true;
        if (options_.watch_processes) source_ = ProcessWatch::on(hello->process);
        life_port_ = hello->process.life_port;
        if (life_port_ != 0) {
            if (auto at = peer_at_port(stream_.fd(), life_port_)) source_life_ = std::move(*at);
        }
        if (auto created = vm_.create(hello->shape); !created) return created;
        created_ = true;
        step(Step::kDestinationWelcome);
        return stream_.send(FrameType::kWelcome, encode_welcome({id_, this_process()}),
                            io_deadline());
    }

    /// Takes frames until COMPLETE. Pages may come until the state has; state and clocks come once,
    /// after STOPPED.
    Status receive_all() {
        bool stopped = false;
        bool converged = false;
        for (;;) {
            auto frame = stream_.receive(io_deadline());
            if (!frame) return tl::unexpected(std::move(frame.error()));
            switch (frame->type) {
                case FrameType::kPages:
                    if (state_) return unexpected_frame(frame->type, "CLOCKS or COMPLETE");
                    step(Step::kDestinationReceive);
                    if (auto done = take_pages(frame->payload); !done) return done;
                    break;
                case FrameType::kRoundEnd:
                    if (stopped) return unexpected_frame(frame->type, "the last pages");
                    if (auto done = end_round(frame->payload); !done) return done;
                    break;
                case FrameType::kConverged:
                    if (stopped || converged) return unexpected_frame(frame->type, "another");
                    converged = true;
                    if (auto done = exchange_before_stop(); !done) return done;
                    break;
                case FrameType::kStopped:
                    if (stopped) return unexpected_frame(frame->type, "the last pages");
                    step(Step::kDestinationStopped);
                    stopped_at_ = Clock::now();
                    stopped = true;
                    pages_at_round_start_ = pages_so_far();
                    break;
                case FrameType::kState:
                    if (!stopped || state_) return unexpected_frame(frame->type, "another");
                    state_ = std::move(frame->payload);
                    break;
                case FrameType::kClocks:
                    if (!state_ || clocks_) return unexpected_frame(frame->type, "another");
                    clocks_ = std::move(frame->payload);
                    break;
                case FrameType::kComplete:
                    if (!clocks_) return unexpected_frame(frame->type, "STATE and CLOCKS");
                    return {};
                case FrameType::kFail:
                    return tl::unexpected(decode_failure(frame->payload));
                default:
                    return unexpected_frame(frame->type, "pages or state");
            }
        }
    }

    Status exchange_before_stop() {
        step(Step::kDestinationExchange);
        auto asked = ask(options_.exchange_rounds, after(options_.exchange_time));
        if (!asked) return asked;
        return stream_.send(FrameType::kProceed, {}, io_deadline());
    }

    /// Asks for the source's counter; one round at least.
    Status ask(std::uint32_t rounds, Deadline until) {
        for (std::uint32_t i = 0; i < rounds && exchange_.size() < kProbesMax; ++i) {
            if (i != 0 && Clock::now() > until) break;
            if (auto done = ask_once(); !done) return done;
        }
        if (rounds != 0) vm_.take_exchange(exchange_);
        return {};
    }

    Status ask_once() {
        const auto asked = kvm::host_counter();
        if (auto sent = stream_.send(FrameType::kProbe, {}, io_deadline()); !sent) return sent;
        auto frame = stream_.receive(io_deadline());
        if (!frame) return tl::unexpected(std::move(frame.error()));
        refused_ = true;  // a source that says anything but an answer lives, and has its VM
        if (frame->type == FrameType::kFail) return tl::unexpected(decode_failure(frame->payload));
        if (frame->type != FrameType::kEcho)
            return unexpected_frame(frame->type, name(FrameType::kEcho));
        const auto echo = decode_echo(frame->payload);
        if (!echo) return tl::unexpected(echo.error());
        refused_ = false;
        exchange_.push_back({asked, echo->received, echo->answered, frame->arrived});
        return {};
    }

    std::uint64_t pages_so_far() const { return stats_.pages_sent + stats_.zero_pages; }

    /// One pass names no page twice: a source that goes on and on is not copying.
    Status take_pages(std::span<const std::byte> payload) {
        if (auto done = apply_pages(payload, vm_.memory(), stats_); !done) return done;
        if (pages_so_far() - pages_at_round_start_ <= vm_.memory().size() / kPageBytes) return {};
        return state::fail(ErrorCode::kPeer, "PAGES frame",
                           "more pages in one pass than the memory has");
    }

    Status end_round(std::span<const std::byte> payload) {
        PayloadReader in{payload};
        const auto number = in.get<std::uint32_t>();
        if (!in.complete() || number != stats_.rounds)
            return state::fail(ErrorCode::kMalformed, "ROUND_END frame", "its number is wrong");
        if (++stats_.rounds > kRoundsMax)
            return state::fail(ErrorCode::kPeer, "ROUND_END frame", "the passes do not end");
        pages_at_round_start_ = pages_so_far();
        return {};
    }

    Status load() {
        step(Step::kDestinationLoad);
        return vm_.load(*state_, *clocks_);
    }

    /// Where the source answered before, and the VM says that it is worth it.
    Status exchange_again() {
        if (exchange_.empty() || !vm_.more_rounds_help()) return {};
        step(Step::kDestinationExchangeAgain);
        return ask(kRoundsStopped, after(options_.exchange_time));
    }

    Status await_commit() {
        if (auto asked = exchange_again(); !asked) return asked;
        set_status(DestinationStatus::kReady);
        step(Step::kDestinationReady);
        // A READY that cannot be sent is found out by the wait that follows.
        (void)stream_.send(FrameType::kReady, {}, io_deadline());
        step(Step::kDestinationAwaitCommit);
        auto frame = stream_.receive(after(options_.commit_timeout));
        if (!frame) return tl::unexpected(std::move(frame.error()));
        if (frame->type == FrameType::kCommit) return {};
        refused_ = true;  // the source said something else: it lives, and knows that it has the VM
        if (frame->type == FrameType::kFail) return tl::unexpected(decode_failure(frame->payload));
        return unexpected_frame(frame->type, name(FrameType::kCommit));
    }

    /// The connection broke before COMMIT came. Where the source is proven dead the whole VM is
    /// here alone, and goes on here. Otherwise it is discarded, and a source that did send COMMIT
    /// hears so when it asks.
    DestinationOutcome without_commit(Error reason) {
        if (!refused_ && source_is_dead()) return go(true);
        return discard(std::move(reason));
    }

    /// An end of stream may be a process that is dying and not dead yet, hence the grace.
    bool source_is_dead() const {
        const Life life = source_.wait(options_.death_grace);
        if (life != Life::kUnknown) return life == Life::kDead;
        if (!source_life_) return false;
        const auto until = after(options_.death_grace);
        do {
            const auto alive = connect_to(*source_life_, kShort);
            if (!alive && alive.error().sys_errno == ECONNREFUSED) return true;
            std::this_thread::sleep_for(kProbeAgain);
        } while (Clock::now() < until);
        return false;
    }

    DestinationOutcome go(bool taken_over) {
        set_status(DestinationStatus::kStarting);
        step(Step::kDestinationRun);
        if (auto running = vm_.run(); !running) return discard(std::move(running.error()));
        set_status(DestinationStatus::kRunning);
        stats_.downtime = Clock::now() - stopped_at_;
        step(Step::kDestinationRunning);
        (void)stream_.send(FrameType::kRunning, {}, after(kShort));
        step(Step::kDestinationAwaitDone);
        // Good manners only: the VM is here whether DONE comes or not.
        if (!taken_over) (void)stream_.receive(io_deadline());
        stats_.total = Clock::now() - started_;
        return Arrived{id_, stats_, taken_over};
    }

    DestinationOutcome discard(Error reason) {
        // The VM first, then the word: who hears "discarded" may resume at once.
        if (created_) vm_.discard();
        if (named_) set_status(DestinationStatus::kDiscarded);
        (void)stream_.send(FrameType::kFail, encode_failure(reason), after(kShort));
        return Discarded{std::move(reason)};
    }

    FrameStream stream_;
    DestinationVm& vm_;
    const StatusSink& sink_;
    const MigrationOptions& options_;
    MigrationId id_{};
    ProcessWatch source_;
    std::uint16_t life_port_ = 0;
    std::optional<Address> source_life_;
    std::optional<Bytes> state_;
    std::optional<Bytes> clocks_;
    state::Exchange exchange_;
    MigrationStats stats_;
    std::uint64_t pages_at_round_start_ = 0;
    bool named_ = false;
    bool created_ = false;
    bool refused_ = false;
    Clock::time_point started_;
    Clock::time_point stopped_at_;
};

bool wait_readable(int fd, std::chrono::milliseconds timeout) {
    pollfd poll_fd{fd, POLLIN, 0};
    return ::poll(&poll_fd, 1, static_cast<int>(timeout.count())) > 0;
}

/// The type of the first frame, left in the socket; nullopt where none comes in time.
std::optional<FrameType> peek_type(int fd, std::chrono::milliseconds timeout) {
    const auto until = after(timeout);
    do {
        FrameHeader header;
        if (!wait_readable(fd, timeout)) return std::nullopt;
        const ssize_t got = ::recv(fd, &header, sizeof header, MSG_PEEK | MSG_DONTWAIT);
        if (got == static_cast<ssize_t>(sizeof header)) return static_cast<FrameType>(header.type);
        if (got <= 0) return std::nullopt;
        std::this_thread::sleep_for(std::chrono::milliseconds{1});
    } while (Clock::now() < until);
    return std::nullopt;
}

}  // namespace

DestinationOutcome receive_vm(kvm::Fd connection, DestinationVm& vm, const StatusSink& sink,
                              const MigrationOptions& options) {
    return Destination{std::move(connection), vm, sink, options}.run();
}

Result<std::unique_ptr<Receiver>> Receiver::open(const Address& address) {
    auto listener = listen_on(address);
    if (!listener) return tl::unexpected(std::move(listener.error()));
    std::unique_ptr<Receiver> receiver{new Receiver};
    receiver->address_ = address;
    if (address.kind == Address::Kind::kTcp) {
        const auto port = port_of(*listener);
        if (!port) return tl::unexpected(port.error());
        receiver->address_.port = std::to_string(*port);
    }
    receiver->listener_ = std::move(*listener);
    receiver->wake_ = kvm::Fd{::eventfd(0, EFD_CLOEXEC)};
    if (!receiver->wake_) return kvm::kernel_failure("eventfd", errno);
    // Where no filter can be set it does not listen, as receive() cannot be called confined either.
    receiver->thread_ = std::thread{[self = receiver.get()] {
        if (confine_this_thread(Confinement::kMigration)) self->serve();
    }};
    return receiver;
}

Receiver::~Receiver() {
    const std::uint64_t one = 1;
    if (wake_) (void)!::write(wake_.get(), &one, sizeof one);
    if (thread_.joinable()) thread_.join();
    if (address_.kind == Address::Kind::kUnix && listener_) ::unlink(address_.path.c_str());
}

void Receiver::serve() {
    for (;;) {
        pollfd fds[] = {{listener_.get(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
        if (::poll(fds, 2, -1) < 0 && errno != EINTR) return;
        if (fds[1].revents != 0) return;
        if ((fds[0].revents & POLLIN) == 0) continue;
        kvm::Fd connection{::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC)};
        if (connection) greet(std::move(connection));
    }
}

void Receiver::greet(kvm::Fd connection) {
    const auto type = peek_type(connection.get(), std::chrono::milliseconds{1'000});
    if (!type) return;
    if (*type == FrameType::kStatusQuery) {
        answer_status(std::move(connection));
        return;
    }
    std::unique_lock lock{mutex_};
    if (free_) {
        free_ = false;
        incoming_ = std::move(connection);
        arrived_.notify_all();
        return;
    }
    lock.unlock();
    const Error busy{ErrorCode::kBusy, address_.text(), "this socket already has a VM",
                     "use another socket for each VM", 0};
    FrameStream stream{std::move(connection)};
    (void)stream.send(FrameType::kFail, encode_failure(busy), after(kShort));
}

void Receiver::answer_status(kvm::Fd connection) {
    FrameStream stream{std::move(connection)};
    const auto query = stream.receive(after(kShort));
    if (!query) return;
    PayloadReader in{query->payload};
    const auto id = in.get<MigrationId>();
    if (!in.complete()) return;
    auto status = DestinationStatus::kUnknown;
    {
        std::lock_guard lock{mutex_};
        for (const auto& [known, its_status] : statuses_)
            if (known == id) status = its_status;
    }
    const Bytes answer = PayloadWriter{}.put(id).put(static_cast<std::uint32_t>(status)).take();
    (void)stream.send(FrameType::kStatus, answer, after(kShort));
}

bool Receiver::set_status(const MigrationId& id, DestinationStatus status) {
    std::lock_guard lock{mutex_};
    for (auto& [known, its_status] : statuses_) {
        if (known != id) continue;
        if (status == DestinationStatus::kReceiving) return false;
        its_status = status;
        return true;
    }
    statuses_.emplace_back(id, status);
    return true;
}

Result<DestinationOutcome> Receiver::receive(DestinationVm& vm, const MigrationOptions& options,
                                             std::chrono::milliseconds wait) {
    std::unique_lock lock{mutex_};
    if (!arrived_.wait_for(lock, wait, [&] { return incoming_.has_value(); })) {
        return state::fail(ErrorCode::kTimeout, address_.text(), "no source has come",
                           "start `continuo vm send` on the source");
    }
    kvm::Fd connection = std::move(*incoming_);
    incoming_.reset();
    lock.unlock();
    const StatusSink sink = [this](const MigrationId& id, DestinationStatus status) {
        return set_status(id, status);
    };
    auto outcome = receive_vm(std::move(connection), vm, sink, options);
    if (std::holds_alternative<Discarded>(outcome)) {
        lock.lock();
        free_ = true;
    }
    return outcome;
}

}  // namespace continuo::vmm
