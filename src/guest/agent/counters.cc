#include "counters.h"

#include <fcntl.h>

#include <cerrno>

#include "text.h"

namespace continuo::guest {
namespace {

using Page = Text<4096>;

void metric(Page& page, const char* name, const char* type, const char* help) {
    page << "# HELP continuo_agent_" << name << " " << help << "\n# TYPE continuo_agent_" << name
         << " " << type << "\ncontinuo_agent_" << name << " ";
}
void count(Page& page, const char* name, const char* help, std::uint64_t value) {
    metric(page, name, "counter", help);
    page << value << "\n";
}
void gauge(Page& page, const char* name, const char* help, std::int64_t ns) {
    metric(page, name, "gauge", help);
    page.signed_seconds(ns) << "\n";
}

void write(Page& page, const Counters& c) {
    count(page, "wakeups_total", "Times that something woke the agent.", c.wakeups);
    count(page, "notices_total", "Time travels that the notice page told of.", c.notices);
    count(page, "answers_total", "Notices answered.", c.answers);
    count(page, "overtaken_total", "Answers that a newer notice overtook.", c.overtaken);
    count(page, "disruptions_total", "Disruptions that only vmclock told of.", c.disruptions);
    count(page, "jumps_total", "Jumps found by comparing clocks.", c.jumps);
    count(page, "steps_total", "Steps of REALTIME.", c.steps);
    count(page, "late_total", "Notices found so late that NTP was left to repair REALTIME.",
          c.late);
    count(page, "clock_sets_total", "Times that somebody else set REALTIME.", c.clock_sets);
    count(page, "resyncs_total", "Times that an NTP daemon resynchronised when asked.",
          c.resynchronised);
    count(page, "failures_total", "System calls that failed.", c.failures);
    gauge(page, "last_step_seconds", "The last step of REALTIME.", c.last_step_ns);
    gauge(page, "last_pass_seconds", "From waking up to the answer, the last time.",
          static_cast<std::int64_t>(c.last_pass_ns));
    gauge(page, "last_repair_timestamp_seconds", "REALTIME after the last repair.",
          c.last_repair_ns);
}

int write_whole(System& system, int fd, const char* text, std::size_t size) {
    while (size > 0) {
        const int written = system.write(fd, text, size);
        if (written <= 0) return written < 0 ? written : -EIO;
        text += written;
        size -= static_cast<std::size_t>(written);
    }
    return 0;
}

}  // namespace

int write_counters(System& system, const Counters& counters, const char* path) {
    Page page;
    write(page, counters);
    Text<512> beside;
    beside << path << ".new";
    const int fd = system.open(beside.c_str(), O_WRONLY | O_CREAT | O_TRUNC);
    if (fd < 0) return fd;
    const int written = write_whole(system, fd, page.c_str(), page.size());
    const int closed = system.close(fd);
    if (written < 0) return written;
    if (closed < 0) return closed;
    return system.rename(beside.c_str(), path);
}

}  // namespace continuo::guest
