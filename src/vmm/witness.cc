#include "continuo/vmm/witness.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

extern "C" const std::byte continuo_witness_begin[];
extern "C" const std::byte continuo_witness_end[];

namespace continuo::vmm {

namespace {

using namespace witness;
using state::ErrorCode;

// Selectors, and the descriptors of a flat long-mode GDT in their architectural encoding.
constexpr std::uint16_t kKernelCode = 0x08;
constexpr std::uint16_t kKernelData = 0x10;
constexpr std::uint64_t kDescriptors[] = {
    0,
    0x00af9b000000ffff,  // 64-bit code, DPL 0
    0x00cf93000000ffff,  // data, DPL 0
    0x00cff3000000ffff,  // data, DPL 3
    0x00affb000000ffff,  // 64-bit code, DPL 3
};
constexpr std::uint64_t kPagePresentWriteUser = 0x7;
constexpr std::uint64_t kPageAccessedDirtyLarge = 0xe0;
constexpr std::uint64_t kLargePage = 2ull << 20;
constexpr std::uint32_t kFaultVectors = 32;
/// Room above the first frame, so that RSP stays inside its own 8 KiB.
constexpr std::uint64_t kStackTopGap = 16;
constexpr std::uint64_t kApicBase = 0xfee00000;
constexpr std::uint64_t kApicBootstrap = 1u << 8;
constexpr std::uint64_t kApicX2apic = 1u << 10;
constexpr std::uint64_t kApicEnabled = 1u << 11;
constexpr std::uint64_t kCr0 = 0x80010033;  // PG WP NE ET MP PE
constexpr std::uint64_t kCr4Pae = 0x20;
constexpr std::uint64_t kEferLongMode = 0x500;  // LMA LME
constexpr std::uint32_t kCpuid1EcxTscDeadline = 1u << 24;
constexpr std::uint32_t kCpuid7EbxTscAdjust = 1u << 1;

/// A 64-bit interrupt gate of ring 0.
struct Gate {
    std::uint64_t low;
    std::uint64_t high;
};

Gate make_gate(std::uint64_t handler) {
    const std::uint64_t low = (handler & 0xffff) | (std::uint64_t{kKernelCode} << 16) |
                              (0x8e00ull << 32) | ((handler >> 16 & 0xffff) << 48);
    return Gate{low, handler >> 32};
}

std::uint64_t stack_top(std::uint32_t vcpu) {
    return kStacks + kStackStride * (vcpu + 1) - kStackTopGap;
}

std::uint64_t report_gpa(std::uint32_t vcpu) {
    return kReports + kReportStride * vcpu;
}

/// Writes that stop at the first failure.
class Writer {
  public:
    explicit Writer(kvm::GuestMemory& memory) : memory_{memory} {}
    template <class T>
    void put(std::uint64_t gpa, const T& value) {
        if (status_) status_ = memory_.write_object(gpa, value);
    }
    void put_bytes(std::uint64_t gpa, std::span<const std::byte> bytes) {
        if (status_) status_ = memory_.write(gpa, bytes);
    }
    Status status() { return std::move(status_); }

