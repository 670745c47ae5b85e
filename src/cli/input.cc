#include "input.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <span>

#include "continuo/state/codec.h"
#include "continuo/state/json.h"
#include "findings.h"
#include "text.h"

namespace continuo::cli {

using state::ErrorCode;
using state::fail;
using state::Result;

namespace {

Result<Input> read_all(int fd, std::string name, std::size_t bytes_max) {
    Input input{{}, std::move(name), false};
    std::array<std::byte, 65'536> buffer{};
    for (;;) {
        const ssize_t got = ::read(fd, buffer.data(), buffer.size());
        if (got < 0 && errno == EINTR) continue;
        if (got < 0)
            return fail(ErrorCode::kIo, input.name, "cannot be read", "Check what it is", errno);
        if (got == 0) return input;
        input.bytes.insert(input.bytes.end(), buffer.begin(), buffer.begin() + got);
        if (input.bytes.size() > bytes_max)
            return fail(ErrorCode::kTooLarge, input.name,
                        fmt::format("more than {} bytes", bytes_max),
                        "Nothing that this takes is that large; check that this is the file you "
                        "mean");
    }
}

bool exists(const std::string& path) {
    struct stat status {};
    return ::stat(path.c_str(), &status) == 0;
}

int digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

bool separates(char c) {
    return std::string_view{" \t\r\n,:_"}.find(c) != std::string_view::npos;
}

}  // namespace

Result<Input> read_file(const std::string& path, std::size_t bytes_max) {
    if (path == "-") return read_all(STDIN_FILENO, "stdin", bytes_max);
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return fail(ErrorCode::kIo, path, "cannot be opened", "Check the path", errno);
    auto input = read_all(fd, path, bytes_max);
    ::close(fd);
    return input;
}

Result<Input> read_input(const std::string& source) {
    if (source == "-" || exists(source)) return read_file(source);
    const auto digits = decode_hex(source, "command line");
    if (!digits) return tl::unexpected(digits.error());
    if (!*digits || (*digits)->empty())
        return fail(ErrorCode::kMalformed, "command line",
                    fmt::format("'{}' is neither a file that exists nor hexadecimal digits",
                                printable(source)),
                    "Give a file, the bytes as hexadecimal digits, or - for standard input");
    Input input{{}, "command line", true};
    const auto bytes = std::as_bytes(std::span{source});
    input.bytes.assign(bytes.begin(), bytes.end());
    return input;
}

Result<std::optional<Bytes>> decode_hex(std::string_view text, std::string_view name) {
    Bytes bytes;
    for (std::size_t at = 0; at < text.size();) {
        if (separates(text[at])) {
            ++at;
            continue;
        }
        if (text.substr(at).starts_with("0x") || text.substr(at).starts_with("0X")) at += 2;
        const int high = at < text.size() ? digit(text[at]) : -1;
        if (high < 0) return std::nullopt;
        const int low = at + 1 < text.size() ? digit(text[at + 1]) : -1;
        if (low < 0 && at + 1 < text.size() && !separates(text[at + 1])) return std::nullopt;
        if (low < 0)
            return fail(ErrorCode::kMalformed, fmt::format("{}, character {}", name, at + 1),
                        fmt::format("the hexadecimal digit '{}' has no second one: a byte is two "
                                    "digits",
                                    text[at]),
                        "Write each byte with two digits");
        bytes.push_back(static_cast<std::byte>(high << 4 | low));
        at += 2;
    }
    return bytes;
}

Result<Bytes> to_binary(const Input& input, const std::vector<std::size_t>& binary_sizes) {
    const bool sized = std::find(binary_sizes.begin(), binary_sizes.end(), input.bytes.size()) !=
                       binary_sizes.end();
    if (sized && !input.is_text) return input.bytes;
    auto digits = decode_hex(text_of(input), input.name);
    if (!digits) return tl::unexpected(digits.error());
    return *digits ? **std::move(digits) : input.bytes;
}

state::Error in(const Input& input, state::Error error) {
    error.where = error.where.empty() ? input.name : input.name + ": " + error.where;
    return error;
}

std::string_view text_of(const Input& input) {
    return {reinterpret_cast<const char*>(input.bytes.data()), input.bytes.size()};
}

Result<state::Record> to_record(const Input& input) {
    const std::string_view text = text_of(input);
    const std::size_t first = text.find_first_not_of(" \t\r\n");
    if (first != std::string_view::npos && text[first] == '{') {
        auto record = state::record_from_json(without_findings(text));
        if (!record) return tl::unexpected(in(input, record.error()));
        return record;
    }
    auto bytes = to_binary(input, {});
    if (!bytes) return tl::unexpected(bytes.error());
    auto record = state::decode(*bytes);
    if (!record) return tl::unexpected(in(input, record.error()));
    return record;
}

}  // namespace continuo::cli
