// Bytes and texts that a command is given: a file, standard input, or hexadecimal digits on the
// command line. Sizes are limited before anything is read into memory.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "continuo/state/error.h"
#include "continuo/state/record.h"

namespace continuo::cli {

using Bytes = std::vector<std::byte>;

/// Largest input that is read: a record of the largest size, written as hexadecimal digits in
/// pairs with blanks, or as JSON, is below it.
inline constexpr std::size_t kInputBytesMax = std::size_t{8} << 20;

/// What was given, and what to call it in messages: a path, "stdin" or "command line".
struct Input {
    Bytes bytes;
    std::string name;
    bool is_text = false;  ///< hexadecimal digits of the command line: never binary
};

/// `source` is "-" for standard input, else a file that exists, else hexadecimal digits. kIo where
/// it cannot be read, kTooLarge over kInputBytesMax, kMalformed where it is none of the three.
state::Result<Input> read_input(const std::string& source);

/// A file, or "-" for standard input. kIo where it cannot be read, kTooLarge over `bytes_max`.
state::Result<Input> read_file(const std::string& path, std::size_t bytes_max = kInputBytesMax);

/// Hexadecimal digits in pairs, each pair perhaps after 0x, with blanks, line ends, commas, colons
/// and underscores between bytes. nullopt where anything else stands there; kMalformed where a
/// digit is left over.
state::Result<std::optional<Bytes>> decode_hex(std::string_view text, std::string_view name);

/// The bytes that the input stands for: itself where it has one of the `binary_sizes` or is no
/// hexadecimal text, else what its digits say.
state::Result<Bytes> to_binary(const Input& input, const std::vector<std::size_t>& binary_sizes);

/// The record in the input: JSON where it begins with '{', the wire format where it begins with
/// that format's first byte, else hexadecimal digits of the wire format. Errors name the input.
state::Result<state::Record> to_record(const Input& input);

/// The same error, with the input's name before the place in it.
state::Error in(const Input& input, state::Error error);

std::string_view text_of(const Input& input);

}  // namespace continuo::cli
