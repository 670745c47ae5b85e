#include "continuo/vmm/address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>

namespace continuo::vmm {

namespace {

using state::ErrorCode;

struct SocketAddress {
    sockaddr_storage storage{};
    socklen_t length = 0;
    const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
};

Result<SocketAddress> unix_address(const std::string& path) {
    sockaddr_un un{};
    un.sun_family = AF_UNIX;
    if (path.empty() || path.size() >= sizeof un.sun_path) {
        return state::fail(ErrorCode::kInvalidArgument, "unix:" + path,
                           "a socket's path has 1 to 107 bytes", "use a shorter path");
    }
    std::memcpy(un.sun_path, path.data(), path.size());
    SocketAddress out;
    std::memcpy(&out.storage, &un, sizeof un);
    out.length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size() + 1);
    return out;
}

/// Numeric addresses only: name lookup would bind a static program to the libc of its host.
Result<SocketAddress> tcp_address(const Address& address, bool passive) {
    const auto port = htons(static_cast<std::uint16_t>(std::stoul(address.port)));
    std::string host = address.host == "localhost" ? "127.0.0.1" : address.host;
    if (host.empty()) host = passive ? "0.0.0.0" : "127.0.0.1";
    SocketAddress out;
    sockaddr_in v4{};
    sockaddr_in6 v6{};
    if (::inet_pton(AF_INET, host.c_str(), &v4.sin_addr) == 1) {
        v4.sin_family = AF_INET;
        v4.sin_port = port;
        std::memcpy(&out.storage, &v4, sizeof v4);
        out.length = sizeof v4;
        return out;
    }
    if (::inet_pton(AF_INET6, host.c_str(), &v6.sin6_addr) == 1) {
        v6.sin6_family = AF_INET6;
        v6.sin6_port = port;
        std::memcpy(&out.storage, &v6, sizeof v6);
        out.length = sizeof v6;
        return out;
    }
    return state::fail(ErrorCode::kInvalidArgument, address.text(), "this is no numeric address",
                       "write an IPv4 or IPv6 address, or localhost");
}

Result<SocketAddress> resolve(const Address& address, bool passive) {
    return address.kind == Address::Kind::kUnix ? unix_address(address.path)
                                                : tcp_address(address, passive);
}

Result<kvm::Fd> open_socket(const SocketAddress& address, int flags) {
    kvm::Fd fd{::socket(address.get()->sa_family, SOCK_STREAM | SOCK_CLOEXEC | flags, 0)};
    if (!fd) return kvm::kernel_failure("socket", errno);
    if (address.get()->sa_family != AF_UNIX) {
        const int on = 1;
        ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    }
    return fd;
}

tl::unexpected<state::Error> cannot_connect(const Address& address, int sys_errno) {
    const bool nobody = sys_errno == ECONNREFUSED || sys_errno == ENOENT;
    return state::fail(ErrorCode::kPeer, address.text(), "cannot connect",
                       nobody ? "start `continuo vm receive` there first" : "", sys_errno);
}

constexpr std::chrono::milliseconds kConnectAgain{5};

/// connect(); a Unix socket whose queue is full says EAGAIN at once, and is asked again until the
/// deadline. 0, EINPROGRESS, or another errno.
int start_connect(int fd, const SocketAddress& to, std::chrono::milliseconds timeout) {
    const auto until = std::chrono::steady_clock::now() + timeout;
    while (::connect(fd, to.get(), to.length) != 0) {
        if (errno != EAGAIN && errno != EINTR) return errno;
        if (std::chrono::steady_clock::now() >= until) return ETIMEDOUT;
        std::this_thread::sleep_for(kConnectAgain);
    }
    return 0;
}

/// 0, or the errno of a connect that went on in the background; ETIMEDOUT where it did not end.
int finish_connect(int fd, std::chrono::milliseconds timeout) {
    pollfd poll_fd{fd, POLLOUT, 0};
    int ready = 0;
    do {
        ready = ::poll(&poll_fd, 1, static_cast<int>(timeout.count()));
    } while (ready < 0 && errno == EINTR);
    if (ready <= 0) return ETIMEDOUT;
    int error = 0;
    socklen_t length = sizeof error;
    ::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
    return error;
}

bool is_socket(const std::string& path) {
    struct stat info {};
    return ::lstat(path.c_str(), &info) == 0 && S_ISSOCK(info.st_mode);
}

}  // namespace

std::string Address::text() const {
    if (kind == Kind::kUnix) return "unix:" + path;
    const bool v6 = host.find(':') != std::string::npos;
    return "tcp:" + (v6 ? "[" + host + "]" : host) + ":" + port;
}

