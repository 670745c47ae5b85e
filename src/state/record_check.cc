#include "record_check.h"

#include "continuo/state/codec.h"

namespace continuo::state {

namespace {

Flaw flaw(Part part, std::string what, ErrorCode code = ErrorCode::kMalformed) {
    return {part, 0, code, std::move(what)};
}

std::optional<std::string> frequency_flaw(Hz frequency) {
    const std::uint64_t hz = frequency.hz();
    if (hz >= kFrequencyMinHz && hz <= kFrequencyMaxHz) return std::nullopt;
    return "a frequency of " + std::to_string(hz) + " Hz, outside " +
           std::to_string(kFrequencyMinHz) + " to " + std::to_string(kFrequencyMaxHz);
}

std::optional<Flaw> host_flaw(const Record& record) {
    const std::string& kernel = record.source.kernel;
    if (kernel.size() > kKernelBytesMax)
        return flaw(Part::kKernel,
                    "a kernel string of " + std::to_string(kernel.size()) +
                        " bytes, over the limit of " + std::to_string(kKernelBytesMax),
                    ErrorCode::kTooLarge);
    if (!is_printable_utf8(kernel))
        return flaw(Part::kKernel, "a kernel string that is not printable UTF-8");
    if (auto what = frequency_flaw(record.anchor.frequency))
        return flaw(Part::kHostFrequency, *std::move(what));
    if (record.anchor.rate_bound_ppb > kRateBoundPpbMax)
        return flaw(Part::kHostRateBound,
                    "a rate known to " + std::to_string(record.anchor.rate_bound_ppb) +
                        " ppb, over the limit of " + std::to_string(kRateBoundPpbMax));
    return std::nullopt;
}

std::optional<Flaw> kvmclock_flaw(const Record& record) {
    if (!record.kvmclock) return std::nullopt;
    if (record.architecture == Architecture::kArm64)
        return flaw(Part::kKvmclock, "kvmclock on arm64, which has none");
    if (record.kvmclock->line.scale().mul() == 0)
        return flaw(Part::kKvmclockMul, "a multiplier of 0: a clock that stands still");
    const bool has_page = (record.vcpus.front().system_time_msr & 1) != 0;
    if (record.kvmclock->origin == KvmclockOrigin::kPage && !has_page)
        return flaw(Part::kKvmclockOrigin,
                    "a line from vCPU 0's page, but vCPU 0 has none (bit 0 of its system_time_msr "
                    "is clear)");
    return std::nullopt;
}

std::optional<Flaw> arm64_vcpu_flaw(const VcpuClock& vcpu) {
    if (vcpu.tsc_adjust != 0)
        return flaw(Part::kVcpuTscAdjust, "an IA32_TSC_ADJUST on arm64, which has none");
    if (vcpu.system_time_msr != 0)
        return flaw(Part::kVcpuSystemTimeMsr, "a kvmclock MSR on arm64, which has none");
    if (vcpu.guest_stopped_pending)
        return flaw(Part::kVcpuGuestStopped, "a pending GUEST_STOPPED on arm64, which has none");
    return std::nullopt;
}

std::optional<Flaw> vcpu_flaw(const Record& record, const VcpuClock& vcpu) {
    if (auto what = frequency_flaw(vcpu.frequency))
        return flaw(Part::kVcpuFrequency, *std::move(what));
    return record.architecture == Architecture::kArm64 ? arm64_vcpu_flaw(vcpu) : std::nullopt;
}

std::optional<Flaw> vcpus_flaw(const Record& record) {
    const std::size_t count = record.vcpus.size();
    if (count == 0) return flaw(Part::kVcpus, "no vCPU");
    if (count > kVcpusMax)
        return flaw(
            Part::kVcpus,
            std::to_string(count) + " vCPUs, over the limit of " + std::to_string(kVcpusMax),
            ErrorCode::kTooLarge);
    for (std::uint32_t i = 0; i < count; ++i) {
        if (auto found = vcpu_flaw(record, record.vcpus[i])) {
            found->vcpu = i;
            return found;
        }
    }
    return std::nullopt;
}

/// Bytes of the UTF-8 sequence that `lead` opens; 0 for a byte that opens none (continuations,
/// overlong 0xc0 and 0xc1, beyond U+10FFFF).
std::size_t sequence_length(unsigned char lead) {
    if (lead < 0x80) return 1;
    if (lead >= 0xc2 && lead <= 0xdf) return 2;
    if (lead >= 0xe0 && lead <= 0xef) return 3;
    return lead >= 0xf0 && lead <= 0xf4 ? 4 : 0;
}

/// Whether the second byte fits the first: RFC 3629's table, which leaves out overlong forms,
/// surrogates and everything beyond U+10FFFF.
bool second_fits(unsigned char lead, unsigned char second) {
    if (lead == 0xe0) return second >= 0xa0 && second <= 0xbf;
    if (lead == 0xed) return second >= 0x80 && second <= 0x9f;
    if (lead == 0xf0) return second >= 0x90 && second <= 0xbf;
    if (lead == 0xf4) return second >= 0x80 && second <= 0x8f;
    return second >= 0x80 && second <= 0xbf;
}

bool is_control(unsigned char lead, unsigned char second) {
    return lead < 0x20 || lead == 0x7f || (lead == 0xc2 && second < 0xa0);
}

/// Length of a printable character at the start of `text`; 0 where there is none.
std::size_t printable_length(std::string_view text) {
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
    const std::size_t length = sequence_length(byte(0));
    if (length == 0 || length > text.size()) return 0;
    if (is_control(byte(0), length > 1 ? byte(1) : 0xff)) return 0;
    if (length > 1 && !second_fits(byte(0), byte(1))) return 0;
    for (std::size_t i = 2; i < length; ++i)
        if ((byte(i) & 0xc0U) != 0x80) return 0;
    return length;
}

std::string_view vcpu_key(Part part) {
    switch (part) {
        case Part::kVcpuFrequency:
            return "frequency_hz";
        case Part::kVcpuTscAdjust:
            return "tsc_adjust";
        case Part::kVcpuSystemTimeMsr:
            return "system_time_msr";
        default:
            return "guest_stopped_pending";
    }
}

}  // namespace

std::optional<Flaw> find_flaw(const Record& record) {
    if (auto found = host_flaw(record)) return found;
    if (auto found = vcpus_flaw(record)) return found;
    return kvmclock_flaw(record);
}

bool is_printable_utf8(std::string_view text) {
    while (!text.empty()) {
        const std::size_t length = printable_length(text);
        if (length == 0) return false;
        text.remove_prefix(length);
    }
    return true;
}

std::string json_pointer(const Flaw& found) {
    switch (found.part) {
        case Part::kKernel:
            return "/kernel";
        case Part::kHostFrequency:
            return "/host_hz";
        case Part::kHostRateBound:
            return "/anchor/rate_bound_ppb";
        case Part::kVcpus:
            return "/vcpus";
        case Part::kKvmclock:
            return "/kvmclock";
        case Part::kKvmclockMul:
            return "/kvmclock/mul";
        case Part::kKvmclockOrigin:
            return "/kvmclock/origin";
        default:
            return "/vcpus/" + std::to_string(found.vcpu) + "/" + std::string{vcpu_key(found.part)};
    }
}

Status check(const Record& record) {
    const auto found = find_flaw(record);
    if (!found) return {};
    return fail(found->code, json_pointer(*found), found->what);
}

}  // namespace continuo::state
