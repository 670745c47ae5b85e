// Makes the seeds of migration_fuzz from the encoders as they are built, so that no seed is ever of
// an older format. The only argument is the folder.
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <string>

#include "continuo/state/codec.h"
#include "continuo/vmm/arm64_state.h"
#include "fuzzed_rounds.h"
#include "protocol.h"
#include "seeds.h"

namespace {

using namespace continuo;
using namespace continuo::vmm;

bool put(const std::string& path, std::span<const std::byte> bytes) {
    std::ofstream file{path, std::ios::binary};
    file.write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
    return static_cast<bool>(file.flush());
}

Bytes sample_state() {
    return encode_state(sample_vm_state());
}

Bytes sample_arm64_state() {
    arm64::VcpuState vcpu;
    vcpu.registers = {{0x6030'0000'0010'0040, Bytes(8)}, {0x6040'0000'0010'0054, Bytes(16)}};
    arm64::VmState state;
    state.vcpus = {vcpu, vcpu};
    arm64::GicState& gic = state.gic.emplace();
    gic.vcpus.resize(state.vcpus.size());
    for (arm64::GicVcpuState& one : gic.vcpus)
        one.cpu_interface.control = 6 << 8;  // 7 bits of priority
    state.serial.received = {'a', 'b'};
    state.notice = NoticeState{0x3'0000, 5'000'000'000, {1, 2, 3, 4, 5, false}};
    state.vmclock = VmclockDeviceState{0x3'1000, {1, 0, 2}};
    return arm64::encode_state(state);
}

Bytes sample_shape() {
    return encode_shape(sample_vm_shape());
}

Bytes sample_hello() {
    return encode_hello({MigrationId{1, 2, 3}, ProcessIdentity{}, sample_shape()});
}

Bytes sample_pages() {
    return PayloadWriter{}
        .put(std::uint32_t{2})
        .put(std::uint32_t{0})
        .put(std::uint64_t{1 << 1 | kPageHasData})
        .put(std::uint64_t{3 << 1})
        .put_bytes(Bytes(kPageBytes, std::byte{0x5a}))
        .take();
}

Bytes sample_clocks() {
    state::Record record;
    record.vcpus.resize(1);
    return state::encode(record);
}

Bytes sample_echo(std::uint64_t count) {
    using SourceCount = time::Count<time::SourceCounter>;
    return encode_echo({SourceCount::from_raw(count), SourceCount::from_raw(count + 7)});
}

/// A source's script as migration_fuzz reads it.
Bytes script(bool commits) {
    PayloadWriter out;
    const auto say = [&](FrameType type, const Bytes& payload) {
        out.put(static_cast<std::uint8_t>(type))
            .put(static_cast<std::uint16_t>(payload.size()))
            .put_bytes(payload);
    };
    say(FrameType::kHello, sample_hello());
    say(FrameType::kPages, sample_pages());
    say(FrameType::kRoundEnd, PayloadWriter{}.put(std::uint32_t{0}).take());
    say(FrameType::kConverged, {});
    for (std::uint64_t i = 0; i < kFuzzedRounds; ++i)
        say(FrameType::kEcho, sample_echo(1000 + 100 * i));
    say(FrameType::kStopped, {});
    say(FrameType::kState, sample_state());
    say(FrameType::kClocks, sample_clocks());
    say(FrameType::kComplete, {});
    for (std::uint64_t i = 0; i < kFuzzedRoundsAgain; ++i)
        say(FrameType::kEcho, sample_echo(9000 + 100 * i));
    if (commits) say(FrameType::kCommit, {});
    say(FrameType::kDone, {});
    return out.take();
}

/// Two frames as they are on the wire.
Bytes sample_stream() {
    int fds[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0) return {};
    FrameStream out{kvm::Fd{fds[0]}};
    const kvm::Fd in{fds[1]};
    (void)out.send(FrameType::kHello, sample_hello(), after(std::chrono::seconds{1}));
    (void)out.send(FrameType::kComplete, {}, after(std::chrono::seconds{1}));
    Bytes raw(4096);
    const ssize_t got = ::read(in.get(), raw.data(), raw.size());
    raw.resize(got > 0 ? static_cast<std::size_t>(got) : 0);
    return raw;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) {
        std::fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
        return 2;
    }
    const std::string folder{argv[1]};
    const bool written =
        put(folder + "/state", sample_state()) &&
        put(folder + "/arm64-state", sample_arm64_state()) &&
        put(folder + "/shape", sample_shape()) && put(folder + "/hello", sample_hello()) &&
        put(folder + "/pages", sample_pages()) &&
        put(folder + "/failure", encode_failure({state::ErrorCode::kBusy, "a", "b", "c", 0})) &&
        put(folder + "/echo", sample_echo(5)) && put(folder + "/stream", sample_stream()) &&
        put(folder + "/script", script(true)) &&
        put(folder + "/script-without-commit", script(false));
    if (!written) std::fprintf(stderr, "cannot write into %s\n", folder.c_str());
    return written ? 0 : 1;
}
