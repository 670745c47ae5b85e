#include "control.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>

#include "continuo/vmm/address.h"

namespace continuo::cli {

using state::ErrorCode;
using state::fail;
using state::Json;
using state::Result;
using state::Status;

namespace {

/// A record of 4096 vCPUs is the largest answer.
constexpr std::size_t kLineMax = state::kJsonBytesMax;

Result<vmm::Address> address_of(const std::string& path) {
    return vmm::parse_address(path.starts_with("unix:") ? path : "unix:" + path);
}

bool writable_in(int fd, std::chrono::milliseconds timeout) {
    pollfd one{fd, POLLOUT, 0};
    return ::poll(&one, 1, static_cast<int>(timeout.count())) > 0;
}

/// Room for one descriptor beside a message.
union DescriptorRoom {
    std::array<char, CMSG_SPACE(sizeof(int))> bytes;
    cmsghdr aligned;
};

/// As send() does, with the descriptor `file` unless that is -1.
ssize_t send_some(int fd, std::string_view text, int file) {
    iovec part{const_cast<char*>(text.data()), text.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    DescriptorRoom room{};
    if (file >= 0) {
        message.msg_control = room.bytes.data();
        message.msg_controllen = room.bytes.size();
        cmsghdr* header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof file);
        std::memcpy(CMSG_DATA(header), &file, sizeof file);
    }
    return ::sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/// As recv() does; a descriptor that comes along replaces `file`. The kernel closes what has no
/// room.
ssize_t receive_some(int fd, std::span<char> into, kvm::Fd& file) {
    iovec part{into.data(), into.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    DescriptorRoom room{};
    message.msg_control = room.bytes.data();
    message.msg_controllen = room.bytes.size();
    const ssize_t got = ::recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0) return got;
    const cmsghdr* header = CMSG_FIRSTHDR(&message);
    if (header == nullptr || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS ||
        header->cmsg_len != CMSG_LEN(sizeof(int)))
        return got;
    int number = -1;
    std::memcpy(&number, CMSG_DATA(header), sizeof number);
    file = kvm::Fd{number};
    return got;
}

std::optional<ErrorCode> code_from_name(const std::string& wanted) {
    for (int i = 0; i <= static_cast<int>(ErrorCode::kIo); ++i)
        if (state::name(static_cast<ErrorCode>(i)) == wanted) return static_cast<ErrorCode>(i);
    return std::nullopt;
}

std::string text_at(const Json& json, const char* key) {
    const auto found = json.find(key);
    return found != json.end() && found->is_string() ? found->get<std::string>() : std::string{};
}

}  // namespace

Result<std::string> control_path(const std::string& text) {
    const auto address = address_of(text);
    if (address) return address->path;
    return fail(ErrorCode::kInvalidArgument, "--control", address.error().what,
                "Give the path of a Unix socket");
}

Result<ControlServer> ControlServer::open(const std::string& path) {
    const auto address = address_of(path);
    if (!address) return tl::unexpected(address.error());
    auto listener = vmm::listen_on(*address);
    if (!listener) return tl::unexpected(std::move(listener.error()));
    ControlServer server;
    server.listener_ = std::move(*listener);
    server.path_ = address->path;
    return server;
}

ControlServer::~ControlServer() {
    if (listener_) ::unlink(path_.c_str());
}

std::optional<kvm::Fd> ControlServer::accept() const {
    kvm::Fd connection{::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC)};
    if (!connection) return std::nullopt;
    return connection;
}

Status send_line(const kvm::Fd& connection, const Json& json, int file) {
    const std::string line = json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
    std::string_view rest = line;
    while (!rest.empty()) {
        if (!writable_in(connection.get(), std::chrono::seconds{5}))
            return fail(ErrorCode::kTimeout, "control socket", "the other side does not read");
        const ssize_t sent = send_some(connection.get(), rest, file);
        if (sent < 0 && (errno == EINTR || errno == EAGAIN)) continue;
        if (sent < 0)
            return fail(ErrorCode::kPeer, "control socket", "the other side is gone", {}, errno);
        rest.remove_prefix(static_cast<std::size_t>(sent));
        file = -1;
    }
    return {};
}

namespace {

/// `pending` is what came already; afterwards, what came behind the line.
Result<Message> receive_one(const kvm::Fd& connection, std::chrono::milliseconds timeout,
                            std::string& pending) {
    const auto until = std::chrono::steady_clock::now() + timeout;
    std::string line = std::exchange(pending, {});
    kvm::Fd file;
    std::array<char, 65'536> buffer{};
    while (line.find('\n') == std::string::npos) {
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
            until - std::chrono::steady_clock::now());
        pollfd one{connection.get(), POLLIN, 0};
        if (left.count() <= 0 || ::poll(&one, 1, static_cast<int>(left.count())) == 0)
            return fail(ErrorCode::kTimeout, "control socket", "no answer in time",
                        "See whether the VM's process still works");
        const ssize_t got = receive_some(connection.get(), buffer, file);
        if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
        if (got < 0)
            return fail(ErrorCode::kPeer, "control socket", "the connection broke", {}, errno);
        if (got == 0)
            return fail(ErrorCode::kPeer, "control socket",
                        fmt::format("closed after {} bytes of a line", line.size()),
                        "See what the VM's process said last");
        line.append(buffer.data(), static_cast<std::size_t>(got));
        if (line.size() > kLineMax)
            return fail(ErrorCode::kTooLarge, "control socket",
                        fmt::format("a line of more than {} bytes", kLineMax));
    }
    pending = line.substr(line.find('\n') + 1);
    line.resize(line.size() - pending.size());
    auto json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object())
        return fail(ErrorCode::kMalformed, "control socket", "the line is no JSON object");
    return Message{std::move(json), std::move(file)};
}

}  // namespace

