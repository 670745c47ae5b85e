#include "record_table.h"

#include <fmt/format.h>

#include "text.h"

namespace continuo::cli {

using state::Record;

namespace {

std::string yes_no(bool value) {
    return value ? "yes" : "no";
}

std::string host_part(const Record& record) {
    const auto& anchor = record.anchor;
    constexpr std::uint64_t second = time::kNanosPerSecond;
    Table table{{{""}, {""}}};
    table.add({"architecture", architecture_name(record.architecture)});
    table.add({"source", record.source.kernel.empty() ? "unknown" : record.source.kernel});
    table.add({"host counter", fmt::format("{} at {} Hz", grouped(anchor.counter.raw()),
                                           grouped(anchor.frequency.hz()))});
    table.add({"its true rate", fmt::format("within {} ppb of it", anchor.rate_bound_ppb)});
    table.add({"TAI", fmt::format("{}.{:09} s ({} TAI), within {}{}", anchor.tai.raw() / second,
                                  anchor.tai.raw() % second, show_date(anchor.tai.raw() / second),
                                  show_ns_unsigned(anchor.tai_bound_ns),
                                  anchor.synchronised ? "" : ", not synchronised")});
    table.add({"TAI - UTC", fmt::format("{} s", anchor.tai_offset_sec)});
    table.add({"suspended",
               anchor.suspended_ns
                   ? fmt::format("{} in all, in this boot", show_ns_unsigned(*anchor.suspended_ns))
                   : "unknown"});
    table.add({"notice sequence", std::to_string(record.notice_sequence)});
    return table.text();
}

/// arm64: no more than a counter.
std::string arm64_vcpu_part(const Record& record) {
    using Align = Table::Align;
    Table table{{{"vCPU", Align::kRight},
                 {"CNTVCT", Align::kRight},
                 {"+-", Align::kRight},
                 {"offset", Align::kRight},
                 {"Hz", Align::kRight}}};
    for (std::size_t i = 0; i < record.vcpus.size(); ++i) {
        const auto& vcpu = record.vcpus[i];
        table.add(
            {std::to_string(i), std::to_string(vcpu.counter.raw()),
             std::to_string(vcpu.counter_bound_ticks),
             vcpu.tsc_offset ? std::to_string(static_cast<std::int64_t>(*vcpu.tsc_offset)) : "-",
             std::to_string(vcpu.frequency.hz())});
    }
    return table.text();
}

std::string vcpu_part(const Record& record) {
    if (record.architecture == state::Architecture::kArm64) return arm64_vcpu_part(record);
    using Align = Table::Align;
    Table table{{{"vCPU", Align::kRight},
                 {"counter", Align::kRight},
                 {"+-", Align::kRight},
                 {"offset", Align::kRight},
                 {"TSC_ADJUST", Align::kRight},
                 {"Hz", Align::kRight},
                 {"system_time MSR", Align::kRight},
                 {"GUEST_STOPPED"}}};
    for (std::size_t i = 0; i < record.vcpus.size(); ++i) {
        const auto& vcpu = record.vcpus[i];
        table.add(
            {std::to_string(i), std::to_string(vcpu.counter.raw()),
             std::to_string(vcpu.counter_bound_ticks),
             vcpu.tsc_offset ? std::to_string(static_cast<std::int64_t>(*vcpu.tsc_offset)) : "-",
             std::to_string(vcpu.tsc_adjust), std::to_string(vcpu.frequency.hz()),
             fmt::format("{:#x}", vcpu.system_time_msr),
             vcpu.guest_stopped_pending ? "pending" : "-"});
    }
    return table.text();
}

std::string kvmclock_part(const Record& record) {
    if (!record.kvmclock) return "no kvmclock\n";
    const auto& clock = *record.kvmclock;
    Table table{{{""}, {""}}};
    table.add({"kvmclock",
               fmt::format("{} ns at the anchor, within {} ns",
                           clock.line.at(record.vcpus.front().counter).raw(), clock.bound_ns)});
    table.add({"line", fmt::format("system_time {}, tsc_timestamp {}, mul {}, shift {}",
                                   clock.line.system_time().raw(), clock.line.tsc_timestamp().raw(),
                                   clock.line.scale().mul(), clock.line.scale().shift())});
    table.add({"read from",
               clock.origin == state::KvmclockOrigin::kPage ? "vCPU 0's page" : "the kernel"});
    table.add({"masterclock", yes_no(clock.masterclock)});
    table.add({"kernel - line", fmt::format("{} ns", clock.kernel_minus_line.raw())});
    return table.text();
}

}  // namespace

std::string architecture_name(state::Architecture architecture) {
    return architecture == state::Architecture::kX86_64 ? "x86_64" : "arm64";
}

std::string record_table(const Record& record) {
    return host_part(record) + "\n" + vcpu_part(record) + "\n" + kvmclock_part(record);
}

}  // namespace continuo::cli
