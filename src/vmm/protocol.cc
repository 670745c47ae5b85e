#include "protocol.h"

#include <sys/random.h>

#include <algorithm>
#include <random>

namespace continuo::vmm {

using state::ErrorCode;

MigrationId new_migration_id() {
    MigrationId id{};
    if (::getrandom(id.data(), id.size(), 0) == static_cast<ssize_t>(id.size())) return id;
    std::random_device device;
    for (std::uint8_t& byte : id)
        byte = static_cast<std::uint8_t>(device());
    return id;
}

std::string_view name(Step step) {
    switch (step) {
        case Step::kSourceHello:
            return "source-hello";
        case Step::kSourceRound:
            return "source-round";
        case Step::kSourceExchange:
            return "source-exchange";
        case Step::kSourceStop:
            return "source-stop";
        case Step::kSourceLastPages:
            return "source-last-pages";
        case Step::kSourceState:
            return "source-state";
        case Step::kSourceComplete:
            return "source-complete";
        case Step::kSourceAwaitReady:
            return "source-await-ready";
        case Step::kSourceCommit:
            return "source-commit";
        case Step::kSourceAwaitRunning:
            return "source-await-running";
        case Step::kSourceDestroy:
            return "source-destroy";
        case Step::kSourceDone:
            return "source-done";
        case Step::kDestinationWelcome:
            return "destination-welcome";
        case Step::kDestinationReceive:
            return "destination-receive";
        case Step::kDestinationExchange:
            return "destination-exchange";
        case Step::kDestinationStopped:
            return "destination-stopped";
        case Step::kDestinationLoad:
            return "destination-load";
        case Step::kDestinationExchangeAgain:
            return "destination-exchange-again";
        case Step::kDestinationReady:
            return "destination-ready";
        case Step::kDestinationAwaitCommit:
            return "destination-await-commit";
        case Step::kDestinationRun:
            return "destination-run";
        case Step::kDestinationRunning:
            return "destination-running";
        case Step::kDestinationAwaitDone:
            return "destination-await-done";
        case Step::kStepCount:
            break;
    }
    return "?";
}

std::string_view name(DestinationStatus status) {
    switch (status) {
        case DestinationStatus::kUnknown:
            return "unknown";
        case DestinationStatus::kReceiving:
            return "receiving";
        case DestinationStatus::kReady:
            return "ready";
        case DestinationStatus::kStarting:
            return "starting";
        case DestinationStatus::kRunning:
            return "running";
        case DestinationStatus::kDiscarded:
            return "discarded";
    }
    return "?";
}

namespace {

tl::unexpected<state::Error> bad_payload(FrameType type, std::string what) {
    return state::fail(ErrorCode::kMalformed, std::string{name(type)} + " frame", std::move(what));
}

ProcessIdentity get_process(PayloadReader& in) {
    return in.get<ProcessIdentity>();
}

}  // namespace

Bytes encode_hello(const Hello& hello) {
    return PayloadWriter{}.put(hello.id).put(hello.process).put_block(hello.shape).take();
}

Result<Hello> decode_hello(std::span<const std::byte> payload) {
    PayloadReader in{payload};
    Hello hello;
    hello.id = in.get<MigrationId>();
    hello.process = get_process(in);
    const auto shape = in.get_block();
    if (!in.complete()) return bad_payload(FrameType::kHello, "its length is wrong");
    hello.shape.assign(shape.begin(), shape.end());
    return hello;
}

Bytes encode_welcome(const Welcome& welcome) {
    return PayloadWriter{}.put(welcome.id).put(welcome.process).take();
}

Result<Welcome> decode_welcome(std::span<const std::byte> payload) {
    PayloadReader in{payload};
    Welcome welcome;
    welcome.id = in.get<MigrationId>();
    welcome.process = get_process(in);
    if (!in.complete()) return bad_payload(FrameType::kWelcome, "its length is wrong");
    return welcome;
}

Bytes encode_echo(const Echo& echo) {
    return PayloadWriter{}.put(echo.received.raw()).put(echo.answered.raw()).take();
}

Result<Echo> decode_echo(std::span<const std::byte> payload) {
    using SourceCount = time::Count<time::SourceCounter>;
    PayloadReader in{payload};
    Echo echo;
    echo.received = SourceCount::from_raw(in.get<std::uint64_t>());
    echo.answered = SourceCount::from_raw(in.get<std::uint64_t>());
    if (!in.complete()) return bad_payload(FrameType::kEcho, "its length is wrong");
    if ((echo.answered - echo.received).raw() < 0)
        return bad_payload(FrameType::kEcho, "it was answered before it was received");
    return echo;
}

Bytes encode_failure(const state::Error& error) {
    std::string text = error.message();
    text.resize(std::min(text.size(), kErrorTextMax));
    return PayloadWriter{}
        .put(static_cast<std::uint32_t>(error.code))
        .put_block(std::as_bytes(std::span{text}))
        .take();
}

state::Error decode_failure(std::span<const std::byte> payload) {
    PayloadReader in{payload};
    const auto code = in.get<std::uint32_t>();
    const auto bytes = in.get_block();
    std::string text;
    for (const std::byte byte : bytes.first(std::min(bytes.size(), kErrorTextMax))) {
        const auto c = static_cast<char>(byte);
        text.push_back(c >= ' ' && c <= '~' ? c : '?');
    }
    if (!in.complete() || text.empty()) text = "it gave up and did not say why";
    const bool busy = code == static_cast<std::uint32_t>(ErrorCode::kBusy);
    return {busy ? ErrorCode::kBusy : ErrorCode::kPeer, "the other side", text, "", 0};
}

tl::unexpected<state::Error> unexpected_frame(FrameType got, std::string_view wanted) {
    return state::fail(ErrorCode::kPeer, std::string{name(got)} + " frame",
                       "it may not come here; due was " + std::string{wanted});
}

Result<Frame> expect_frame(FrameStream& stream, FrameType type, Deadline deadline) {
    auto frame = stream.receive(deadline);
    if (!frame) return frame;
    if (frame->type == FrameType::kFail) return tl::unexpected(decode_failure(frame->payload));
    if (frame->type != type) return unexpected_frame(frame->type, name(type));
    return frame;
}

Status apply_pages(std::span<const std::byte> payload, std::span<std::byte> memory,
                   MigrationStats& stats) {
    PayloadReader in{payload};
    const auto count = in.get<std::uint32_t>();
    const auto zero = in.get<std::uint32_t>();
    if (!in.ok() || zero != 0 || count == 0 || count > kPagesAFrame)
        return bad_payload(FrameType::kPages, "its head is wrong");
    PayloadReader entries{in.get_bytes(count * sizeof(std::uint64_t))};
    if (!in.ok()) return bad_payload(FrameType::kPages, "its entries are cut off");
    for (std::uint32_t i = 0; i < count; ++i) {
        const auto entry = entries.get<std::uint64_t>();
        const std::uint64_t page = entry >> 1;
        if (page >= memory.size() / kPageBytes) {
            return bad_payload(FrameType::kPages, "entry " + std::to_string(i) + " names page " +
                                                      std::to_string(page) + " outside memory");
        }
        const auto to = memory.subspan(page * kPageBytes, kPageBytes);
        if ((entry & kPageHasData) == 0) {
            std::fill(to.begin(), to.end(), std::byte{0});
            ++stats.zero_pages;
            continue;
        }
        const auto from = in.get_bytes(kPageBytes);
        if (!in.ok()) return bad_payload(FrameType::kPages, "its pages are cut off");
        std::copy(from.begin(), from.end(), to.begin());
        ++stats.pages_sent;
    }
    if (!in.complete()) return bad_payload(FrameType::kPages, "bytes are left over");
    return {};
}

}  // namespace continuo::vmm
