#include "continuo/abi/findings.h"

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>

#include "continuo/time/wide.h"

namespace continuo::abi {

namespace {

using time::kNanosPerSecond;

class Findings {
  public:
    template <class... Args>
    void add_if(bool wrong, std::string_view field, fmt::format_string<Args...> text,
                Args&&... args) {
        if (wrong)
            found_.push_back({std::string{field}, fmt::format(text, std::forward<Args>(args)...)});
    }
    template <class T, std::size_t N>
    void pad_is_zero(std::string_view field, const T (&pad)[N]) {
        bool zero = true;
        for (const T& part : pad)
            zero = zero && part == 0;
        add_if(!zero, field, "padding is not zero: damaged, or of a newer layout");
    }
    void version(std::string_view field, std::uint32_t value) {
        add_if(update_in_progress(value), field,
               "{} is odd: its writer is at work on the page, or stopped in the middle", value);
    }
    std::vector<Finding> take() { return std::move(found_); }

  private:
    std::vector<Finding> found_;
};

void pvclock_scale_findings(const pvclock_vcpu_time_info& page, Findings& out) {
    const std::uint32_t mul = page.tsc_to_system_mul;
    out.add_if(mul == 0, "tsc_to_system_mul", "0: the clock stands still");
    out.add_if(mul != 0 && mul < 0x8000'0000U, "tsc_to_system_mul",
               "{:#x} has its top bit clear: KVM always publishes it set", mul);
    const bool in_domain = time::PvclockScale::make(mul, page.tsc_shift).has_value();
    out.add_if(!in_domain, "tsc_shift", "{} is outside {}..{}: the page cannot be read",
               page.tsc_shift, time::PvclockScale::kShiftMin, time::PvclockScale::kShiftMax);
}

void pvclock_flag_findings(std::uint8_t flags, Findings& out) {
    constexpr unsigned known =
        kPVCLOCK_TSC_STABLE_BIT | kPVCLOCK_GUEST_STOPPED | kPVCLOCK_COUNTS_FROM_ZERO;
    const unsigned unknown = flags & ~known;
    out.add_if((flags & kPVCLOCK_COUNTS_FROM_ZERO) != 0, "flags",
               "COUNTS_FROM_ZERO is set: it broke the ABI, and no kernel sets it any more");
    out.add_if(unknown != 0, "flags", "unknown bits {:#x}", unknown);
}

}  // namespace

std::vector<Finding> inconsistencies(const pvclock_vcpu_time_info& page) {
    Findings out;
    out.version("version", page.version);
    out.add_if(page.version == 0, "version", "0: never written");
    out.add_if(page.pad0 != 0, "pad0", "padding is not zero: {:#x}", page.pad0);
    out.add_if(page.system_time >> 63 != 0, "system_time",
               "{} ns is over 2^63: a negative kvmclock", page.system_time);
    pvclock_scale_findings(page, out);
    pvclock_flag_findings(page.flags, out);
    out.pad_is_zero("pad", page.pad);
    return out.take();
}

std::vector<Finding> inconsistencies(const pvclock_wall_clock& page) {
    Findings out;
    out.version("version", page.version);
    out.add_if(page.version == 0, "version", "0: never written");
    out.add_if(page.version != 0 && page.sec == 0, "sec", "0: the guest would boot in 1970");
    out.add_if(page.nsec >= kNanosPerSecond, "nsec", "{} is not below 10^9", page.nsec);
    return out.take();
}

std::vector<Finding> inconsistencies(const kvm_clock_data& data) {
    Findings out;
    const bool realtime = (data.flags & kKVM_CLOCK_REALTIME) != 0;
    const bool host_tsc = (data.flags & kKVM_CLOCK_HOST_TSC) != 0;
    constexpr std::uint32_t known =
        kKVM_CLOCK_TSC_STABLE | kKVM_CLOCK_REALTIME | kKVM_CLOCK_HOST_TSC;
    out.add_if(data.clock >> 63 != 0, "clock", "{} ns is over 2^63: a negative kvmclock",
               data.clock);
    out.add_if((data.flags & ~known) != 0, "flags", "unknown bits {:#x}", data.flags & ~known);
    out.add_if(
        realtime != host_tsc, "flags",
        "only one of REALTIME and HOST_TSC is set: KVM reads both at one instant or neither");
    out.add_if(data.pad0 != 0, "pad0", "padding is not zero: {:#x}", data.pad0);
    out.add_if(realtime && data.realtime == 0, "realtime", "flagged valid, but 0");
    out.add_if(!realtime && data.realtime != 0, "realtime", "{} ns, but not flagged valid",
               data.realtime);
    out.add_if(host_tsc && data.host_tsc == 0, "host_tsc", "flagged valid, but 0");
    out.add_if(!host_tsc && data.host_tsc != 0, "host_tsc", "{}, but not flagged valid",
               data.host_tsc);
    out.pad_is_zero("pad", data.pad);
    return out.take();
}

std::vector<Finding> inconsistencies(const ms_hyperv_tsc_page& page) {
    Findings out;
    const bool valid = page.tsc_sequence != 0;
    out.add_if(!valid, "tsc_sequence", "0: the page is not to be used, only the MSR");
    out.add_if(page.reserved1 != 0, "reserved1", "is not zero: {:#x}", page.reserved1);
    out.add_if(valid && page.tsc_scale == 0, "tsc_scale", "0: the clock stands still");
    return out.take();
}

std::vector<Finding> inconsistencies(const kvm_clock_pairing& pairing) {
    Findings out;
    constexpr auto second = static_cast<std::int64_t>(kNanosPerSecond);
    out.add_if(pairing.sec < 0, "sec", "{}: before 1970", pairing.sec);
    out.add_if(pairing.nsec < 0 || pairing.nsec >= second, "nsec", "{} is not in 0..10^9-1",
               pairing.nsec);
    out.add_if(pairing.flags != 0, "flags", "unknown bits {:#x}", pairing.flags);
    out.pad_is_zero("pad", pairing.pad);
    return out.take();
}

std::vector<Finding> inconsistencies(const kvm_steal_time& page) {
    Findings out;
    out.version("version", page.version);
    out.add_if(page.flags != 0, "flags", "unknown bits {:#x}", page.flags);
    out.pad_is_zero("u8_pad", page.u8_pad);
    out.pad_is_zero("pad", page.pad);
    return out.take();
}

namespace {

void vmclock_head_findings(const vmclock_abi& page, Findings& out) {
    out.add_if(page.magic != kVMCLOCK_MAGIC, "magic",
               "{:#010x} is not {:#010x}: not a vmclock page", page.magic, kVMCLOCK_MAGIC);
    out.add_if(page.size < kVmclockPageSize, "size",
               "{} is below {}: Linux does not map such a page for user space", page.size,
               kVmclockPageSize);
    out.add_if(page.size < sizeof(vmclock_abi), "size", "{} ends before the last field, at {}",
               page.size, sizeof(vmclock_abi));
    out.add_if(page.version != kVmclockVersion, "version", "{} is not {}", page.version,
               kVmclockVersion);
    out.add_if(page.counter_id == kVMCLOCK_COUNTER_INVALID, "counter_id",
               "255: the page tells of disruptions, and of no time");
    out.add_if(
        page.counter_id > kVMCLOCK_COUNTER_X86_TSC && page.counter_id != kVMCLOCK_COUNTER_INVALID,
        "counter_id", "{} is none of 0 (ARM_VCNT), 1 (X86_TSC), 255", page.counter_id);
    out.version("seq_count", page.seq_count);
}

void vmclock_time_type_findings(const vmclock_abi& page, Findings& out) {
    const bool offset = (page.flags & kVMCLOCK_FLAG_TAI_OFFSET_VALID) != 0;
    const bool utc = page.time_type == kVMCLOCK_TIME_UTC;
    out.add_if(page.time_type == kVMCLOCK_TIME_INVALID_SMEARED ||
                   page.time_type == kVMCLOCK_TIME_INVALID_MAYBE_SMEARED,
               "time_type", "{}: smeared, which a page must never be", page.time_type);
    out.add_if(page.time_type > kVMCLOCK_TIME_INVALID_MAYBE_SMEARED, "time_type",
               "{} is none of 0 (UTC), 1 (TAI), 2 (MONOTONIC)", page.time_type);
    out.add_if(utc && !offset, "time_type",
               "UTC without a valid tai_offset_sec: Linux makes no PTP clock of it");
    out.add_if(utc && offset, "tai_offset_sec",
               "{} with UTC: the sign is disputed between the text (TAI - UTC) and Linux's driver, "
               "which comes out {} s apart; publish TAI",
               page.tai_offset_sec, 2 * page.tai_offset_sec);
    out.add_if(!offset && page.tai_offset_sec != 0, "tai_offset_sec", "{}, but not flagged valid",
               page.tai_offset_sec);
}

void vmclock_flag_findings(const vmclock_abi& page, Findings& out) {
    const std::uint64_t unknown = page.flags & ~kVmclockFlagsKnown;
    out.add_if(unknown != 0, "flags", "unknown bits {:#x}", unknown);
    constexpr std::uint64_t both =
        kVMCLOCK_FLAG_DISRUPTION_SOON | kVMCLOCK_FLAG_DISRUPTION_IMMINENT;
    out.add_if((page.flags & both) == both, "flags",
               "DISRUPTION_SOON and DISRUPTION_IMMINENT are both set");
}

void vmclock_enum_findings(const vmclock_abi& page, Findings& out) {
    out.add_if(page.clock_status > kVMCLOCK_STATUS_UNRELIABLE, "clock_status", "{} is above {}",
               page.clock_status, kVMCLOCK_STATUS_UNRELIABLE);
    out.add_if(page.clock_status == kVMCLOCK_STATUS_UNRELIABLE, "clock_status",
               "UNRELIABLE: Linux refuses to read the page");
    out.add_if(page.leap_second_smearing_hint > kVMCLOCK_SMEARING_UTC_SLS,
               "leap_second_smearing_hint", "{} is above {}", page.leap_second_smearing_hint,
               kVMCLOCK_SMEARING_UTC_SLS);
    out.add_if(page.leap_indicator > kVMCLOCK_LEAP_POST_NEG, "leap_indicator", "{} is above {}",
               page.leap_indicator, kVMCLOCK_LEAP_POST_NEG);
}

/// Whether the counter's frequency, 2^(64 + shift) / period Hz, is one that a counter has: 1 MHz to
/// 2^36 Hz (68 GHz).
bool frequency_is_credible(std::uint64_t period, int shift) {
    if (shift >= 60) return false;  // over 2^60 Hz, and a second would not fit 128 bits
    const time::u128 one_second = static_cast<time::u128>(1) << (64 + shift);
    return static_cast<time::u128>(period) * 1'000'000 <= one_second &&
           static_cast<time::u128>(period) << 36 >= one_second;
}

void vmclock_period_findings(const vmclock_abi& page, Findings& out) {
    if (page.counter_id == kVMCLOCK_COUNTER_INVALID) return;
    const int shift = page.counter_period_shift;
    const std::uint64_t period = page.counter_period_frac_sec;
    out.add_if(shift >= 128, "counter_period_shift",
               "{} shifts by more than 128-bit arithmetic has, which Linux leaves undefined",
               shift);
    out.add_if(period == 0, "counter_period_frac_sec", "0: the clock stands still");
    out.add_if(period != 0 && !frequency_is_credible(period, shift), "counter_period_frac_sec",
               "{:#x} with shift {} is a frequency outside 1 MHz..68 GHz", period, shift);
}

void vmclock_error_findings(const vmclock_abi& page, Findings& out) {
    const auto check = [&](std::string_view field, std::uint64_t flag, std::uint64_t value) {
        const bool flagged = (page.flags & flag) != 0;
        out.add_if(flagged && value == 0, field, "flagged valid, but 0: no clock is without error");
        out.add_if(!flagged && value != 0, field, "{}, but not flagged valid", value);
    };
    check("counter_period_esterror_rate_frac_sec", kVMCLOCK_FLAG_PERIOD_ESTERROR_VALID,
          page.counter_period_esterror_rate_frac_sec);
    check("counter_period_maxerror_rate_frac_sec", kVMCLOCK_FLAG_PERIOD_MAXERROR_VALID,
          page.counter_period_maxerror_rate_frac_sec);
    check("time_esterror_nanosec", kVMCLOCK_FLAG_TIME_ESTERROR_VALID, page.time_esterror_nanosec);
    check("time_maxerror_nanosec", kVMCLOCK_FLAG_TIME_MAXERROR_VALID, page.time_maxerror_nanosec);
    constexpr std::uint64_t times =
        kVMCLOCK_FLAG_TIME_ESTERROR_VALID | kVMCLOCK_FLAG_TIME_MAXERROR_VALID;
    out.add_if(
        (page.flags & times) == times && page.time_esterror_nanosec > page.time_maxerror_nanosec,
        "time_esterror_nanosec", "{} is above time_maxerror_nanosec, {}",
        page.time_esterror_nanosec, page.time_maxerror_nanosec);
    const bool generation = (page.flags & kVMCLOCK_FLAG_VM_GEN_COUNTER_PRESENT) != 0;
    out.add_if(!generation && page.vm_generation_counter != 0, "vm_generation_counter",
               "{}, but not flagged present", page.vm_generation_counter);
}

}  // namespace

std::vector<Finding> inconsistencies(const vmclock_abi& page) {
    Findings out;
    vmclock_head_findings(page, out);
    vmclock_time_type_findings(page, out);
    vmclock_flag_findings(page, out);
    out.pad_is_zero("pad", page.pad);
    vmclock_enum_findings(page, out);
    vmclock_period_findings(page, out);
    vmclock_error_findings(page, out);
    return out.take();
}

}  // namespace continuo::abi
