// Makes a golden blob: a record as JSON on standard input, its wire format on standard output.
// Arguments are further fields, "type:length" in hexadecimal, filled with 0x5a: what a later
// release could have written.
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <string>

#include "continuo/state/codec.h"
#include "continuo/state/json.h"
#include "wire.h"

using namespace continuo::state;

namespace {

void append_field(std::vector<std::byte>& blob, const char* argument) {
    char* rest = nullptr;
    const unsigned long type = std::strtoul(argument, &rest, 16);
    const unsigned long length = std::strtoul(*rest == ':' ? rest + 1 : rest, nullptr, 16);
    std::vector<std::byte> field(wire::kFieldHeaderBytes + length, std::byte{0x5a});
    for (std::size_t i = 0; i < 2; ++i) {
        field[i] = static_cast<std::byte>((type >> (8 * i)) & 0xff);
        field[2 + i] = static_cast<std::byte>((length >> (8 * i)) & 0xff);
    }
    blob.insert(blob.end() - wire::kHashBytes, field.begin(), field.end());
    wire::seal(blob);
}

}  // namespace

int main(int argc, char** argv) {
    const std::string text{std::istreambuf_iterator<char>{std::cin}, {}};
    const auto record = record_from_json(text);
    if (!record) {
        std::fprintf(stderr, "%s\n", record.error().message().c_str());
        return 1;
    }
    std::vector<std::byte> blob = encode(*record);
    for (int i = 1; i < argc; ++i)
        append_field(blob, argv[i]);
    return std::fwrite(blob.data(), 1, blob.size(), stdout) == blob.size() ? 0 : 1;
}
