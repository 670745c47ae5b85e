#include "state_items.h"

namespace continuo::vmm {

namespace {

using state::ErrorCode;
using state::Result;
using state::Status;

constexpr std::uint64_t kStateMagic = 0x31545356544e4f43;  // "CONTVST1"
constexpr std::uint32_t kStateVersion = 1;
constexpr std::uint32_t kStateVcpusMax = 64;
constexpr std::uint32_t kOptional = 0x80000000;

struct StateHeader {
    std::uint64_t magic;
    std::uint32_t version;
    std::uint32_t vcpus;
};
static_assert(sizeof(StateHeader) == 16);

template <class T>
bool read(std::span<const std::byte> bytes, std::size_t& at, T& into) {
    if (bytes.size() - at < sizeof(T)) return false;
    std::memcpy(&into, bytes.data() + at, sizeof(T));
    at += sizeof(T);
    return true;
}

}  // namespace

tl::unexpected<state::Error> damaged_state(std::size_t offset, std::string what, ErrorCode code) {
    return state::fail(code, "VM state, byte " + std::to_string(offset), std::move(what));
}

StateWriter::StateWriter(std::size_t vcpus) {
    raw(StateHeader{kStateMagic, kStateVersion, static_cast<std::uint32_t>(vcpus)});
}

StateReader::StateReader(std::span<const std::byte> bytes, std::uint32_t vcpus)
    : bytes_{bytes}, at_{sizeof(StateHeader)}, vcpus_{vcpus} {}

Result<StateReader> StateReader::open(std::span<const std::byte> bytes,
                                      std::size_t vcpu_bytes_min) {
    StateHeader header{};
    std::size_t at = 0;
    if (!read(bytes, at, header))
        return damaged_state(0, "the header is cut off", ErrorCode::kTruncated);
    if (header.magic != kStateMagic) return damaged_state(0, "this is no VM state");
    if (header.version != kStateVersion) {
        return damaged_state(8, "version " + std::to_string(header.version) + " is not known",
                             ErrorCode::kVersion);
    }
    if (header.vcpus == 0 || header.vcpus > kStateVcpusMax)
        return damaged_state(12, std::to_string(header.vcpus) + " vCPUs; a VM has 1 to 64");
    if (bytes.size() / vcpu_bytes_min < header.vcpus)
        return damaged_state(12, "fewer bytes than that many vCPUs have", ErrorCode::kTruncated);
    return StateReader{bytes, header.vcpus};
}

Result<std::optional<StateItem>> StateReader::next() {
    if (at_ == bytes_.size()) return std::optional<StateItem>{};
    StateItem item{};
    item.offset = at_;
    if (!read(bytes_, at_, item.header))
        return damaged_state(item.offset, "an item's header is cut off", ErrorCode::kTruncated);
    if (item.header.zero != 0)
        return damaged_state(item.offset + 12, "a reserved word is not zero");
    if (bytes_.size() - at_ < item.header.length) {
        return damaged_state(item.offset, "the item states more bytes than there are",
                             ErrorCode::kTruncated);
    }
    item.body = bytes_.subspan(at_, item.header.length);
    at_ += item.header.length;
    const std::uint32_t vcpu = item.header.vcpu;
    if (vcpu != kWholeVm && vcpu >= vcpus_)
        return damaged_state(item.offset + 4, "there is no vCPU " + std::to_string(vcpu));
    return std::optional{item};
}

Status ItemsSeen::mark(const StateItem& item, std::uint32_t bit) {
    if ((seen_ & (1u << bit)) != 0) return damaged_state(item.offset, "the same item again");
    seen_ |= 1u << bit;
    return {};
}

Status unknown_item(const StateItem& item) {
    if ((item.header.tag & kOptional) != 0) return {};
    return damaged_state(
        item.offset,
        "tag " + std::to_string(item.header.tag) + " is mandatory and not known to this build",
        ErrorCode::kVersion);
}

}  // namespace continuo::vmm
