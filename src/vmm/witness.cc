#include "continuo/vmm/witness.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "continuo/abi/time_travel_host.h"
#include "witness_boot.h"

extern "C" const std::byte continuo_witness_begin[];
extern "C" const std::byte continuo_witness_end[];

namespace continuo::vmm {

namespace {

constexpr std::uint64_t kReleaseNoticeAfterNs = 5'000'000'000;

using namespace witness;
using state::ErrorCode;

void put_vcpu(GuestWriter& out, const WitnessConfig& config, std::uint32_t vcpu) {
    Report report{};
    report.vcpu = vcpu;
    report.workload_pages = config.workload_pages_a_vcpu;
    report.workload_gpa = kWorkload + vcpu * config.workload_pages_a_vcpu * kvm::kPageSize;
    out.put(report_gpa(vcpu), report);
    out.put(kStacks + kStackStride * vcpu, report_gpa(vcpu));
    put_vcpu_tables(out, vcpu);
}

Result<Control> make_control(VirtualMachine& machine, const WitnessConfig& config) {
    Control control{};
    control.magic = kMagic;
    control.version = kVersion;
    control.vcpu_count = machine.config().vcpus;
    control.dirty_pages_a_second = config.dirty_pages_a_second;
    if (auto done = fill_machine_control(machine, config, control); !done)
        return tl::unexpected(std::move(done.error()));
    return control;
}

Status check_room(const VirtualMachine& machine, const WitnessConfig& config) {
    const std::uint64_t room = (machine.config().memory_bytes - kWorkload) / kvm::kPageSize;
    const std::uint64_t each = room / machine.config().vcpus;
    if (config.workload_pages_a_vcpu <= each) return {};
    return state::fail(ErrorCode::kInvalidArgument, "workload",
                       std::to_string(config.workload_pages_a_vcpu) +
                           " pages for each vCPU; the memory has room for " + std::to_string(each),
                       "give the VM more memory or the workload fewer pages");
}

/// The write that left word `word` of `page` in a slice of `pages`, where `done` page writes are
/// finished: 0 for never.
std::uint64_t finished_generation(std::uint64_t page, std::uint64_t pages, std::uint64_t done) {
    return done / pages + (page < done % pages ? 1 : 0);
}

std::uint64_t expected_word(std::uint32_t vcpu, std::uint64_t page, std::uint64_t generation,
                            std::uint32_t word) {
    return generation == 0 ? 0 : workload_word(vcpu, page, generation, word);
}

tl::unexpected<state::Error> wrong_word(std::uint32_t vcpu, std::uint64_t gpa,
                                        std::uint64_t generation) {
    char text[64];
    std::snprintf(text, sizeof text, "vCPU %u, GPA 0x%llx", vcpu,
                  static_cast<unsigned long long>(gpa));
    return state::fail(ErrorCode::kIntegrity, text,
                       "the workload's word is not that of write " + std::to_string(generation));
}

Status verify_page(const kvm::GuestMemory& memory, const Report& report, std::uint64_t page) {
    const std::uint64_t done = report.pages_written;
    const std::uint64_t generation = finished_generation(page, report.workload_pages, done);
    // The next page to be finished may be half written: new words first, old ones behind them.
    bool may_be_new = page == done % report.workload_pages;
    for (std::uint32_t word = 0; word < kWordsAPage; ++word) {
        const std::uint64_t gpa = report.workload_gpa + page * kvm::kPageSize + word * kWordStride;
        const auto found = memory.read_object<std::uint64_t>(gpa);
        if (!found) return tl::unexpected(found.error());
        if (may_be_new && *found == expected_word(report.vcpu, page, generation + 1, word))
            continue;
        may_be_new = false;
        if (*found != expected_word(report.vcpu, page, generation, word))
            return wrong_word(report.vcpu, gpa, generation);
    }
    return {};
}

}  // namespace

std::span<const std::byte> witness_image() {
    return {continuo_witness_begin, continuo_witness_end};
}

Status load_witness(VirtualMachine& machine, const WitnessConfig& config) {
    if (auto room = check_room(machine, config); !room) return room;
    const auto image = witness_image();
    CONTINUO_CHECK(image.size() >= sizeof(ImageHeader) && image.size() <= kImageLimit);
    ImageHeader header;
    std::memcpy(&header, image.data(), sizeof header);
    CONTINUO_CHECK(header.magic == kMagic && header.version == kVersion);
    const auto control = make_control(machine, config);
    if (!control) return tl::unexpected(control.error());

    GuestWriter out{machine.memory()};
    out.put_bytes(kImage, image);
    put_tables(out, image);
    out.put(kControl, *control);
    for (std::uint32_t vcpu = 0; vcpu < machine.config().vcpus; ++vcpu)
        put_vcpu(out, config, vcpu);
    if (auto written = out.status(); !written) return written;
    for (kvm::Vcpu& vcpu : machine.vcpus()) {
        if (auto done = set_entry(vcpu, header.entry); !done) return done;
    }
    return {};
}

Result<Report> witness_report(const kvm::GuestMemory& memory, std::uint32_t vcpu) {
    const auto control = memory.read_object<Control>(kControl);
    if (!control) return tl::unexpected(control.error());
    auto report = memory.read_object<Report>(report_gpa(vcpu));
    if (!report) return report;
    if (control->magic != kMagic || report->vcpu != vcpu || vcpu >= control->vcpu_count) {
        return state::fail(ErrorCode::kGuest, "witness report of vCPU " + std::to_string(vcpu),
                           "the guest's memory holds no witness, or it was overwritten");
    }
    return report;
}

Result<std::vector<Report>> witness_reports(const kvm::GuestMemory& memory, std::uint32_t vcpus) {
    std::vector<Report> reports;
    for (std::uint32_t vcpu = 0; vcpu < vcpus; ++vcpu) {
        auto report = witness_report(memory, vcpu);
        if (!report) return tl::unexpected(std::move(report.error()));
        reports.push_back(*report);
    }
    return reports;
}

Result<std::uint64_t> raise_epoch(VirtualMachine& machine) {
    const std::uint64_t gpa = kControl + offsetof(Control, epoch);
    auto epoch = machine.memory().load<std::uint64_t>(gpa);
    if (!epoch) return epoch;
    const std::uint64_t next = *epoch + 1;
    machine.mark_dirty(gpa);
    return machine.memory().store(gpa, next).map([&] { return next; });
}

std::optional<EpochRecord> epoch_record(const Report& report, std::uint64_t epoch) {
    const EpochRecord& record = report.epochs[epoch % kEpochSlots];
    if (record.epoch != epoch || (record.flags & kHasNext) == 0) return std::nullopt;
    return record;
}

Result<std::optional<Notice>> read_notice(const kvm::GuestMemory& memory) {
    const auto control = memory.read_object<Control>(kControl);
    if (!control) return tl::unexpected(control.error());
    if (control->magic != kMagic || control->version != kVersion) return std::optional<Notice>{};
    return std::optional<Notice>{control->notice};
}

// There is no device that would carry the host's numbers from host to host: they are the guest's
// own, as it came. No reader of REALTIME is held here, so nobody looks for an answer in time.
Status publish_notice(VirtualMachine& machine, const Notice& before, const state::Notice& notice,
                      std::uint64_t bound_ns) {
    const abi::time_travel_page& page = before.page;
    const bool open = (page.migration_sequence & 1) != 0;
    const abi::TimeTravelState came{page.migration_sequence,
                                    page.time_travelled_ns,
                                    page.gap_ns,
                                    page.maxerror_ns,
                                    open ? page.time_travelled_ns - page.accounted_ns : 0,
                                    false};
    auto host = abi::TimeTravelHost::restore(came, kReleaseNoticeAfterNs, 0);
    CONTINUO_CHECK(host);
    const abi::TimeTravel travel{notice.delta_realtime.raw(),
                                 static_cast<std::uint64_t>(notice.gap.raw()), bound_ns};
    constexpr std::uint64_t gpa = kControl + offsetof(Control, notice);
    machine.mark_dirty(gpa);
    const abi::TimeTravelStores stores = host->raise(travel, page.migration_sequence, 0);
    for (const abi::TimeTravelStore& store : stores.list()) {
        Status stored = machine.memory().store(gpa + store.offset, store.value);
        if (!stored) return stored;
    }
    return {};
}

Status set_generation(VirtualMachine& machine, std::uint64_t counter) {
    const std::uint64_t gpa = kControl + offsetof(Control, generation);
    machine.mark_dirty(gpa);
    return machine.memory().store(gpa, counter);
}

Status set_dirty_rate(VirtualMachine& machine, std::uint64_t pages_a_second) {
    const std::uint64_t gpa = kControl + offsetof(Control, dirty_pages_a_second);
    // Marked after the write: a look at the log in between sends the page once more, later.
    Status stored = machine.memory().store(gpa, pages_a_second);
    machine.mark_dirty(gpa);
    return stored;
}

WitnessSummary summarise(std::span<const Report> reports) {
    WitnessSummary sum;
    for (const Report& r : reports) {
        sum.loops += r.loops;
        sum.backward_steps += r.counter_back_own.count + r.counter_back_cross.count +
                              r.clock_back_own.count + r.clock_back_cross.count;
        sum.worst_backward_counter = std::max(
            {sum.worst_backward_counter, r.counter_back_own.largest, r.counter_back_cross.largest});
        sum.worst_backward_clock = std::max(
            {sum.worst_backward_clock, r.clock_back_own.largest, r.clock_back_cross.largest});
        sum.worst_cross_skew = std::max(sum.worst_cross_skew, r.cross_skew.largest);
        sum.ticks += r.ticks;
        sum.guest_stopped += r.guest_stopped;
        sum.pages_written += r.pages_written;
    }
    const auto same = [&](const Report& r) { return r.generation == reports[0].generation; };
    if (!reports.empty() && std::ranges::all_of(reports, same))
        sum.generation = reports[0].generation;
    return sum;
}

Result<std::uint64_t> verify_workload(const kvm::GuestMemory& memory, std::uint32_t vcpus) {
    std::uint64_t checked = 0;
    for (std::uint32_t vcpu = 0; vcpu < vcpus; ++vcpu) {
        const auto report = witness_report(memory, vcpu);
        if (!report) return tl::unexpected(report.error());
        for (std::uint64_t page = 0; page < report->workload_pages; ++page, ++checked) {
            if (auto good = verify_page(memory, *report, page); !good)
                return tl::unexpected(std::move(good.error()));
        }
    }
    return checked;
}

}  // namespace continuo::vmm
