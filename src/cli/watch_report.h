// What `continuo watch` says: a line for each event while it runs, and at the end one JSON document
// or the same as aligned text. The page of --html is made of the document.
#pragma once

#include <string>
#include <vector>

#include "continuo/guest/watch/report.h"
#include "continuo/state/json.h"

namespace continuo::cli {

/// What was watched with what; for the head of both.
struct WatchSetup {
    std::vector<int> cpus;  ///< the kernel's numbers of what the report counts from 0
    std::uint64_t rate_hz = 0;
    std::string kernel, clocksource;
    std::string vmclock, notice, phc;  ///< the files; empty where there are none
    bool kvmclock = false;
    guest::watch::Nanos window, hole;
};

/// docs/formats/watch.md has the schema, continuo/watch/1.
state::Json watch_json(const WatchSetup& setup, const guest::watch::Report& report);
std::string watch_text(const WatchSetup& setup, const guest::watch::Report& report);

/// One line each, without a newline.
std::string event_line(const guest::watch::Event& event);
std::string ntp_line(const guest::watch::NtpChange& change);
std::string backward_line(const guest::watch::Backward& backward, std::uint64_t count);
/// How it stands, in less than 100 columns.
std::string summary_line(const guest::watch::Report& report);

}  // namespace continuo::cli
