#include "continuo/guest/watch/linux_clocks.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/timex.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <sstream>
#include <vector>

namespace continuo::guest::watch {

namespace {

constexpr std::array<clockid_t, kClocks> kIds{CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_BOOTTIME,
                                              CLOCK_REALTIME, CLOCK_TAI};
constexpr std::size_t kPageSize = 4096;
/// A PTP clock costs a system call and an exit to the host: every so many passes.
constexpr std::uint64_t kPhcEvery = 4;
constexpr int kPageAttempts = 10'000;

Instant clock_now(clockid_t id) {
    timespec now{};
    clock_gettime(id, &now);
    return Instant::from_raw(static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000U +
                             static_cast<std::uint64_t>(now.tv_nsec));
}

/// The line of the page; nullopt while the host writes it, or where it is not one line for all
/// CPUs.
std::optional<time::PvclockLine> kvmclock_line(const continuo_pvclock_page& page) {
    for (int attempt = 0; attempt < kPageAttempts; ++attempt) {
        const std::uint32_t version = continuo_pvclock_begin(&page);
        const continuo_pvclock_line line = continuo_pvclock_load(&page);
        if (continuo_pvclock_whole(&page, version) == 0) continue;
        const auto scale = time::PvclockScale::make(line.mul, line.shift);
        if (!scale || (line.flags & CONTINUO_PVCLOCK_TSC_STABLE) == 0) return std::nullopt;
        return time::PvclockLine{Count::from_raw(line.tsc_timestamp),
                                 time::Instant<time::Kvmclock>::from_raw(line.system_time), *scale};
    }
    return std::nullopt;
}

std::optional<continuo_vmclock_words> vmclock_words(const continuo_vmclock_page& page) {
    for (int attempt = 0; attempt < kPageAttempts; ++attempt) {
        const std::uint32_t sequence = CONTINUO_LOAD_ACQUIRE(page.seq_count);
        const continuo_vmclock_words words = continuo_vmclock_load(&page);
        continuo_load_fence();
        if ((sequence & 1U) == 0 && sequence == CONTINUO_LOAD(page.seq_count)) return words;
    }
    return std::nullopt;
}

std::optional<NtpState> ntp_state() {
    timex now{};
    if (adjtimex(&now) < 0) return std::nullopt;
    return NtpState{(now.status & STA_UNSYNC) != 0, now.maxerror, now.esterror, now.freq};
}

bool same(const std::optional<time::PvclockLine>& a, const std::optional<time::PvclockLine>& b) {
    if (!a || !b) return !a && !b;
    return a->tsc_timestamp() == b->tsc_timestamp() && a->system_time() == b->system_time() &&
           a->scale() == b->scale();
}

bool same(const std::optional<continuo_vmclock_words>& a,
          const std::optional<continuo_vmclock_words>& b) {
    if (!a || !b) return !a && !b;
    return a->disruption_marker == b->disruption_marker && a->generation == b->generation &&
           a->counter_value == b->counter_value && a->seconds == b->seconds &&
           a->fraction == b->fraction && a->period == b->period;
}

#if defined(__x86_64__)
constexpr bool kHasKvmclock = true;
#else
constexpr bool kHasKvmclock = false;
#endif

/// Pages that the kernel maps for its vDSO's data.
std::vector<const continuo_pvclock_page*> vdso_pages() {
    std::vector<const continuo_pvclock_page*> pages;
    std::ifstream maps{"/proc/self/maps"};
    for (std::string line; std::getline(maps, line);) {
        if (line.find("[vvar") == std::string::npos) continue;
        unsigned long begin = 0, end = 0;
        if (std::sscanf(line.c_str(), "%lx-%lx", &begin, &end) != 2) continue;
        for (unsigned long at = begin; at < end; at += kPageSize)
            pages.push_back(reinterpret_cast<const continuo_pvclock_page*>(at));  // NOLINT
    }
    return pages;
}

bool has_form(const continuo_pvclock_page& page) {
    const std::uint32_t version = CONTINUO_LOAD(page.version);
    return version != 0 && CONTINUO_LOAD(page.pad0) == 0 && page.pad[0] == 0 && page.pad[1] == 0 &&
           (CONTINUO_LOAD(page.tsc_to_system_mul) >> 31) != 0 && kvmclock_line(page).has_value();
}

/// Whether a page can be read at all, and looks like kvmclock's: some of the kernel's mapping have
/// nothing behind them, and reading one is a SIGBUS.
bool child_accepts(const continuo_pvclock_page* page) {
    const pid_t child = fork();
    if (child == 0) _exit(has_form(*page) ? 0 : 1);
    int status = 0;
    return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) &&
           WEXITSTATUS(status) == 0;
}

/// Over 10 ms it goes on as MONOTONIC_RAW does, within a thousandth and what the readings leave
/// open: whoever reads may lose the CPU in the middle of it.
bool runs(const continuo_pvclock_page& page) {
    struct Look {
        std::int64_t before, clock, after;
    };
    const auto look = [&page]() -> std::optional<Look> {
        const auto line = kvmclock_line(page);
        if (!line) return std::nullopt;
        const auto at = [&line](std::uint64_t counter) {
            return static_cast<std::int64_t>(line->at(Count::from_raw(counter)).raw());
        };
        const std::uint64_t before = continuo_counter();
        const auto clock = static_cast<std::int64_t>(clock_now(CLOCK_MONOTONIC_RAW).raw());
        return Look{at(before), clock, at(continuo_counter())};
    };
    const auto first = look();
    timespec pause{0, 10'000'000};
    nanosleep(&pause, nullptr);
    const auto last = look();
    if (!first || !last) return false;
    const std::int64_t by_clock = last->clock - first->clock;
    const std::int64_t least = last->before - first->after, most = last->after - first->before;
    return by_clock > 0 && least <= by_clock + by_clock / 1000 &&
           most >= by_clock - by_clock / 1000;
}

}  // namespace

