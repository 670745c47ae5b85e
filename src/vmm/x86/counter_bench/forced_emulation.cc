#include "forced_emulation.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <utility>

#include "continuo/kvm/fd.h"

namespace continuo::vmm::counter_bench {

namespace {

constexpr const char* kParameter = "/sys/module/kvm/parameters/force_emulation_prefix";

/// A number, or Y and N on kernels where it is a bool.
bool is_on(const std::string& value) {
    return !value.empty() && value != "0" && value != "N";
}

std::string read_parameter() {
    std::ifstream file{kParameter};
    std::string value;
    file >> value;
    return value;
}

/// 0, or errno.
int write_parameter(const std::string& value) {
    const kvm::Fd file{::open(kParameter, O_WRONLY | O_CLOEXEC)};
    if (!file) return errno;
    return ::write(file.get(), value.data(), value.size()) < 0 ? errno : 0;
}

tl::unexpected<state::Error> cannot(std::string what, std::string advice, int sys_errno = 0) {
    return state::fail(state::ErrorCode::kUnsupported, kParameter, std::move(what),
                       std::move(advice), sys_errno);
}

}  // namespace

state::Result<ForcedEmulation> ForcedEmulation::switch_on(bool keep) {
    ForcedEmulation out;
    const std::string now = read_parameter();
    if (now.empty()) return cannot("this kernel's KVM has no forced emulation", "");
    if (is_on(now)) return out;
    if (keep)
        return cannot("KVM's forced emulation is off, and its parameters were to be kept",
                      "leave --keep-parameters out");
    sigset_t held;
    sigemptyset(&held);
    for (const int signal : {SIGINT, SIGTERM, SIGHUP})
        sigaddset(&held, signal);
    if (const int failed = ::pthread_sigmask(SIG_BLOCK, &held, &out.mask_before_); failed != 0)
        return kvm::kernel_failure("pthread_sigmask", failed);
    out.holds_signals_ = true;
    if (const int failed = write_parameter("1"); failed != 0)
        return cannot("KVM's forced emulation is off and cannot be switched on",
                      failed == EACCES || failed == EPERM
                          ? "run as root, or load the module kvm with force_emulation_prefix=1"
                          : "load the module kvm with force_emulation_prefix=1",
                      failed);
    out.old_value_ = now;
    if (!is_on(read_parameter())) return cannot("KVM's forced emulation stays off", "");
    return out;
}

ForcedEmulation::ForcedEmulation(ForcedEmulation&& other) noexcept
    : old_value_{std::exchange(other.old_value_, {})},
      mask_before_{other.mask_before_},
      holds_signals_{std::exchange(other.holds_signals_, false)} {}

ForcedEmulation::~ForcedEmulation() {
    if (!old_value_.empty()) (void)write_parameter(old_value_);
    if (holds_signals_) ::pthread_sigmask(SIG_SETMASK, &mask_before_, nullptr);
}

}  // namespace continuo::vmm::counter_bench
