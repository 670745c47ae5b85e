#include "continuo/kvm/vcpu_statistics.h"

#include <unistd.h>

#include <cerrno>
#include <string>

#include "continuo/abi/ioc.h"

namespace continuo::kvm {

namespace {

// Own mirrors: C++ gives the kernel's structures, which end in arrays, another size.
constexpr std::uint32_t kKVM_GET_STATS_FD = abi::kvm_io(0xce);

struct StatsHeader {
    std::uint32_t flags;
    std::uint32_t name_size;
    std::uint32_t num_desc;
    std::uint32_t id_offset;
    std::uint32_t desc_offset;
    std::uint32_t data_offset;
};
static_assert(offsetof(StatsHeader, name_size) == 4 && offsetof(StatsHeader, num_desc) == 8 &&
              offsetof(StatsHeader, desc_offset) == 16 &&
              offsetof(StatsHeader, data_offset) == 20 && sizeof(StatsHeader) == 24);

/// The fixed part of a descriptor; name_size bytes follow it.
struct StatsDescriptor {
    std::uint32_t flags;
    std::int16_t exponent;
    std::uint16_t size;  ///< in words of 64 bits
    std::uint32_t offset;
    std::uint32_t bucket_size;
};
static_assert(offsetof(StatsDescriptor, size) == 6 && offsetof(StatsDescriptor, offset) == 8 &&
              sizeof(StatsDescriptor) == 16);

constexpr std::uint32_t kNameBytesMax = 256;

Status read_at(const Fd& fd, std::uint64_t offset, void* into, std::size_t bytes) {
    const ssize_t got = ::pread(fd.get(), into, bytes, static_cast<off_t>(offset));
    if (got < 0) return kernel_failure("KVM statistics", errno);
    if (static_cast<std::size_t>(got) == bytes) return {};
    return state::fail(state::ErrorCode::kKernel, "KVM statistics",
                       "the kernel gave " + std::to_string(got) + " of " + std::to_string(bytes) +
                           " bytes at " + std::to_string(offset));
}

tl::unexpected<state::Error> no_such(std::string_view name) {
    return state::fail(state::ErrorCode::kUnsupported, "KVM statistics",
                       "this kernel counts no \"" + std::string{name} + "\" of a vCPU");
}

/// Where the value stands in the file.
Result<std::uint64_t> find(const Fd& fd, std::string_view name) {
    StatsHeader header{};
    if (auto done = read_at(fd, 0, &header, sizeof header); !done)
        return tl::unexpected(std::move(done.error()));
    if (header.name_size > kNameBytesMax || name.size() >= header.name_size) return no_such(name);
    std::string found(header.name_size, '\0');
    for (std::uint32_t i = 0; i < header.num_desc; ++i) {
        const std::uint64_t at =
            header.desc_offset + std::uint64_t{i} * (sizeof(StatsDescriptor) + header.name_size);
        StatsDescriptor descriptor{};
        if (auto done = read_at(fd, at, &descriptor, sizeof descriptor); !done)
            return tl::unexpected(std::move(done.error()));
        if (auto done = read_at(fd, at + sizeof descriptor, found.data(), found.size()); !done)
            return tl::unexpected(std::move(done.error()));
        if (std::string_view{found.c_str()} == name && descriptor.size == 1)
            return std::uint64_t{header.data_offset} + descriptor.offset;
    }
    return no_such(name);
}

}  // namespace

Result<VcpuStatistic> VcpuStatistic::open(const Vcpu& vcpu, std::string_view name) {
    const auto fd = checked_ioctl(vcpu.fd(), kKVM_GET_STATS_FD, nullptr, "KVM_GET_STATS_FD");
    if (!fd)
        return state::fail(state::ErrorCode::kUnsupported, "KVM_GET_STATS_FD",
                           "this kernel gives no statistics of a vCPU", {}, fd.error().sys_errno);
    Fd file{*fd};
    const auto offset = find(file, name);
    if (!offset) return tl::unexpected(offset.error());
    return VcpuStatistic{std::move(file), *offset};
}

Result<std::uint64_t> VcpuStatistic::read() const {
    std::uint64_t value = 0;
    return read_at(fd_, offset_, &value, sizeof value).map([&] { return value; });
}

}  // namespace continuo::kvm