LinuxClocks::~LinuxClocks() {
    if (phc_ >= 0) ::close(phc_);
}

namespace {

/// `bytes` of a device or file, read only; in `error` 0 or an errno.
const void* map_page(const std::string& path, std::uint64_t offset, std::size_t bytes, int& error) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        error = errno;
        return nullptr;
    }
    struct stat status {};
    const bool file = fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
    // A file that is shorter than what is mapped of it would kill whoever reads it.
    const bool whole = !file || static_cast<std::uint64_t>(status.st_size) >= offset + bytes;
    void* const at =
        whole ? mmap(nullptr, kPageSize, PROT_READ, MAP_SHARED, fd, static_cast<off_t>(offset))
              : MAP_FAILED;
    error = at != MAP_FAILED ? 0 : whole ? errno : ENXIO;
    ::close(fd);
    return error == 0 ? at : nullptr;
}

/// Odd while one is unanswered, and one more for the answer.
std::uint64_t notices_in(const continuo_time_travel_page& page) {
    const std::uint64_t sequence = CONTINUO_LOAD_ACQUIRE(page.migration_sequence);
    return sequence / 2 + sequence % 2;
}

}  // namespace

int LinuxClocks::open_vmclock(const std::string& path, std::uint64_t offset) {
    int error = 0;
    const void* const at = map_page(path, offset, sizeof(continuo_vmclock_page), error);
    if (at != nullptr) vmclock_ = static_cast<const continuo_vmclock_page*>(at);
    return error;
}

int LinuxClocks::open_notice(const std::string& path, std::uint64_t offset) {
    int error = 0;
    const void* const at = map_page(path, offset, kPageSize, error);
    if (at == nullptr) return error;
    const auto* const page = static_cast<const continuo_time_travel_page*>(at);
    if (continuo_travel_page_valid(page) == 0) {
        munmap(const_cast<void*>(at), kPageSize);
        return EBADMSG;
    }
    notice_ = page;
    return 0;
}

std::optional<std::uint64_t> LinuxClocks::notice_address() {
    std::ifstream file{"/sys/bus/acpi/devices/CTNO0001:00/uid"};
    std::uint64_t address = 0;
    if (!(file >> std::setbase(0) >> address)) return std::nullopt;
    return address;
}

int LinuxClocks::open_phc(const std::string& path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return errno;
    timespec now{};
    // A dynamic clock's number is made of its descriptor: CPUCLOCK_SCHED's neighbour, CLOCKFD.
    const auto id = static_cast<clockid_t>((~static_cast<unsigned>(fd) << 3U) | 3U);
    if (clock_gettime(id, &now) != 0) {
        const int error = errno;
        ::close(fd);
        return error;
    }
    phc_ = fd;
    return 0;
}

std::string LinuxClocks::kvm_phc() {
    std::error_code none;
    for (const auto& entry : std::filesystem::directory_iterator{"/sys/class/ptp", none}) {
        std::ifstream file{entry.path() / "clock_name"};
        std::string clock_name;
        if (std::getline(file, clock_name) && clock_name == "KVM virtual PTP")
            return "/dev/" + entry.path().filename().string();
    }
    return {};
}

bool LinuxClocks::find_kvmclock() {
    if (!kHasKvmclock) return false;
    for (const continuo_pvclock_page* page : vdso_pages())
        if (child_accepts(page) && runs(*page)) {
            kvmclock_ = page;
            return true;
        }
    return false;
}

Count LinuxClocks::counter() {
    return Count::from_raw(continuo_counter());
}

// Each clock stands between two readings of the counter, and the one after it is the one before
// the next. The order turns with each pass, so that none is always read first.
void LinuxClocks::read(std::uint64_t number, Pass& pass) {
    pass.woke = counter();
    if (vmclock_ != nullptr) pass.vmclock = vmclock_words(*vmclock_);
    if (kvmclock_ != nullptr) pass.kvmclock = kvmclock_line(*kvmclock_);
    if (notice_ != nullptr) pass.notices = notices_in(*notice_);
    pass.begin = counter();
    Count before = pass.begin;
    for (std::size_t i = 0; i < kClocks; ++i) {
        const std::size_t which = number % 2 == 0 ? i : kClocks - 1 - i;
        const Instant at = clock_now(kIds[which]);
        const Count after = counter();
        pass.clocks[which] = {before, at, after};
        before = after;
    }
    pass.end = before;
    if (pass.cpu == 0) read_system_calls(number, pass);
    pass.torn = (vmclock_ != nullptr && !same(pass.vmclock, vmclock_words(*vmclock_))) ||
                (kvmclock_ != nullptr && !same(pass.kvmclock, kvmclock_line(*kvmclock_))) ||
                (notice_ != nullptr && *pass.notices != notices_in(*notice_));
}

void LinuxClocks::read_system_calls(std::uint64_t number, Pass& pass) {
    pass.ntp = ntp_state();
    if (phc_ < 0 || number % kPhcEvery != 0) return;
    const auto id = static_cast<clockid_t>((~static_cast<unsigned>(phc_) << 3U) | 3U);
    const Count phc_before = counter();
    const Instant at = clock_now(id);
    pass.phc = Bracket{phc_before, at, counter()};
}

}  // namespace continuo::guest::watch
