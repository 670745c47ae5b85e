// continuo scale: the two scales of a guest's clocks as KVM computes them: pvclock's mul and shift
// for a frequency, and the TSC multiplier for a guest's frequency on a host's.
#include <fmt/format.h>

#include <cmath>
#include <memory>
#include <optional>

#include "command.h"
#include "continuo/time/pvclock_scale.h"
#include "continuo/time/tsc_scale.h"
#include "number.h"
#include "text.h"

namespace continuo::cli {

namespace {

using state::ErrorCode;
using state::fail;
using time::Hz;
using time::PvclockScale;

constexpr const char* kExample =
    "Two forms:\n"
    "  --hz                                 pvclock's multiplier and shift for a counter, and how\n"
    "                                       far the clock that a guest makes of them is off\n"
    "  --guest-khz --host-khz --frac-bits   the TSC multiplier for a guest on a host (without\n"
    "                                       KVM's window of 250 ppm, in which it does not scale)\n"
    "Example:\n"
    "  $ continuo scale --hz 2999999000 --json\n"
    "  {\"mul\": 2863312485, \"shift\": -1, \"error_ppb\": -0.036378041841089725}\n"
    "  $ continuo scale --guest-khz 1500000 --host-khz 3000000 --frac-bits 32 --host-tsc 1000\n";

struct Options {
    std::string hz;
    std::string guest_khz;
    std::string host_khz;
    std::string frac_bits;
    std::string host_tsc;
    bool json = false;
};

/// How far a clock made with this scale is from one of exactly `counter`, in 10^-9 of itself;
/// negative: slow. mul * hz / 2^(32 - shift) ns are counted in a second, so the error is an exact
/// quotient of integers below 2^97, which is rounded once, to the nearest double.
double error_ppb(PvclockScale scale, Hz counter) {
    const int bits = 32 - scale.shift();  // 1 to 65 for whatever from_hz() makes
    const auto counted =
        static_cast<time::i128>(static_cast<time::u128>(scale.mul()) * counter.hz());
    const auto wanted = static_cast<time::i128>(time::kNanosPerSecond) << bits;
    return std::ldexp(static_cast<double>(counted - wanted), -bits);
}

Result<ExitCode> scale_of_frequency(const Options& options) {
    const auto hz = parse_u64("--hz", options.hz, {.min = 1});
    if (!hz) return tl::unexpected(hz.error());
    const Hz counter = *Hz::from_hz(*hz);
    const PvclockScale scale = PvclockScale::from_hz(counter);
    const double ppb = error_ppb(scale, counter);
    if (options.json) {
        Json json;
        json["mul"] = scale.mul();
        json["shift"] = scale.shift();
        json["error_ppb"] = ppb;
        return print_json(json);
    }
    Table table{{{""}, {""}}};
    table.add({"counter", fmt::format("{} Hz", *hz)});
    table.add({"mul", fmt::format("{} ({:#x})", scale.mul(), scale.mul())});
    table.add({"shift", std::to_string(scale.shift())});
    table.add(
        {"ns of t ticks", fmt::format("((t {} {}) * {}) >> 32", scale.shift() < 0 ? ">>" : "<<",
                                      std::abs(scale.shift()), scale.mul())});
    table.add({"error", fmt::format("{:.9g} ppb, {:.6g} us a day", ppb, ppb * 86.4)});
    return print_text(table.text());
}

/// The multiplier and, where a host TSC is given, the guest's reading.
struct Scaled {
    std::uint64_t ratio = 0;
    std::optional<std::uint64_t> guest_tsc;
};

template <int FracBits>
std::optional<Scaled> scaled(std::uint32_t guest_khz, std::uint32_t host_khz,
                             std::optional<std::uint64_t> host_tsc) {
    const auto scale = time::TscScale<FracBits>::from_khz(guest_khz, host_khz);
    if (!scale) return std::nullopt;
    Scaled out{scale->ratio(), std::nullopt};
    if (host_tsc) out.guest_tsc = scale->wrap_scale(*host_tsc);
    return out;
}

Result<ExitCode> print_scaled(const Scaled& scaled, std::uint64_t frac_bits, bool as_json) {
    if (as_json) {
        Json json;
        json["ratio"] = scaled.ratio;
        json["guest_tsc"] = scaled.guest_tsc ? Json(*scaled.guest_tsc) : Json(nullptr);
        return print_json(json);
    }
    Table table{{{""}, {""}}};
    table.add({"ratio", fmt::format("{} ({:#x}), {} fractional bits", scaled.ratio, scaled.ratio,
                                    frac_bits)});
    if (scaled.guest_tsc)
        table.add({"guest TSC", fmt::format("{} ({:#x}), without an offset", *scaled.guest_tsc,
                                            *scaled.guest_tsc)});
    return print_text(table.text());
}

Result<ExitCode> scale_of_guest(const Options& options) {
    constexpr Range khz{.min = 1, .max = UINT32_MAX};
    const auto guest = parse_u64("--guest-khz", options.guest_khz, khz);
    if (!guest) return tl::unexpected(guest.error());
    const auto host = parse_u64("--host-khz", options.host_khz, khz);
    if (!host) return tl::unexpected(host.error());
    const auto bits = parse_u64("--frac-bits", options.frac_bits);
    if (!bits) return tl::unexpected(bits.error());
    if (*bits != time::kSvmFracBits && *bits != time::kVmxFracBits)
        return fail(ErrorCode::kInvalidArgument, "--frac-bits",
                    fmt::format("{} is neither 32 nor 48", *bits),
                    "Give 32 for AMD (SVM) or 48 for Intel (VMX)");
    std::optional<std::uint64_t> host_tsc;
    if (!options.host_tsc.empty()) {
        const auto value = parse_u64("--host-tsc", options.host_tsc);
        if (!value) return tl::unexpected(value.error());
        host_tsc = *value;
    }
    const auto guest_khz = static_cast<std::uint32_t>(*guest);
    const auto host_khz = static_cast<std::uint32_t>(*host);
    const auto result = *bits == time::kSvmFracBits
                            ? scaled<time::kSvmFracBits>(guest_khz, host_khz, host_tsc)
                            : scaled<time::kVmxFracBits>(guest_khz, host_khz, host_tsc);
    if (!result)
        return fail(ErrorCode::kInvalidArgument, "--guest-khz, --host-khz",
                    fmt::format("{} kHz on {} kHz is a ratio that a multiplier of {} fractional "
                                "bits cannot hold, and KVM refuses it",
                                guest_khz, host_khz, *bits),
                    *bits == time::kSvmFracBits
                        ? "Keep the guest's frequency between 2^-32 and 2^8 times the host's"
                        : "Keep the guest's frequency between 2^-48 and 2^16 times the host's");
    return print_scaled(*result, *bits, options.json);
}

Result<ExitCode> run(const Options& options) {
    const bool pvclock = !options.hz.empty();
    const bool any_of_tsc = !options.guest_khz.empty() || !options.host_khz.empty() ||
                            !options.frac_bits.empty() || !options.host_tsc.empty();
    const bool all_of_tsc =
        !options.guest_khz.empty() && !options.host_khz.empty() && !options.frac_bits.empty();
    if (pvclock && !any_of_tsc) return scale_of_frequency(options);
    if (!pvclock && all_of_tsc) return scale_of_guest(options);
    return fail(ErrorCode::kInvalidArgument, "continuo scale",
                pvclock ? "--hz goes with none of the other options"
                        : "--hz is missing, or one of --guest-khz, --host-khz and --frac-bits",
                "Give --hz N, or --guest-khz G --host-khz H --frac-bits 32|48 [--host-tsc T]");
}

}  // namespace

void add_scale(CLI::App& program, Invocation& invocation) {
    const auto options = std::make_shared<Options>();
    CLI::App* command = add_command(program, invocation, "scale",
                                    "Compute a pvclock scale or a TSC multiplier as KVM does",
                                    kExample, options, &run);
    command->add_option("--hz", options->hz, "Frequency of the guest's counter, 1 to 2^64-1")
        ->type_name("N");
    command->add_option("--guest-khz", options->guest_khz, "Frequency that the guest shall see")
        ->type_name("KHZ");
    command->add_option("--host-khz", options->host_khz, "Frequency of the host's TSC")
        ->type_name("KHZ");
    command
        ->add_option("--frac-bits", options->frac_bits,
                     "Fractional bits of the multiplier: 32 (SVM) or 48 (VMX)")
        ->type_name("32|48");
    command
        ->add_option("--host-tsc", options->host_tsc,
                     "Also print what the guest reads at this host TSC")
        ->type_name("TSC");
    add_json_flag(*command, options->json);
}

}  // namespace continuo::cli
