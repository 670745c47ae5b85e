// What a hostile peer of a migration can send: bytes where frames should be, frames in any order
// with any payload, and payloads as they are. Whatever decodes must survive its own round trip, and
// no order of frames makes a destination run a VM that is not whole.
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

#include "continuo/state/codec.h"
#include "continuo/vmm/arm64_state.h"
#include "continuo/vmm/kvm_migration.h"
#include "fuzzed_rounds.h"
#include "protocol.h"

namespace {

using namespace continuo;
using namespace continuo::vmm;
using namespace std::chrono_literals;
using Input = std::span<const std::byte>;

constexpr std::size_t kMemoryPages = 4;

void expect_error(const state::Error& error) {
    CONTINUO_CHECK(!error.where.empty() && !error.what.empty());
    CONTINUO_CHECK(error.message().size() < 8192);
}

/// Both architectures' states, whatever this one is.
template <class Decode, class Encode>
void try_state(Input bytes, Decode decode, Encode encode) {
    const auto state = decode(bytes);
    if (!state) return expect_error(state.error());
    const auto once = encode(*state);
    const auto again = decode(once);
    CONTINUO_CHECK(again.has_value());
    CONTINUO_CHECK(encode(*again) == once);
}

void try_shape(Input bytes) {
    const auto shape = decode_shape(bytes);
    if (!shape) return expect_error(shape.error());
    CONTINUO_CHECK(check(shape->config).has_value());
    const Bytes once = encode_shape(*shape);
    CONTINUO_CHECK(std::equal(once.begin(), once.end(), bytes.begin(), bytes.end()));
}

void try_payloads(Input bytes) {
    if (const auto hello = decode_hello(bytes); !hello) expect_error(hello.error());
    if (const auto welcome = decode_welcome(bytes); !welcome) expect_error(welcome.error());
    expect_error(decode_failure(bytes));
    if (const auto echo = decode_echo(bytes); !echo) {
        expect_error(echo.error());
    } else {
        CONTINUO_CHECK((echo->answered - echo->received).raw() >= 0);
        const Bytes once = encode_echo(*echo);
        CONTINUO_CHECK(std::equal(once.begin(), once.end(), bytes.begin(), bytes.end()));
    }
    // Guarded by the sanitizer: nothing outside these pages is written.
    Bytes memory(kMemoryPages * kPageBytes);
    MigrationStats stats;
    if (const auto done = apply_pages(bytes, memory, stats); !done) expect_error(done.error());
}

/// Two ends of a stream, either of which may be given away.
struct Ends {
    kvm::Fd ours;
    kvm::Fd theirs;
};

Ends connected() {
    int fds[2];
    CONTINUO_CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    return {kvm::Fd{fds[0]}, kvm::Fd{fds[1]}};
}

void try_stream(Input bytes) {
    Ends ends = connected();
    const ssize_t sent =
        ::send(ends.theirs.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    CONTINUO_CHECK(sent == static_cast<ssize_t>(bytes.size()));
    ends.theirs.reset();
    FrameStream stream{std::move(ends.ours)};
    for (;;) {
        const auto frame = stream.receive(after(1s));
        if (frame) continue;
        CONTINUO_CHECK(frame.error().code != state::ErrorCode::kTimeout);
        return expect_error(frame.error());
    }
}

/// A VM that decodes all that a real one would, and has no KVM below it.
class NoVm final : public DestinationVm {
  public:
    Status create(Input shape) override {
        const auto decoded = decode_shape(shape);
        if (!decoded) return tl::unexpected(decoded.error());
        return {};
    }
    std::span<std::byte> memory() override { return memory_; }
    Status load(Input state, Input clocks) override {
        const auto loaded = decode_state(state);
        if (!loaded) return tl::unexpected(loaded.error());
        const auto record = state::decode(clocks);
        if (!record) return tl::unexpected(record.error());
        loaded_ = true;
        return {};
    }
    void take_exchange(const state::Exchange& rounds) override {
        CONTINUO_CHECK(state::check(rounds).has_value());
        CONTINUO_CHECK(!rounds.empty() && !ran && !gone_);
    }
    bool more_rounds_help() override {
        CONTINUO_CHECK(loaded_);
        return true;
    }
    Status run() override {
        CONTINUO_CHECK(loaded_ && !ran && !gone_);
        ran = true;
        return {};
    }
    void discard() override {
        CONTINUO_CHECK(!ran);
        gone_ = true;
    }
    bool ran = false;

  private:
    Bytes memory_ = Bytes(kMemoryPages * kPageBytes);
    bool loaded_ = false;
    bool gone_ = false;
};

/// True where the frames end in what the destination must have before it runs.
bool is_whole(std::span<const FrameType> sent, bool taken_over) {
    std::vector<FrameType> needed{FrameType::kHello, FrameType::kStopped, FrameType::kState,
                                  FrameType::kClocks, FrameType::kComplete};
    if (!taken_over) needed.push_back(FrameType::kCommit);
    std::size_t next = 0;
    for (const FrameType type : sent)
        if (next < needed.size() && type == needed[next]) ++next;
    return next == needed.size();
}

/// The input as a source's script: a byte of type, two of length, the payload, and so on; each
/// becomes a frame without fault.
void try_source(Input script) {
    Ends ends = connected();
    FrameStream source{std::move(ends.theirs)};
    std::vector<FrameType> sent;
    PayloadReader in{script};
    while (in.left() > 0 && sent.size() < 64) {
        const auto type = static_cast<FrameType>(in.get<std::uint8_t>());
        const auto length = in.get<std::uint16_t>();
        const auto payload = in.get_bytes(std::min<std::size_t>(length, in.left()));
        if (!in.ok() || !source.send(type, payload, after(0ms))) break;
        sent.push_back(type);
    }
    ::shutdown(source.fd(), SHUT_WR);
    NoVm vm;
    MigrationOptions options;
    options.death_grace = 0ms;
    options.exchange_rounds = kFuzzedRounds;
    options.exchange_time = 10s;
    const auto outcome = receive_vm(std::move(ends.ours), vm, {}, options);
    const auto* arrived = std::get_if<Arrived>(&outcome);
    CONTINUO_CHECK((arrived != nullptr) == vm.ran);
    if (arrived == nullptr) return expect_error(std::get<Discarded>(outcome).reason);
    CONTINUO_CHECK(is_whole(sent, arrived->taken_over));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const Input bytes = std::as_bytes(std::span{data, size});
    try_state(bytes, decode_state, encode_state);
    try_state(bytes, arm64::decode_state, arm64::encode_state);
    try_shape(bytes);
    try_payloads(bytes);
    try_stream(bytes);
    try_source(bytes);
    return 0;
}