  private:
    kvm::GuestMemory& memory_;
    Status status_{};
};

void put_tables(Writer& out, const ImageHeader& image) {
    for (std::size_t i = 0; i < std::size(kDescriptors); ++i)
        out.put(kGdt + 8UL * i, kDescriptors[i]);
    for (std::uint32_t vector = 0; vector < kFaultVectors; ++vector)
        out.put(kIdt + 16UL * vector, make_gate(image.fault_gates + kFaultGateStride * vector));
    out.put(kIdt + 16UL * kTimerVector, make_gate(image.timer_gate));
    out.put(kIdt + 16UL * kSpuriousVector, make_gate(image.spurious_gate));
    out.put(kPml4, kPdpt | kPagePresentWriteUser);
    out.put(kPdpt, kPageDirectory | kPagePresentWriteUser);
    for (std::uint64_t i = 0; i < kIdentityMapBytes / kLargePage; ++i)
        out.put(kPageDirectory + 8 * i,
                i * kLargePage | kPagePresentWriteUser | kPageAccessedDirtyLarge);
}

void put_vcpu(Writer& out, const WitnessConfig& config, std::uint32_t vcpu) {
    Report report{};
    report.vcpu = vcpu;
    report.workload_pages = config.workload_pages_a_vcpu;
    report.workload_gpa = kWorkload + vcpu * config.workload_pages_a_vcpu * kvm::kPageSize;
    out.put(report_gpa(vcpu), report);
    out.put(kStacks + kStackStride * vcpu, report_gpa(vcpu));
    // TSS: RSP0 at offset 4; an I/O map base beyond the limit.
    const std::uint64_t task = kTaskStates + kTaskStateStride * vcpu;
    out.put(task + 4, stack_top(vcpu));
    out.put(task + 102, std::uint16_t{0x68});
}

kvm_segment segment(std::uint16_t selector, std::uint8_t type, bool code) {
    kvm_segment out{};
    out.limit = 0xffffffff;
    out.selector = selector;
    out.type = type;
    out.present = 1;
    out.s = 1;
    out.g = 1;
    out.l = code ? 1 : 0;
    out.db = code ? 0 : 1;
    return out;
}

kvm_segment task_segment(std::uint32_t vcpu) {
    kvm_segment out{};
    out.base = kTaskStates + kTaskStateStride * vcpu;
    out.limit = 0x67;
    out.selector = 0x28;
    out.type = 11;
    out.present = 1;
    return out;
}

Status set_registers(kvm::Vcpu& vcpu, std::uint64_t entry) {
    auto sregs = vcpu.sregs();
    if (!sregs) return tl::unexpected(std::move(sregs.error()));
    const kvm_segment data = segment(kKernelData, 3, false);
    sregs->cs = segment(kKernelCode, 11, true);
    sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = data;
    sregs->tr = task_segment(vcpu.id());
    sregs->ldt = kvm_segment{};
    sregs->ldt.unusable = 1;
    sregs->gdt.base = kGdt;
    sregs->gdt.limit = sizeof kDescriptors - 1;
    sregs->idt.base = kIdt;
    sregs->idt.limit = 0xfff;
    sregs->cr0 = kCr0;
    sregs->cr3 = kPml4;
    sregs->cr4 = kCr4Pae;
    sregs->efer = kEferLongMode;
    sregs->apic_base =
        kApicBase | kApicEnabled | kApicX2apic | (vcpu.id() == 0 ? kApicBootstrap : 0);
    if (auto done = vcpu.set_sregs(*sregs); !done) return done;
    kvm_regs regs{};
    regs.rip = entry;
    regs.rsp = stack_top(vcpu.id());
    regs.rdi = report_gpa(vcpu.id());
    regs.rsi = kControl;
    regs.rflags = 2;
    if (auto done = vcpu.set_regs(regs); !done) return done;
    return vcpu.set_mp_state(kvm_mp_state{KVM_MP_STATE_RUNNABLE});
}

Result<Control> make_control(VirtualMachine& machine, const WitnessConfig& config) {
    Control control{};
    control.magic = kMagic;
    control.version = kVersion;
    control.vcpu_count = machine.config().vcpus;
    control.flags = config.user_mode ? kFlagUserMode : 0;
    control.dirty_pages_a_second = config.dirty_pages_a_second;
    control.cross_pages_a_loop = std::min(config.cross_pages_a_loop, control.vcpu_count - 1);
    const kvm::CpuidEntry* extended = kvm::find_cpuid(machine.cpuid(), 7);
    if (extended != nullptr && (extended->ebx & kCpuid7EbxTscAdjust) != 0)
        control.flags |= kFlagTscAdjust;
    if (!config.timer) return control;
    const kvm::CpuidEntry* features = kvm::find_cpuid(machine.cpuid(), 1);
    if (features == nullptr || (features->ecx & kCpuid1EcxTscDeadline) == 0) {
        control.timer_mode = TimerMode::kPeriodic;
        control.timer_period = config.timer_period_ns;
        return control;
    }
    const auto khz = machine.vcpus().front().tsc_khz();
    if (!khz) return tl::unexpected(khz.error());
    control.timer_mode = TimerMode::kTscDeadline;
    control.timer_period = config.timer_period_ns / 1000 * *khz / 1000;
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

    Writer out{machine.memory()};
    out.put_bytes(kImage, image);
    put_tables(out, header);
    out.put(kControl, *control);
    for (std::uint32_t vcpu = 0; vcpu < machine.config().vcpus; ++vcpu)
        put_vcpu(out, config, vcpu);
    if (auto written = out.status(); !written) return written;
    for (kvm::Vcpu& vcpu : machine.vcpus()) {
        if (auto done = set_registers(vcpu, header.entry); !done) return done;
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

Status publish_notice(VirtualMachine& machine, const Notice& before, const state::Notice& notice) {
    const bool pending = (before.sequence & 1) != 0;
    Notice next = before;
    next.sequence = before.sequence + (pending ? 2 : 1);
    next.gap_ns = (pending ? before.gap_ns : 0) + static_cast<std::uint64_t>(notice.gap.raw());
    next.delta_realtime_ns = (pending ? before.delta_realtime_ns : 0) +
                             static_cast<std::uint64_t>(notice.delta_realtime.raw());
    constexpr std::uint64_t gpa = kControl + offsetof(Control, notice);
    machine.mark_dirty(gpa);
    return machine.memory().write_object(gpa, next);
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
        sum.backward_steps += r.tsc_back_own.count + r.tsc_back_cross.count +
                              r.kvmclock_back_own.count + r.kvmclock_back_cross.count;
        sum.worst_backward_tsc =
            std::max({sum.worst_backward_tsc, r.tsc_back_own.largest, r.tsc_back_cross.largest});
        sum.worst_backward_kvmclock =
            std::max({sum.worst_backward_kvmclock, r.kvmclock_back_own.largest,
                      r.kvmclock_back_cross.largest});
        sum.worst_cross_skew_ns = std::max(sum.worst_cross_skew_ns, r.cross_skew.largest);
        sum.ticks += r.ticks;
        sum.guest_stopped += r.guest_stopped;
        sum.pages_written += r.pages_written;
    }
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
