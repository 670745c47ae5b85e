#include "host.h"

#include <fmt/format.h>
#include <unistd.h>

#include <charconv>
#include <cstdio>
#include <fstream>

#include "continuo/time/tsc_scale.h"

namespace continuo::scaling {

namespace {

/// What holds for the whole program: doctor runs once.
struct Looked {
    std::optional<kvm::System> system;
    std::optional<kvm::DoctorReport> report;
    std::string why_not;
};

Looked look() {
    Looked looked;
    auto system = kvm::System::open();
    if (!system) {
        looked.why_not = "no usable /dev/kvm: " + system.error().message();
        return looked;
    }
    auto report = kvm::examine(*system);
    if (!report)
        looked.why_not = "doctor: " + report.error().message();
    else if (!report->host->scaling_frac_bits)
        looked.why_not = "this host does not scale a guest's TSC: use lab/scaling/run";
    else
        looked.report = std::move(*report);
    looked.system = std::move(*system);
    return looked;
}

const Looked& looked() {
    static const Looked result = look();
    return result;
}

kvm::Result<std::string> first_line(const std::string& path) {
    std::ifstream file{path};
    std::string line;
    if (std::getline(file, line)) return line;
    return state::fail(state::ErrorCode::kUnsupported, path, "cannot be read",
                       "mount debugfs and run as root");
}

/// Signed or unsigned decimal, modulo 2^64.
kvm::Result<std::uint64_t> number_in(const std::string& path) {
    const auto line = first_line(path);
    if (!line) return tl::unexpected(line.error());
    const bool negative = line->starts_with('-');
    std::uint64_t value = 0;
    const char* end = line->data() + line->size();
    const auto parsed = std::from_chars(line->data() + (negative ? 1 : 0), end, value);
    if (parsed.ec != std::errc{} || parsed.ptr != end)
        return state::fail(state::ErrorCode::kKernel, path, "holds no number: " + *line);
    return negative ? 0 - value : value;
}

}  // namespace

void figure(const std::string& text) {
    fmt::print("figure: {}\n", text);
    std::fflush(stdout);
}

TscMap InForce::map() const {
    return TscMap{time::VmxTscScale::from_ratio(ratio).value(), offset};
}

kvm::Result<InForce> in_force(const kvm::Vm& vm, std::uint32_t vcpu) {
    const std::string folder =
        fmt::format("/sys/kernel/debug/kvm/{}-{}/vcpu{}/", ::getpid(), vm.fd(), vcpu);
    const auto ratio = number_in(folder + "tsc-scaling-ratio");
    const auto offset = number_in(folder + "tsc-offset");
    const auto bits = number_in(folder + "tsc-scaling-ratio-frac-bits");
    if (!ratio) return tl::unexpected(ratio.error());
    if (!offset) return tl::unexpected(offset.error());
    if (!bits) return tl::unexpected(bits.error());
    return InForce{*ratio, *offset, *bits};
}

void ScalingHost::SetUp() {
    if (!looked().report) GTEST_SKIP() << looked().why_not;
    system_ = &*looked().system;
}

const kvm::DoctorReport& ScalingHost::report() const {
    return *looked().report;
}

std::vector<std::uint32_t> guest_frequencies(std::uint32_t host_khz) {
    return {1'000'000,
            host_khz / 2,
            2'400'000,
            host_khz - host_khz / 1000,
            host_khz,
            host_khz + host_khz / 10'000,  // within KVM's tolerance: not scaled
            host_khz + host_khz / 1000,
            5'000'000};
}

}  // namespace continuo::scaling
