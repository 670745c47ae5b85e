// Addresses of migrations: "unix:/path" or "tcp:host:port"; connecting and listening.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "continuo/kvm/fd.h"

namespace continuo::vmm {

using state::Result;

struct Address {
    enum class Kind : std::uint8_t { kUnix, kTcp };
    Kind kind = Kind::kUnix;
    std::string path;  ///< kUnix
    std::string host;  ///< kTcp: numeric, or localhost; IPv6 without brackets
    std::string port;  ///< kTcp: a number; "0" lets the kernel choose when listening

    std::string text() const;
};

/// Takes "unix:/path", "tcp:host:port", "tcp:[v6]:port". kInvalidArgument otherwise.
Result<Address> parse_address(std::string_view text);

/// A connected stream socket. kPeer with sys_errno: ECONNREFUSED means that the host is there and
/// nobody listens. kTimeout where nobody answers.
Result<kvm::Fd> connect_to(const Address& address, std::chrono::milliseconds timeout);

/// A listening socket; a Unix socket's file has mode 0600. A stale Unix socket that nobody listens
/// on is replaced; kBusy where somebody does, or where the port is taken; kInvalidArgument where
/// the path is a file that is no socket; kIo with sys_errno where the folder does not let us.
Result<kvm::Fd> listen_on(const Address& address);

/// The TCP port that a listening socket got.
Result<std::uint16_t> port_of(const kvm::Fd& listener);
/// The TCP address of the peer of a connection, with another port; kUnsupported for other kinds.
Result<Address> peer_at_port(int connection, std::uint16_t port);

}  // namespace continuo::vmm