Result<Message> receive_message(const kvm::Fd& connection, std::chrono::milliseconds timeout) {
    std::string pending;
    return receive_one(connection, timeout, pending);
}

void offer_line(const kvm::Fd& connection, const Json& json) {
    if (writable_in(connection.get(), std::chrono::milliseconds{0}))
        (void)send_line(connection, json);
}

Result<Json> receive_line(const kvm::Fd& connection, std::chrono::milliseconds timeout) {
    std::string pending;
    return receive_line(connection, timeout, pending);
}

Result<Json> receive_line(const kvm::Fd& connection, std::chrono::milliseconds timeout,
                          std::string& pending) {
    auto message = receive_one(connection, timeout, pending);
    if (!message) return tl::unexpected(std::move(message.error()));
    return std::move(message->json);
}

Result<kvm::Fd> connect_control(const std::string& path) {
    const auto address = address_of(path);
    if (!address) return tl::unexpected(address.error());
    auto connection = vmm::connect_to(*address, std::chrono::seconds{2});
    if (connection) return connection;
    state::Error error = std::move(connection.error());
    error.what = "no VM listens there";
    error.advice = "Start one: continuo vm run --control " + path;
    return tl::unexpected(std::move(error));
}

Result<Json> answer_or_error(Result<Json> answer) {
    if (!answer) return answer;
    const auto found = answer->find("error");
    if (found == answer->end() || !found->is_object()) return answer;
    const auto number = found->find("errno");
    const bool has_errno = number != found->end() && number->is_number_integer();
    const std::string what = text_at(*found, "what");
    return tl::unexpected(
        state::Error{code_from_name(text_at(*found, "code")).value_or(ErrorCode::kPeer),
                     text_at(*found, "where"), what.empty() ? "an error without words" : what,
                     text_at(*found, "advice"), has_errno ? number->get<int>() : 0});
}

Result<Json> ask(const std::string& path, const Json& request, std::chrono::milliseconds timeout) {
    const auto connection = connect_control(path);
    if (!connection) return tl::unexpected(connection.error());
    if (auto sent = send_line(*connection, request); !sent)
        return tl::unexpected(std::move(sent.error()));
    return answer_or_error(receive_line(*connection, timeout));
}

}  // namespace continuo::cli