Result<Address> parse_address(std::string_view text) {
    const auto refuse = [&](const char* what) {
        return state::fail(ErrorCode::kInvalidArgument, std::string{text}, what,
                           "write unix:/path or tcp:host:port");
    };
    Address out;
    if (text.starts_with("unix:")) {
        out.path = text.substr(5);
        if (out.path.empty()) return refuse("the path is missing");
        if (auto fits = unix_address(out.path); !fits)
            return tl::unexpected(std::move(fits.error()));
        return out;
    }
    if (!text.starts_with("tcp:")) return refuse("this is no address");
    out.kind = Address::Kind::kTcp;
    const std::string_view rest = text.substr(4);
    const std::size_t colon = rest.rfind(':');
    if (colon == std::string_view::npos) return refuse("the port is missing");
    out.port = rest.substr(colon + 1);
    out.host = rest.substr(0, colon);
    if (out.host.size() >= 2 && out.host.front() == '[' && out.host.back() == ']')
        out.host = out.host.substr(1, out.host.size() - 2);
    const bool digits =
        !out.port.empty() && out.port.size() <= 5 &&
        std::all_of(out.port.begin(), out.port.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (!digits || std::stoul(out.port) > 65535) return refuse("the port is no number up to 65535");
    return out;
}

Result<kvm::Fd> connect_to(const Address& address, std::chrono::milliseconds timeout) {
    const auto to = resolve(address, false);
    if (!to) return tl::unexpected(to.error());
    auto fd = open_socket(*to, SOCK_NONBLOCK);
    if (!fd) return fd;
    int error = start_connect(fd->get(), *to, timeout);
    if (error == EINPROGRESS) error = finish_connect(fd->get(), timeout);
    if (error == ETIMEDOUT)
        return state::fail(ErrorCode::kTimeout, address.text(), "nobody answers", {}, error);
    if (error != 0) return cannot_connect(address, error);
    return fd;
}

Result<kvm::Fd> listen_on(const Address& address) {
    const auto at = resolve(address, true);
    if (!at) return tl::unexpected(at.error());
    auto fd = open_socket(*at, 0);
    if (!fd) return fd;
    // The mode that bind() gives the file: who may connect may take or give a VM.
    if (address.kind == Address::Kind::kUnix && ::fchmod(fd->get(), 0600) != 0)
        return kvm::kernel_failure("fchmod", errno);
    int bound = ::bind(fd->get(), at->get(), at->length);
    if (bound != 0 && errno == EADDRINUSE && address.kind == Address::Kind::kUnix) {
        // connect() says ECONNREFUSED of any file: only a socket may be taken for a stale one.
        if (!is_socket(address.path)) {
            return state::fail(ErrorCode::kInvalidArgument, address.text(),
                               "there is a file that is no socket; it is left alone",
                               "use another path");
        }
        const auto other = connect_to(address, std::chrono::milliseconds{500});
        if (!other && other.error().sys_errno == ECONNREFUSED) {
            ::unlink(address.path.c_str());
            bound = ::bind(fd->get(), at->get(), at->length);
        } else {
            errno = EADDRINUSE;
        }
    }
    if (bound != 0) {
        const int sys_errno = errno;
        const bool busy = sys_errno == EADDRINUSE;
        return state::fail(busy ? ErrorCode::kBusy : ErrorCode::kIo, address.text(),
                           busy ? "somebody else listens there" : "cannot listen there",
                           busy ? "use another socket for each VM" : "", sys_errno);
    }
    if (::listen(fd->get(), 8) != 0) return kvm::kernel_failure("listen", errno);
    return fd;
}

Result<std::uint16_t> port_of(const kvm::Fd& listener) {
    sockaddr_storage storage{};
    socklen_t length = sizeof storage;
    if (::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&storage), &length) != 0)
        return kvm::kernel_failure("getsockname", errno);
    if (storage.ss_family == AF_INET)
        return ntohs(reinterpret_cast<const sockaddr_in&>(storage).sin_port);
    if (storage.ss_family == AF_INET6)
        return ntohs(reinterpret_cast<const sockaddr_in6&>(storage).sin6_port);
    return state::fail(ErrorCode::kUnsupported, "port", "this is no TCP socket");
}

Result<Address> peer_at_port(int connection, std::uint16_t port) {
    sockaddr_storage storage{};
    socklen_t length = sizeof storage;
    if (::getpeername(connection, reinterpret_cast<sockaddr*>(&storage), &length) != 0)
        return kvm::kernel_failure("getpeername", errno);
    if (storage.ss_family != AF_INET && storage.ss_family != AF_INET6)
        return state::fail(ErrorCode::kUnsupported, "peer", "this is no TCP connection");
    char host[INET6_ADDRSTRLEN] = "";
    const bool v4 = storage.ss_family == AF_INET;
    const void* from =
        v4 ? static_cast<const void*>(&reinterpret_cast<const sockaddr_in&>(storage).sin_addr)
           : &reinterpret_cast<const sockaddr_in6&>(storage).sin6_addr;
    if (::inet_ntop(storage.ss_family, from, host, sizeof host) == nullptr)
        return kvm::kernel_failure("inet_ntop", errno);
    Address out;
    out.kind = Address::Kind::kTcp;
    out.host = host;
    out.port = std::to_string(port);
    return out;
}

}  // namespace continuo::vmm
