#include "continuo/kvm/vcpu.h"

#include <sys/ioctl.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "continuo/abi/arm64.h"

namespace continuo::kvm {

namespace {

/// A value of up to 64 bits sits in its low bytes.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);

std::string named(const char* name, std::uint64_t id) {
    char text[64];
    std::snprintf(text, sizeof text, "%s 0x%016llx", name, static_cast<unsigned long long>(id));
    return text;
}

tl::unexpected<state::Error> wrong_size(const char* name, std::uint64_t id, std::size_t given) {
    return state::fail(state::ErrorCode::kInvalidArgument, named(name, id),
                       "the register has " + std::to_string(register_size(id)) +
                           " bytes, and the value " + std::to_string(given));
}

}  // namespace

Result<Vcpu> Vcpu::create(const Vm& vm, std::uint32_t id) {
    Vcpu vcpu;
    if (auto created = vcpu.create_vcpu(vm, id); !created) return tl::unexpected(created.error());
    return vcpu;
}

Status Vcpu::init(const kvm_vcpu_init& target) {
    kvm_vcpu_init copy = target;
    return call(KVM_ARM_VCPU_INIT, &copy, "KVM_ARM_VCPU_INIT");
}

Status Vcpu::init(const Vm& vm, bool powered_off) {
    auto target = vm.preferred_target();
    if (!target) return tl::unexpected(target.error());
    target->features[0] |= 1U << KVM_ARM_VCPU_PSCI_0_2;
    if (powered_off) target->features[0] |= 1U << KVM_ARM_VCPU_POWER_OFF;
    return init(*target);
}

Status Vcpu::finalize(int feature) {
    return call(KVM_ARM_VCPU_FINALIZE, &feature, "KVM_ARM_VCPU_FINALIZE");
}

Result<std::vector<std::uint64_t>> Vcpu::reg_list() const {
    // The first answer is the number alone (E2BIG).
    std::uint64_t count = 0;
    const auto asked = call(abi::kKVM_GET_REG_LIST, &count, "KVM_GET_REG_LIST");
    if (!asked && asked.error().sys_errno != E2BIG) return tl::unexpected(asked.error());
    std::vector<std::uint64_t> list(count + 1);
    list[0] = count;
    if (auto listed = call(abi::kKVM_GET_REG_LIST, list.data(), "KVM_GET_REG_LIST"); !listed)
        return tl::unexpected(listed.error());
    list.erase(list.begin());
    return list;
}

Status Vcpu::access(unsigned long request, const char* name, std::uint64_t id, void* value) const {
    abi::kvm_one_reg reg{id, reinterpret_cast<std::uint64_t>(value)};
    int answer = 0;
    do {
        answer = ::ioctl(fd(), request, &reg);
    } while (answer < 0 && errno == EINTR);
    if (answer < 0) return refused(named(name, id).c_str(), errno);
    return {};
}

Status Vcpu::get_one_reg(std::uint64_t id, std::span<std::byte> value) const {
    if (value.size() != register_size(id)) return wrong_size("KVM_GET_ONE_REG", id, value.size());
    return access(abi::kKVM_GET_ONE_REG, "KVM_GET_ONE_REG", id, value.data());
}

Status Vcpu::set_one_reg(std::uint64_t id, std::span<const std::byte> value) {
    if (value.size() != register_size(id)) return wrong_size("KVM_SET_ONE_REG", id, value.size());
    // The kernel only reads through the pointer.
    return access(abi::kKVM_SET_ONE_REG, "KVM_SET_ONE_REG", id,
                  const_cast<std::byte*>(value.data()));
}

Result<std::uint64_t> Vcpu::one_reg(std::uint64_t id) const {
    std::uint64_t value = 0;
    if (register_size(id) > sizeof value) return wrong_size("KVM_GET_ONE_REG", id, sizeof value);
    return access(abi::kKVM_GET_ONE_REG, "KVM_GET_ONE_REG", id, &value).map([&] { return value; });
}

Status Vcpu::set_one_reg(std::uint64_t id, std::uint64_t value) {
    const std::size_t size = register_size(id);
    if (size > sizeof value || (size < sizeof value && value >> (8 * size) != 0))
        return wrong_size("KVM_SET_ONE_REG", id, sizeof value);
    return access(abi::kKVM_SET_ONE_REG, "KVM_SET_ONE_REG", id, &value);
}

}  // namespace continuo::kvm
