#include "shape.h"

namespace continuo::vmm {

using state::Architecture;
using state::ErrorCode;

namespace {

std::string architecture_name(std::uint32_t number) {
    switch (static_cast<Architecture>(number)) {
        case Architecture::kX86_64:
            return "x86-64";
        case Architecture::kArm64:
            return "arm64";
    }
    return "unknown (" + std::to_string(number) + ")";
}

}  // namespace

Bytes encode_shape(const VmShape& shape) {
    PayloadWriter out;
    out.put(static_cast<std::uint32_t>(kArchitecture))
        .put(shape.config.vcpus)
        .put(shape.config.memory_bytes);
    put_cpus(out, shape);
    return out.take();
}

Result<VmShape> decode_shape(std::span<const std::byte> bytes) {
    PayloadReader in{bytes};
    const auto architecture = in.get<std::uint32_t>();
    VmShape shape;
    shape.config.vcpus = in.get<std::uint32_t>();
    shape.config.memory_bytes = in.get<std::uint64_t>();
    if (!in.ok()) return state::fail(ErrorCode::kMalformed, "VM shape", "it is cut off");
    constexpr auto here = static_cast<std::uint32_t>(kArchitecture);
    if (architecture != here) {
        return state::fail(ErrorCode::kUnsupported, "VM shape, architecture",
                           "the VM's is " + architecture_name(architecture) + ", this host's is " +
                               architecture_name(here),
                           "choose a destination of the VM's architecture");
    }
    if (!get_cpus(in, shape))
        return state::fail(ErrorCode::kMalformed, "VM shape", "its length or flags are wrong");
    if (auto valid = check(shape.config); !valid) return tl::unexpected(std::move(valid.error()));
    return shape;
}

}  // namespace continuo::vmm
