// The vCPUs' TSCs: offsets, multipliers, and the generations by which KVM knows which vCPUs have
// one line.
#include <algorithm>
#include <cerrno>

#include "continuo/model/kvm_vm.h"
#include "time_scale.h"

namespace continuo::model {

namespace {

using state::ErrorCode;

constexpr std::uint64_t kOneKhzHz = 1000;

/// The kernel reads the counter before it knows anything of the value: both are unsigned and wrap.
std::uint64_t as_u64(std::int64_t ns) {
    return static_cast<std::uint64_t>(ns);
}

tl::unexpected<state::Error> no_offset() {
    return state::fail(ErrorCode::kUnsupported, "KVM_VCPU_TSC_OFFSET",
                       "this kernel has no such attribute", "Write IA32_TSC by value", ENXIO);
}

}  // namespace

void KvmVm::write_offset(KvmVcpu& vcpu, std::uint64_t offset) {
    if (!rules_.offset_stays_zero) vcpu.map = vcpu.map.with_offset(offset);
}

std::uint64_t KvmVm::read_tsc(const KvmVcpu& vcpu) {
    return platform_->tsc(vcpu.thread_cpu);
}

std::uint64_t KvmVm::offset_for(const KvmVcpu& vcpu, std::uint64_t target) {
    return target - vcpu.scaled(read_tsc(vcpu));
}

std::uint32_t KvmVm::khz_max() {
    constexpr std::uint64_t int_max = 0x7fff'ffff;
    const std::uint64_t ratio_max = rules_.scaling_frac_bits == time::kSvmFracBits
                                        ? time::SvmTscScale::kRatioMax
                                        : time::VmxTscScale::kRatioMax;
    const auto scaled = static_cast<std::uint64_t>(
        (static_cast<time::u128>(platform_->tsc_khz()) * ratio_max) >> *rules_.scaling_frac_bits);
    return static_cast<std::uint32_t>(std::min(int_max, scaled));
}

std::optional<TscMap> KvmVm::scaled_map(std::uint32_t khz) {
    const auto with = [](const auto& scale) {
        return scale ? std::optional{TscMap{*scale, 0}} : std::nullopt;
    };
    const std::uint32_t host = platform_->tsc_khz();
    if (*rules_.scaling_frac_bits == time::kSvmFracBits)
        return with(time::SvmTscScale::from_khz(khz, host));
    return with(time::VmxTscScale::from_khz(khz, host));
}

/// kvm_set_tsc_khz(). The wanted frequency is in force for all that is computed from it before it
/// is known whether it can be had, and the catch-up that it may need is never switched off again.
bool KvmVm::set_khz(KvmVcpu& vcpu, std::uint32_t khz) {
    const std::uint64_t host = platform_->tsc_khz();
    vcpu.ns_to_ticks = time_scale(khz * kOneKhzHz, time::kNanosPerSecond);
    vcpu.user_khz = khz;
    constexpr std::uint64_t million = 1'000'000;
    const std::uint64_t low = host * (million - rules_.tolerance_ppm) / million;
    const std::uint64_t high = host * (million + rules_.tolerance_ppm) / million;
    if (low <= khz && khz <= high) {
        vcpu.map = TscMap{vcpu.map.offset()};
        vcpu.has_ratio = true;
        return true;
    }
    if (!rules_.scaling_frac_bits) {
        if (khz <= host) return false;
        vcpu.tsc_catchup = true;
        vcpu.tsc_always_catchup = true;
        return true;
    }
    const auto map = scaled_map(khz);
    if (!map) return false;
    vcpu.map = map->with_offset(vcpu.map.offset());
    vcpu.has_ratio = true;
    return true;
}

Status KvmVm::set_tsc_khz(unsigned vcpu, std::uint32_t khz) {
    KvmVcpu& to = at(vcpu);
    load(to);
    const bool in_range = !rules_.scaling_frac_bits || khz < khz_max();
    const bool done = in_range && set_khz(to, khz != 0 ? khz : platform_->tsc_khz());
    put(to);
    if (done) return {};
    return state::fail(ErrorCode::kKernel, "KVM_SET_TSC_KHZ",
                       "this host cannot give the guest that frequency",
                       "Ask for the host's own, or use a host that scales", EINVAL);
}

/// The host's write is near enough to what the last one has become since that it is taken for an
/// attempt at the same line. A second of the vCPU's frequency either way; the sums wrap.
bool KvmVm::synchronizing(const KvmVcpu& vcpu, std::uint64_t value, std::uint64_t elapsed) const {
    if (value == 0) return true;
    if (rules_.user_write_arms_sync && !arch_.user_set_tsc) return false;
    const std::uint64_t expected = arch_.last_tsc_write + vcpu.ns_to_ticks.wrap_ns(elapsed);
    const std::uint64_t second = vcpu.user_khz * kOneKhzHz;
    return value < expected + second && value + second > expected;
}

void KvmVm::synchronize(KvmVcpu& vcpu, std::optional<std::uint64_t> user_value) {
    TscWrite write{};
    write.tsc = user_value.value_or(0);
    write.offset = offset_for(vcpu, write.tsc);
    write.ns = as_u64(platform_->base_now_ns(vcpu.thread_cpu));
    const std::uint64_t elapsed = write.ns - arch_.last_tsc_nsec;
    const bool near = synchronizing(vcpu, write.tsc, elapsed);
    if (user_value) arch_.user_set_tsc = true;
    if (near && vcpu.user_khz == arch_.last_tsc_khz) {
        write.matched = true;
        if (!platform_->tsc_unstable()) {
            write.offset = arch_.cur_tsc_offset;
        } else {
            write.tsc += vcpu.ns_to_ticks.wrap_ns(elapsed);
            write.offset = offset_for(vcpu, write.tsc);
        }
    }
    join_generation(vcpu, write);
}

/// __kvm_synchronize_tsc()
void KvmVm::join_generation(KvmVcpu& vcpu, const TscWrite& write) {
    arch_.last_tsc_nsec = write.ns;
    arch_.last_tsc_write = write.tsc;
    arch_.last_tsc_khz = vcpu.user_khz;
    arch_.last_tsc_offset = write.offset;
    vcpu.last_guest_tsc = write.tsc;
    write_offset(vcpu, write.offset);
    if (!write.matched) {
        ++arch_.cur_tsc_generation;
        arch_.cur_tsc_nsec = write.ns;
        arch_.cur_tsc_write = write.tsc;
        arch_.cur_tsc_offset = write.offset;
        arch_.nr_vcpus_matched_tsc = 0;
    } else if (vcpu.generation != arch_.cur_tsc_generation) {
        ++arch_.nr_vcpus_matched_tsc;
    }
    vcpu.generation = arch_.cur_tsc_generation;
    vcpu.this_tsc_nsec = arch_.cur_tsc_nsec;
    vcpu.this_tsc_write = arch_.cur_tsc_write;
    track_matching(vcpu, !write.matched);
}

/// kvm_track_tsc_matching()
void KvmVm::track_matching(KvmVcpu& vcpu, bool new_generation) {
    const bool possible = all_matched() && platform_->tsc_clocksource();
    const bool needed = rules_.same_offset_is_noop ? (arch_.use_master_clock && new_generation) ||
                                                         arch_.use_master_clock != possible
                                                   : arch_.use_master_clock || possible;
    if (needed) vcpu.requests |= kMasterclockUpdate;
}

Result<std::uint64_t> KvmVm::tsc_offset(unsigned vcpu) {
    if (!rules_.has_offset_attribute) return no_offset();
    return ioctl(vcpu).map.offset();
}

Status KvmVm::set_tsc_offset(unsigned vcpu, std::uint64_t offset) {
    if (!rules_.has_offset_attribute) return no_offset();
    KvmVcpu& to = at(vcpu);
    load(to);
    TscWrite write{};
    write.offset = offset;
    write.matched = arch_.last_tsc_khz == to.user_khz && arch_.last_tsc_offset == offset;
    write.tsc = to.scaled(read_tsc(to)) + offset;
    write.ns = as_u64(platform_->base_now_ns(to.thread_cpu));
    arch_.user_set_tsc = true;
    join_generation(to, write);
    put(to);
    return {};
}

}  // namespace continuo::model
