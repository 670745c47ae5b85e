// The control socket of a running VM: one JSON object on one line in, one out, over a Unix socket.
// Requests: {"command": "status" | "capture" | "send" | "snapshot" | "resume" | "stop", ...}.
// Answers: an object, or {"error": ...} as every command prints it. One client at a time. A file
// that a command is to write comes open with its line (SCM_RIGHTS): the VM's process opens none by
// itself.
#pragma once

#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "continuo/kvm/fd.h"
#include "continuo/state/error.h"
#include "continuo/state/json.h"

namespace continuo::cli {

/// Where a VM listens for commands.
class ControlServer {
  public:
    /// `path`, with or without "unix:" before it. kBusy where another VM listens there.
    static state::Result<ControlServer> open(const std::string& path);
    ~ControlServer();
    ControlServer(ControlServer&& other) noexcept = default;
    ControlServer& operator=(ControlServer&&) = delete;
    ControlServer(const ControlServer&) = delete;

    int fd() const { return listener_.get(); }
    /// The next client; none where it has gone already.
    std::optional<kvm::Fd> accept() const;

  private:
    ControlServer() = default;
    kvm::Fd listener_;
    std::string path_;
};

/// A command line's path of a control socket. kInvalidArgument where it is empty.
state::Result<std::string> control_path(const std::string& text);

/// Sends one object as a line, and with it a descriptor where one is given. kPeer where nobody
/// takes it.
state::Status send_line(const kvm::Fd& connection, const state::Json& json, int file = -1);

/// Sends the line where there is room for it, else not: for what may be missed.
void offer_line(const kvm::Fd& connection, const state::Json& json);

struct Message {
    state::Json json;
    kvm::Fd file;  ///< none: none came
};
/// Receives one line, parses it, and takes what came with it. kPeer where the other side closes
/// before its end, kTimeout, kTooLarge, kMalformed.
state::Result<Message> receive_message(const kvm::Fd& connection,
                                       std::chrono::milliseconds timeout);
/// The same where no descriptor is wanted.
state::Result<state::Json> receive_line(const kvm::Fd& connection,
                                        std::chrono::milliseconds timeout);
/// The same where more lines may follow: `pending` has what came behind the line, for the next
/// call.
state::Result<state::Json> receive_line(const kvm::Fd& connection,
                                        std::chrono::milliseconds timeout, std::string& pending);

/// A client's connection to the VM that listens at `path`. kPeer where none does.
state::Result<kvm::Fd> connect_control(const std::string& path);
/// Sends the request and waits for the answer; an answer that is an error is that error.
state::Result<state::Json> ask(const std::string& path, const state::Json& request,
                               std::chrono::milliseconds timeout);
/// The answer, or the error that it tells.
state::Result<state::Json> answer_or_error(state::Result<state::Json> answer);

}  // namespace continuo::cli
