#include "options.h"

#include <cstddef>

#include "number.h"

namespace continuo::guest {

namespace {

constexpr char kUsage[] =
    "continuo-agent: repairs a guest's clocks after it was migrated, restored or paused\n"
    "\n"
    "  --notice=FILE[@OFFSET]  the notice page: a UIO device, /dev/mem, or a file (offset 0xHEX or "
    "decimal);\n"
    "                          none: do not look for one (default: the ACPI device CTNO0001's)\n"
    "  --wake=FILE             becomes readable with each notice: a UIO device, a serial or a "
    "virtio "
    "port, a FIFO\n"
    "                          (default: the found device's own line)\n"
    "  --vmclock=FILE|none     vmclock's device (default: /dev/vmclock0 where there is one)\n"
    "  --ntp=void|keep         the kernel's NTP state after a repair: unknown (default), or as it "
    "was\n"
    "  --daemon=NAME           auto (default), chrony, timesyncd, ntpd, none: who is to "
    "resynchronise\n"
    "  --chrony-socket=FILE    default /run/chrony/chronyd.sock\n"
    "  --late=leave|step       a notice found after its readers were released: leave the step to "
    "NTP\n"
    "                          (default), or step\n"
    "  --metrics=FILE          writes Prometheus counters there after each pass\n"
    "  --check-every=SECONDS   compares the clocks that often (default: never)\n"
    "  --once                  handles what is open, and ends\n"
    "  --help, --version\n";

/// The value of `argument` where it is --name=VALUE; else null.
const char* value_of(const char* argument, const char* name) {
    for (; *name != '\0'; ++name, ++argument)
        if (*argument != *name) return nullptr;
    return *argument == '=' ? argument + 1 : nullptr;
}

bool equal(const char* a, const char* b) {
    while (*a != '\0' && *a == *b) {
        ++a;
        ++b;
    }
    return *a == *b;
}

/// FILE or FILE@OFFSET; cuts the argument in two.
bool place(char* text, Options& options) {
    options.notice_path = text;
    for (char* c = text; *c != '\0'; ++c) {
        if (*c != '@') continue;
        *c = '\0';
        const bool good = parse_number(c + 1, UINT64_MAX, options.notice_offset);
        if (!good) *c = '@';
        return good && options.notice_offset % 4096 == 0;
    }
    return *text != '\0';
}

bool one_of(const char* value, const char* yes, const char* no, bool& out) {
    out = equal(value, yes);
    return out || equal(value, no);
}

bool daemon(const char* value, Daemon& out) {
    struct Name {
        const char* text;
        Daemon daemon;
    };
    constexpr Name kNames[] = {{"auto", Daemon::kAuto},
                               {"chrony", Daemon::kChrony},
                               {"timesyncd", Daemon::kTimesyncd},
                               {"ntpd", Daemon::kNtpd},
                               {"none", Daemon::kNone}};
    for (const Name& name : kNames)
        if (equal(value, name.text)) {
            out = name.daemon;
            return true;
        }
    return false;
}

bool take(char* argument, Options& options) {
    if (equal(argument, "--once")) return options.once = true;
    if (const char* value = value_of(argument, "--notice")) {
        options.discover = false;
        return equal(value, "none") || place(argument + (value - argument), options);
    }
    if (const char* value = value_of(argument, "--wake")) {
        options.wake_path = value;
        return *value != '\0';
    }
    if (const char* value = value_of(argument, "--vmclock")) {
        options.vmclock_named = !equal(value, "none");
        options.vmclock_path = options.vmclock_named ? value : nullptr;
        return *value != '\0';
    }
    if (const char* value = value_of(argument, "--ntp"))
        return one_of(value, "void", "keep", options.policy.void_ntp);
    if (const char* value = value_of(argument, "--late"))
        return one_of(value, "step", "leave", options.policy.step_late);
    if (const char* value = value_of(argument, "--daemon"))
        return daemon(value, options.policy.daemon);
    if (const char* value = value_of(argument, "--chrony-socket")) {
        options.policy.chrony_socket = value;
        return *value != '\0';
    }
    if (const char* value = value_of(argument, "--metrics")) {
        options.metrics_path = value;
        return *value != '\0';
    }
    if (const char* value = value_of(argument, "--check-every")) {
        std::uint64_t seconds = 0;
        const bool good = parse_number(value, 86'400, seconds);
        options.check_every_s = static_cast<std::uint32_t>(seconds);
        return good;
    }
    return false;
}

}  // namespace

const char* usage() {
    return kUsage;
}

Parsed parse(int count, char* const* arguments, Options& options, const char*& wrong) {
    for (int i = 1; i < count; ++i) {
        if (equal(arguments[i], "--help")) return Parsed::kHelp;
        if (equal(arguments[i], "--version")) return Parsed::kVersion;
        if (take(arguments[i], options)) continue;
        wrong = arguments[i];
        return Parsed::kWrong;
    }
    return Parsed::kRun;
}

}  // namespace continuo::guest
