#include "continuo/kvm/vcpu.h"

#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

namespace continuo::kvm {

namespace {

std::string msr_name(std::uint32_t index) {
    char text[24];
    std::snprintf(text, sizeof text, "MSR 0x%x", index);
    return text;
}

}  // namespace

bool MsrBatch::add(std::uint32_t index, std::uint64_t data) {
    if (full()) return false;
    msrs_.entries[msrs_.head.nmsrs++] = abi::kvm_msr_entry{index, 0, data};
    return true;
}

Result<Vcpu> Vcpu::create(const Vm& vm, std::uint32_t id) {
    Vcpu vcpu;
    if (auto created = vcpu.create_vcpu(vm, id); !created) return tl::unexpected(created.error());
    return vcpu;
}

Result<kvm_regs> Vcpu::regs() const {
    kvm_regs regs{};
    return call(KVM_GET_REGS, &regs, "KVM_GET_REGS").map([&] { return regs; });
}

Status Vcpu::set_regs(const kvm_regs& regs) {
    kvm_regs copy = regs;
    return call(KVM_SET_REGS, &copy, "KVM_SET_REGS");
}

Result<kvm_sregs> Vcpu::sregs() const {
    kvm_sregs sregs{};
    return call(KVM_GET_SREGS, &sregs, "KVM_GET_SREGS").map([&] { return sregs; });
}

Status Vcpu::set_sregs(const kvm_sregs& sregs) {
    kvm_sregs copy = sregs;
    return call(KVM_SET_SREGS, &copy, "KVM_SET_SREGS");
}

Result<kvm_lapic_state> Vcpu::lapic() const {
    kvm_lapic_state lapic{};
    return call(KVM_GET_LAPIC, &lapic, "KVM_GET_LAPIC").map([&] { return lapic; });
}

Status Vcpu::set_lapic(const kvm_lapic_state& lapic) {
    kvm_lapic_state copy = lapic;
    return call(KVM_SET_LAPIC, &copy, "KVM_SET_LAPIC");
}

Result<kvm_xcrs> Vcpu::xcrs() const {
    kvm_xcrs xcrs{};
    return call(KVM_GET_XCRS, &xcrs, "KVM_GET_XCRS").map([&] { return xcrs; });
}

Status Vcpu::set_xcrs(const kvm_xcrs& xcrs) {
    kvm_xcrs copy = xcrs;
    return call(KVM_SET_XCRS, &copy, "KVM_SET_XCRS");
}

Result<kvm_debugregs> Vcpu::debugregs() const {
    kvm_debugregs debugregs{};
    return call(KVM_GET_DEBUGREGS, &debugregs, "KVM_GET_DEBUGREGS").map([&] { return debugregs; });
}

Status Vcpu::set_debugregs(const kvm_debugregs& debugregs) {
    kvm_debugregs copy = debugregs;
    return call(KVM_SET_DEBUGREGS, &copy, "KVM_SET_DEBUGREGS");
}

Status Vcpu::get_xsave(std::span<std::byte> area) const {
    if (area.size() < sizeof(abi::kvm_xsave)) {
        return state::fail(state::ErrorCode::kInvalidArgument, "KVM_GET_XSAVE",
                           "the area has fewer than 4096 bytes");
    }
    if (area.size() == sizeof(abi::kvm_xsave))
        return call(abi::kKVM_GET_XSAVE, area.data(), "KVM_GET_XSAVE");
    return call(abi::kKVM_GET_XSAVE2, area.data(), "KVM_GET_XSAVE2");
}

Status Vcpu::set_xsave(std::span<const std::byte> area) {
    if (area.size() < sizeof(abi::kvm_xsave)) {
        return state::fail(state::ErrorCode::kInvalidArgument, "KVM_SET_XSAVE",
                           "the area has fewer than 4096 bytes");
    }
    // The kernel only reads through the pointer.
    return call(abi::kKVM_SET_XSAVE, const_cast<std::byte*>(area.data()), "KVM_SET_XSAVE");
}

namespace {

/// Outside of VMX operation; or with SVM's global interrupt flag as at reset and no guest.
bool virtualises_nothing(const abi::kvm_nested_state& head) {
    if (head.format == abi::kKVM_NESTED_FORMAT_VMX) return head.vmxon_pa == ~std::uint64_t{0};
    return head.flags == abi::kKVM_NESTED_GIF_SET;
}

}  // namespace

Result<std::vector<std::byte>> Vcpu::nested_state(std::size_t bytes_max) const {
    using Head = abi::kvm_nested_state;
    std::vector<std::byte> state(std::max(bytes_max, sizeof(Head)));
    Head head{};
    head.size = static_cast<std::uint32_t>(state.size());
    std::memcpy(state.data(), &head, sizeof head);
    auto got = call(abi::kKVM_GET_NESTED_STATE, state.data(), "KVM_GET_NESTED_STATE");
    if (!got) return tl::unexpected(std::move(got.error()));
    std::memcpy(&head, state.data(), sizeof head);
    if (virtualises_nothing(head)) return std::vector<std::byte>{};
    if (head.size < sizeof head || head.size > state.size())
        return refused("KVM_GET_NESTED_STATE", E2BIG);
    state.resize(head.size);
    return state;
}

Status Vcpu::set_nested_state(std::span<const std::byte> state) {
    abi::kvm_nested_state head;
    if (state.size() < sizeof head) return refused("KVM_SET_NESTED_STATE", EINVAL);
    std::memcpy(&head, state.data(), sizeof head);
    // The kernel reads as many bytes as the head says.
    if (head.size != state.size()) return refused("KVM_SET_NESTED_STATE", EINVAL);
    return call(abi::kKVM_SET_NESTED_STATE, const_cast<std::byte*>(state.data()),
                "KVM_SET_NESTED_STATE");
}

Status Vcpu::set_cpuid(const CpuidEntries& entries) {
    if (entries.size() > kCpuidEntriesMax) return refused("KVM_SET_CPUID2", E2BIG);
    abi::KvmCpuid2<kCpuidEntriesMax> table;
    table.head.nent = static_cast<std::uint32_t>(entries.size());
    std::copy(entries.begin(), entries.end(), table.entries.begin());
    return call(abi::kKVM_SET_CPUID2, &table, "KVM_SET_CPUID2");
}

Result<CpuidEntries> Vcpu::cpuid() const {
    abi::KvmCpuid2<kCpuidEntriesMax> table;
    return call(abi::kKVM_GET_CPUID2, &table, "KVM_GET_CPUID2").map([&] {
        const std::size_t count = std::min<std::size_t>(table.head.nent, kCpuidEntriesMax);
        return CpuidEntries{table.entries.data(), table.entries.data() + count};
    });
}

Result<std::uint32_t> Vcpu::msrs_call(unsigned long request, MsrBatch& batch,
                                      const char* name) const {
    const int done = ::ioctl(fd(), request, batch.raw());
    if (done < 0) return refused(name, errno);
    return static_cast<std::uint32_t>(done);
}

Result<std::uint32_t> Vcpu::try_get_msrs(MsrBatch& batch) const {
    return msrs_call(abi::kKVM_GET_MSRS, batch, "KVM_GET_MSRS");
}

Result<std::uint32_t> Vcpu::try_set_msrs(MsrBatch& batch) {
    return msrs_call(abi::kKVM_SET_MSRS, batch, "KVM_SET_MSRS");
}

Status Vcpu::get_msrs(MsrBatch& batch) const {
    const auto done = try_get_msrs(batch);
    if (!done) return tl::unexpected(done.error());
    if (*done == batch.size()) return {};
    return refused(("KVM_GET_MSRS " + msr_name(batch.index(*done))).c_str(), 0);
}

Status Vcpu::set_msrs(MsrBatch& batch) {
    const auto done = try_set_msrs(batch);
    if (!done) return tl::unexpected(done.error());
    if (*done == batch.size()) return {};
    return refused(("KVM_SET_MSRS " + msr_name(batch.index(*done))).c_str(), 0);
}

Result<std::uint64_t> Vcpu::msr(std::uint32_t index) const {
    MsrBatch batch;
    batch.add(index);
    return get_msrs(batch).map([&] { return batch.data(0); });
}

Status Vcpu::set_msr(std::uint32_t index, std::uint64_t data) {
    MsrBatch batch;
    batch.add(index, data);
    return set_msrs(batch);
}

Result<std::uint32_t> Vcpu::tsc_khz() const {
    const int khz = ::ioctl(fd(), KVM_GET_TSC_KHZ, 0UL);
    if (khz < 0) return refused("KVM_GET_TSC_KHZ", errno);
    return static_cast<std::uint32_t>(khz);
}

Status Vcpu::set_tsc_khz(std::uint32_t khz) {
    return call(KVM_SET_TSC_KHZ, reinterpret_cast<void*>(std::uintptr_t{khz}), "KVM_SET_TSC_KHZ");
}

Status Vcpu::kvmclock_ctrl() {
    return call(KVM_KVMCLOCK_CTRL, nullptr, "KVM_KVMCLOCK_CTRL");
}

}  // namespace continuo::kvm
