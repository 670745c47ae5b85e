#include "continuo/vmm/frame.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <random>
#include <thread>

#include "continuo/vmm/address.h"
#include "continuo/vmm/process.h"
#include "protocol.h"

namespace continuo::vmm {
namespace {

using namespace std::chrono_literals;
using state::ErrorCode;

std::pair<kvm::Fd, kvm::Fd> pair() {
    int fds[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    return {kvm::Fd{fds[0]}, kvm::Fd{fds[1]}};
}

Bytes bytes_of(std::string_view text) {
    const auto span = std::as_bytes(std::span{text});
    return {span.begin(), span.end()};
}

/// What send() puts on the wire.
Bytes wire(FrameType type, const Bytes& payload) {
    auto [a, b] = pair();
    FrameStream stream{std::move(a)};
    EXPECT_TRUE(stream.send(type, payload, after(1s)));
    stream.close();
    Bytes out(1 << 16);
    const ssize_t got = ::read(b.get(), out.data(), out.size());
    out.resize(static_cast<std::size_t>(got));
    return out;
}

Result<Frame> receive_raw(std::span<const std::byte> raw) {
    auto [a, b] = pair();
    EXPECT_EQ(::write(a.get(), raw.data(), raw.size()), static_cast<ssize_t>(raw.size()));
    a.reset();
    return FrameStream{std::move(b)}.receive(after(1s));
}

TEST(Frame, CarriesPayloadsInOrder) {
    auto [a, b] = pair();
    FrameStream out{std::move(a)};
    FrameStream in{std::move(b)};
    ASSERT_TRUE(out.send(FrameType::kState, bytes_of("first"), after(1s)));
    ASSERT_TRUE(out.send(FrameType::kComplete, {}, after(1s)));
    auto frame = in.receive(after(1s));
    ASSERT_TRUE(frame);
    EXPECT_EQ(frame->type, FrameType::kState);
    EXPECT_EQ(frame->payload, bytes_of("first"));
    frame = in.receive(after(1s));
    ASSERT_TRUE(frame);
    EXPECT_TRUE(frame->payload.empty());
    out.close();
    frame = in.receive(after(1s));
    ASSERT_FALSE(frame);
    EXPECT_EQ(frame.error().where, "end of stream");
}

TEST(Frame, CarriesMoreThanSocketBuffersHold) {
    auto [a, b] = pair();
    const Bytes big(5u << 20, std::byte{7});
    std::thread sender{[&, fd = std::move(a)]() mutable {
        FrameStream out{std::move(fd)};
        EXPECT_TRUE(out.send(FrameType::kState, big, after(10s)));
    }};
    FrameStream in{std::move(b)};
    const auto frame = in.receive(after(10s));
    sender.join();
    ASSERT_TRUE(frame);
    EXPECT_EQ(frame->payload, big);
}

TEST(Frame, EveryTruncationIsTyped) {
    const Bytes raw = wire(FrameType::kClocks, bytes_of("twelve bytes"));
    ASSERT_EQ(raw.size(), 24u + 12);
    for (std::size_t length = 0; length < raw.size(); ++length) {
        const auto frame = receive_raw(std::span{raw}.first(length));
        ASSERT_FALSE(frame) << length;
        EXPECT_EQ(frame.error().code, ErrorCode::kPeer);
        EXPECT_EQ(frame.error().where, length == 0 ? "end of stream" : "within a frame");
    }
    EXPECT_TRUE(receive_raw(raw));
}

TEST(Frame, EveryFlippedBitIsFound) {
    const Bytes raw = wire(FrameType::kClocks, bytes_of("twelve bytes"));
    for (std::size_t bit = 0; bit < raw.size() * 8; ++bit) {
        Bytes flipped = raw;
        flipped[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
        EXPECT_FALSE(receive_raw(flipped)) << bit;
    }
}

TEST(Frame, NamesWhatIsWrong) {
    const Bytes raw = wire(FrameType::kClocks, bytes_of("x"));
    const auto with = [&](std::size_t at, std::uint8_t value) {
        Bytes changed = raw;
        changed[at] = std::byte{value};
        return receive_raw(changed).error().code;
    };
    EXPECT_EQ(with(0, 0), ErrorCode::kMalformed);
    EXPECT_EQ(with(4, 1), ErrorCode::kVersion);
    EXPECT_EQ(with(11, 0xff), ErrorCode::kTooLarge);
    EXPECT_EQ(with(12, 1), ErrorCode::kPeer);
    EXPECT_EQ(with(16, static_cast<std::uint8_t>(~static_cast<unsigned>(raw[16]))),
              ErrorCode::kIntegrity);
    EXPECT_EQ(with(24, 'y'), ErrorCode::kIntegrity);
}

TEST(Frame, SilenceAndDeafnessTimeOut) {
    auto [a, b] = pair();
    FrameStream left{std::move(a)};
    FrameStream right{std::move(b)};
    EXPECT_EQ(left.receive(after(20ms)).error().code, ErrorCode::kTimeout);
    EXPECT_EQ(left.send(FrameType::kState, Bytes(8u << 20), after(20ms)).error().code,
              ErrorCode::kTimeout);
    right.close();
    EXPECT_EQ(left.send(FrameType::kDone, {}, after(20ms)).error().code, ErrorCode::kPeer);
}

TEST(Frame, ALengthIsAClaimAndNoMemory) {
    Bytes raw = wire(FrameType::kState, bytes_of("x"));
    const std::uint32_t claim = kFrameBytesMax;
    std::memcpy(raw.data() + 8, &claim, sizeof claim);
    auto [a, b] = pair();
    ASSERT_EQ(::write(a.get(), raw.data(), raw.size()), static_cast<ssize_t>(raw.size()));
    FrameStream in{std::move(b)};
    EXPECT_EQ(in.receive(after(30ms)).error().code, ErrorCode::kTimeout) << "the deadline holds";
}

TEST(Frame, ADribbleIsReadAndStillHasTheDeadline) {
    const Bytes raw = wire(FrameType::kClocks, bytes_of("twelve bytes"));
    const auto dribble = [&raw](std::chrono::milliseconds limit) {
        auto [a, b] = pair();
        std::thread sender{[&raw, fd = std::move(a)] {
            for (const std::byte byte : raw) {
                if (::send(fd.get(), &byte, 1, MSG_NOSIGNAL) != 1) return;
                std::this_thread::sleep_for(3ms);
            }
        }};
        auto frame = FrameStream{std::move(b)}.receive(after(limit));
        sender.join();
        return frame;
    };
    const auto whole = dribble(10s);
    ASSERT_TRUE(whole) << whole.error().message();
    EXPECT_EQ(whole->payload, bytes_of("twelve bytes"));
    EXPECT_EQ(dribble(20ms).error().code, ErrorCode::kTimeout);
}

TEST(Pages, GoWhereTheySay) {
    Bytes memory(4 * kPageBytes, std::byte{0xee});
    const Bytes page(kPageBytes, std::byte{0x11});
    MigrationStats stats;
    const Bytes payload = PayloadWriter{}
                              .put(std::uint32_t{2})
                              .put(std::uint32_t{0})
                              .put(std::uint64_t{3 << 1 | 1})
                              .put(std::uint64_t{1 << 1})
                              .put_bytes(page)
                              .take();
    ASSERT_TRUE(apply_pages(payload, memory, stats));
    EXPECT_EQ(memory[0], std::byte{0xee});
    EXPECT_EQ(memory[kPageBytes], std::byte{0});
    EXPECT_EQ(memory[4 * kPageBytes - 1], std::byte{0x11});
    EXPECT_EQ(stats.pages_sent, 1u);
    EXPECT_EQ(stats.zero_pages, 1u);
    for (std::size_t length = 0; length < payload.size(); ++length)
        EXPECT_EQ(apply_pages(std::span{payload}.first(length), memory, stats).error().code,
                  ErrorCode::kMalformed);
}

TEST(Pages, HostileOnesAreRefused) {
    Bytes memory(4 * kPageBytes);
    MigrationStats stats;
    const auto one = [&](std::uint32_t count, std::uint32_t zero, std::uint64_t entry) {
        return apply_pages(PayloadWriter{}.put(count).put(zero).put(entry).take(), memory, stats);
    };
    EXPECT_TRUE(one(1, 0, 3 << 1));
    EXPECT_FALSE(one(1, 0, 4 << 1));
    EXPECT_FALSE(one(1, 0, ~std::uint64_t{0}));
    EXPECT_FALSE(one(1, 0, ~std::uint64_t{1}));
    EXPECT_FALSE(one(1, 7, 0));
    EXPECT_FALSE(one(0xffffffff, 0, 0));
    EXPECT_FALSE(one(0, 0, 0));
    EXPECT_FALSE(apply_pages(PayloadWriter{}.put(std::uint64_t{0}).take(), memory, stats));
    std::mt19937_64 random{5};
    for (int round = 0; round < 20000; ++round) {
        Bytes payload(random() % 64);
        for (std::byte& byte : payload)
            byte = static_cast<std::byte>(random() % 3);
        (void)apply_pages(payload, memory, stats);
    }
}

TEST(Protocol, HelloComesBackAndTruncationsAreTyped) {
    const Hello hello{new_migration_id(), this_process(), bytes_of("shape")};
    const Bytes payload = encode_hello(hello);
    const auto back = decode_hello(payload);
    ASSERT_TRUE(back);
    EXPECT_EQ(back->id, hello.id);
    EXPECT_EQ(back->process, hello.process);
    EXPECT_EQ(back->shape, hello.shape);
    for (std::size_t length = 0; length < payload.size(); ++length)
        EXPECT_EQ(decode_hello(std::span{payload}.first(length)).error().code,
                  ErrorCode::kMalformed);
}

TEST(Protocol, APeersWordsCannotDriveATerminal) {
    const state::Error error = decode_failure(
        PayloadWriter{}.put(std::uint32_t{99}).put_block(bytes_of("bad\x1b[2Jnews")).take());
    EXPECT_EQ(error.what, "bad?[2Jnews");
    EXPECT_EQ(error.code, ErrorCode::kPeer);
    EXPECT_FALSE(decode_failure({}).what.empty()) << "also one that says nothing is told";
}

TEST(Address, ParsesWhatItSays) {
    EXPECT_EQ(parse_address("unix:/tmp/a")->path, "/tmp/a");
    EXPECT_EQ(parse_address("tcp:10.0.0.1:7000")->host, "10.0.0.1");
    EXPECT_EQ(parse_address("tcp:[::1]:0")->host, "::1");
    EXPECT_EQ(parse_address("tcp:[::1]:0")->text(), "tcp:[::1]:0");
    for (const char* bad : {"", "unix:", "/tmp/a", "tcp:host", "tcp:host:", "tcp:host:x",
                            "tcp:host:65536", "tcp:host:-1", "udp:a:1"})
        EXPECT_EQ(parse_address(bad).error().code, ErrorCode::kInvalidArgument) << bad;
    EXPECT_FALSE(parse_address("unix:/" + std::string(200, 'x')));
    EXPECT_EQ(connect_to(*parse_address("tcp:host.invalid:1"), 1s).error().code,
              ErrorCode::kInvalidArgument);
}

TEST(Address, AStaleSocketIsReplacedAndALiveOneIsNot) {
    const Address address =
        *parse_address("unix:/tmp/continuo-address-" + std::to_string(getpid()));
    {
        auto first = listen_on(address);
        ASSERT_TRUE(first) << first.error().message();
        EXPECT_EQ(listen_on(address).error().code, ErrorCode::kBusy);
    }
    EXPECT_EQ(connect_to(address, 1s).error().sys_errno, ECONNREFUSED);
    EXPECT_TRUE(listen_on(address));
    ::unlink(address.path.c_str());
}

TEST(Address, AFileThatIsNoSocketIsLeftAlone) {
    const Address address = *parse_address("unix:/tmp/continuo-file-" + std::to_string(getpid()));
    std::ofstream{address.path} << "precious";
    const auto refused = listen_on(address);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
    std::string text;
    std::ifstream{address.path} >> text;
    EXPECT_EQ(text, "precious");
    ::unlink(address.path.c_str());
}

TEST(Address, OnlyItsOwnerMayConnect) {
    const Address address = *parse_address("unix:/tmp/continuo-mode-" + std::to_string(getpid()));
    const mode_t before = ::umask(0);
    const auto listener = listen_on(address);
    ::umask(before);
    ASSERT_TRUE(listener) << listener.error().message();
    struct stat info {};
    ASSERT_EQ(::stat(address.path.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0600u);
    ::unlink(address.path.c_str());
}

TEST(Address, WhatTheFolderDoesNotAllowIsAnIoErrorWithItsErrno) {
    const auto missing = listen_on(*parse_address("unix:/tmp/no-such-folder/socket"));
    ASSERT_FALSE(missing);
    EXPECT_EQ(missing.error().code, ErrorCode::kIo);
    EXPECT_EQ(missing.error().sys_errno, ENOENT);
    if (::getuid() != 0) GTEST_SKIP() << "only root can try it as somebody else";
    const pid_t child = ::fork();
    if (child == 0) {
        if (::setresuid(65534, 65534, 65534) != 0) _exit(2);
        const auto denied = listen_on(*parse_address("unix:/continuo-denied"));
        const bool typed =
            !denied && denied.error().code == ErrorCode::kIo && denied.error().sys_errno == EACCES;
        _exit(typed ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
}

TEST(Address, AFullQueueIsWaitedForNoLongerThanSaid) {
    const Address address = *parse_address("unix:/tmp/continuo-full-" + std::to_string(getpid()));
    const auto listener = listen_on(address);
    ASSERT_TRUE(listener);
    std::vector<kvm::Fd> queued;
    for (int i = 0; i < 64; ++i) {
        auto connection = connect_to(address, 30ms);
        if (!connection) {
            EXPECT_EQ(connection.error().code, ErrorCode::kTimeout);
            break;
        }
        queued.push_back(std::move(*connection));
    }
    EXPECT_LT(queued.size(), 64u);
    ::unlink(address.path.c_str());
}

TEST(Process, ADeadChildIsProvenDead) {
    int talk[2];
    ASSERT_EQ(::pipe(talk), 0);
    const pid_t child = ::fork();
    if (child == 0) {
        const ProcessIdentity self = this_process();
        if (::write(talk[1], &self, sizeof self) != sizeof self) _exit(1);
        ::pause();
        _exit(0);
    }
    ProcessIdentity identity;
    ASSERT_EQ(::read(talk[0], &identity, sizeof identity), static_cast<ssize_t>(sizeof identity));
    ProcessWatch watch = ProcessWatch::on(identity);
    EXPECT_EQ(watch.life(), Life::kAlive);
    ::kill(child, SIGKILL);
    EXPECT_EQ(watch.wait(5s), Life::kDead);
    ::waitpid(child, nullptr, 0);
    EXPECT_EQ(ProcessWatch::on(identity).life(), Life::kDead) << "also when asked afterwards";
    ProcessIdentity elsewhere = identity;
    elsewhere.boot_id[0] ^= 1;
    EXPECT_EQ(ProcessWatch::on(elsewhere).life(), Life::kUnknown);
    ProcessIdentity successor = this_process();
    successor.start_ticks += 1;
    EXPECT_EQ(ProcessWatch::on(successor).life(), Life::kDead) << "same pid, another process";
}

}  // namespace
}  // namespace continuo::vmm
