// Live migrations of the witness guest on a real /dev/kvm: what only x86-64 has.
#include "acpi.h"
#include "devices.h"
#include "flat_segment.h"
#include "migration_kvm_fixture.h"

// A guest in 32-bit protected mode that loads YMM0 to YMM7 once from 0x20000, and then stores and
// compares them for ever: rounds are counted at 0x21000, differences at 0x21004.
asm(R"(
    .pushsection .rodata
    .code32
    .balign 16
continuo_vector_guest_begin:
    vmovdqu 0x20000, %ymm0
    vmovdqu 0x20020, %ymm1
    vmovdqu 0x20040, %ymm2
    vmovdqu 0x20060, %ymm3
    vmovdqu 0x20080, %ymm4
    vmovdqu 0x200a0, %ymm5
    vmovdqu 0x200c0, %ymm6
    vmovdqu 0x200e0, %ymm7
1:  vmovdqu %ymm0, 0x22000
    vmovdqu %ymm1, 0x22020
    vmovdqu %ymm2, 0x22040
    vmovdqu %ymm3, 0x22060
    vmovdqu %ymm4, 0x22080
    vmovdqu %ymm5, 0x220a0
    vmovdqu %ymm6, 0x220c0
    vmovdqu %ymm7, 0x220e0
    movl $64, %ecx
    movl $0x20000, %esi
    movl $0x22000, %edi
    cld
    repe cmpsl
    je 2f
    incl 0x21004
2:  incl 0x21000
    jmp 1b
continuo_vector_guest_end:
    .code64
    .popsection
)");
extern "C" const std::byte continuo_vector_guest_begin[];
extern "C" const std::byte continuo_vector_guest_end[];

namespace continuo::vmm {

Status lead_astray(kvm::Vcpu& vcpu) {
    auto regs = vcpu.regs();
    if (!regs) return tl::unexpected(std::move(regs.error()));
    regs->rip = std::uint64_t{1} << 40;  // outside its page tables
    return vcpu.set_regs(*regs);
}

namespace {

using namespace std::chrono_literals;

constexpr std::uint64_t kFirstClockPage = witness::kClockPages;

TEST_F(MigrationOnKvm, AGuestThatScribblesOverItsClockPageMovesByTheKernelsLine) {
    auto machine = boot(*host_, 2);
    ASSERT_OK(machine);
    // As if it had done it with its last instruction before the stop.
    ASSERT_OK((*machine)->stop());
    ASSERT_OK((*machine)->memory().write(kFirstClockPage, Bytes(32, std::byte{0xff})));
    KvmSourceVm source{host_->system, std::move(*machine), host_->findings};
    KvmDestinationVm destination{host_->system, host_->findings, {}};
    const Ends ends = migrate(source, destination, address());
    if (const auto* kept = std::get_if<Kept>(&*ends.source)) FAIL() << kept->reason.message();
    ASSERT_TRUE(std::holds_alternative<Moved>(*ends.source));
    ASSERT_TRUE(destination.record() && destination.record()->kvmclock);
    EXPECT_EQ(destination.record()->kvmclock->origin, state::KvmclockOrigin::kKernel);
    bool told = false;
    for (const std::string& note : destination.certificate()->notes)
        told = told || note.find("page") != std::string::npos;
    EXPECT_TRUE(told) << "the certificate says that it rests on the kernel's line";
    VirtualMachine& moved = *destination.machine();
    ASSERT_OK(await_epoch(moved, *destination.epoch(), 10s));
    const auto seen = observe_witness(moved, *destination.plan(), *destination.epoch());
    ASSERT_OK(seen);
    for (const state::GuestObservation& vcpu : *seen)
        EXPECT_LE(std::abs(vcpu.kvmclock_seam_ns.value_or(99)), 3) << "vCPU " << vcpu.vcpu;
    ASSERT_OK(run_loops(moved, 100));
    ASSERT_OK(moved.stop());
}

TEST_F(MigrationOnKvm, AClockPageAtAnImpossibleAddressIsNoReasonNotToMove) {
    auto machine = boot(*host_, 1);
    ASSERT_OK(machine);
    ASSERT_OK((*machine)->stop());
    KvmSourceVm source{host_->system, std::move(*machine), host_->findings};
    kvm::Vcpu& vcpu = source.machine()->vcpus()[0];
    int taken = 0;
    for (const std::uint64_t gpa : {kFirstClockPage + 2, std::uint64_t{1} << 40,
                                    std::uint64_t{32 << 20} - 16, ~std::uint64_t{0} << 12}) {
        if (!vcpu.set_msr(0x4b564d01, gpa | 1)) continue;  // KVM itself refuses some
        ++taken;
        const auto clocks = source.capture_clocks();
        ASSERT_OK(clocks);
        EXPECT_EQ(source.record()->kvmclock->origin, state::KvmclockOrigin::kKernel)
            << std::hex << gpa;
    }
    if (taken == 0) GTEST_SKIP() << "this KVM refuses all of them";
}

constexpr std::uint64_t kVectorCode = 0x10000;
constexpr std::uint64_t kVectorPattern = 0x20000;
constexpr std::uint64_t kVectorRounds = 0x21000;
constexpr std::uint64_t kVectorDifferences = 0x21004;
constexpr std::uint64_t kXcr0X87SseAvx = 7;

bool offers_avx(const kvm::System& system) {
    const auto cpuid = system.supported_cpuid();
    if (!cpuid) return false;
    const kvm::CpuidEntry* states = kvm::find_cpuid(*cpuid, 0xd, 0);
    return states != nullptr && (states->eax & kXcr0X87SseAvx) == kXcr0X87SseAvx;
}

Result<std::unique_ptr<VirtualMachine>> boot_vector_guest(const Host& host) {
    auto machine = VirtualMachine::create(host.system, {.vcpus = 1, .memory_bytes = 16 << 20});
    if (!machine) return machine;
    kvm::GuestMemory& memory = (*machine)->memory();
    (void)memory.write(kVectorCode,
                       std::span{continuo_vector_guest_begin, continuo_vector_guest_end});
    for (std::uint32_t i = 0; i < 64; ++i)
        (void)memory.write_object(kVectorPattern + 4 * i, 0x9e3779b9u * (i + 1));
    kvm::Vcpu& vcpu = (*machine)->vcpus()[0];
    auto sregs = vcpu.sregs();
    if (!sregs) return tl::unexpected(std::move(sregs.error()));
    sregs->cs = flat_code(0x10, CodeWidth::k32);
    sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = flat_data(0x18);
    sregs->cr0 = 0x11;     // ET PE
    sregs->cr4 = 0x40600;  // OSXSAVE OSXMMEXCPT OSFXSR
    kvm_regs regs{};
    regs.rip = kVectorCode;
    regs.rflags = 2;
    kvm_xcrs xcrs{};
    xcrs.nr_xcrs = 1;
    xcrs.xcrs[0].value = kXcr0X87SseAvx;
    for (const Status& set :
         {vcpu.set_sregs(*sregs), vcpu.set_regs(regs), vcpu.set_xcrs(xcrs), (*machine)->resume()})
        if (!set) return tl::unexpected(set.error());
    return machine;
}

/// True once the guest has compared its registers some more times.
bool compares_on(VirtualMachine& machine) {
    const auto until = after(10s);
    const std::uint32_t from = *machine.memory().load<std::uint32_t>(kVectorRounds);
    while (*machine.memory().load<std::uint32_t>(kVectorRounds) < from + 100) {
        if (!machine.health() || std::chrono::steady_clock::now() > until) return false;
        std::this_thread::sleep_for(1ms);
    }
    return true;
}

TEST_F(MigrationOnKvm, AVectorRegistersUpperHalvesMoveToo) {
    if (!offers_avx(host_->system)) GTEST_SKIP() << "this KVM gives guests no AVX";
    auto machine = boot_vector_guest(*host_);
    ASSERT_OK(machine);
    if (!compares_on(**machine)) {
        ASSERT_OK((*machine)->stop());
        GTEST_SKIP() << "this KVM does not run AVX in kernel-mode code";
    }
    for (int move = 0; move < 5; ++move) {
        KvmSourceVm source{host_->system, std::move(*machine), host_->findings};
        KvmDestinationVm destination{host_->system, host_->findings, {}};
        const Ends ends = migrate(source, destination, address());
        if (const auto* kept = std::get_if<Kept>(&*ends.source)) FAIL() << kept->reason.message();
        ASSERT_TRUE(std::holds_alternative<Moved>(*ends.source));
        machine = destination.release();
        ASSERT_TRUE(compares_on(**machine)) << "move " << move;
        EXPECT_EQ(*(*machine)->memory().load<std::uint32_t>(kVectorDifferences), 0u) << move;
    }
    ASSERT_OK((*machine)->stop());
}

/// Fills the components of the XSAVE area that hold vectors, as the host's CPUID has them.
void fill_vectors(std::span<std::byte> area, const kvm::CpuidEntries& cpuid, std::uint64_t xcr0) {
    constexpr std::size_t kHeader = 512;
    for (std::size_t i = 160; i < 416; ++i)  // XMM0 to XMM15
        area[i] = static_cast<std::byte>(i * 7 + 1);
    for (const std::uint32_t component : {2u, 5u, 6u, 7u}) {
        const kvm::CpuidEntry* at = kvm::find_cpuid(cpuid, 0xd, component);
        if ((xcr0 >> component & 1) == 0 || at == nullptr) continue;
        for (std::size_t i = at->ebx; i < at->ebx + at->eax && i < area.size(); ++i)
            area[i] = static_cast<std::byte>(i * 13 + component);
    }
    std::memcpy(area.data() + kHeader, &xcr0, sizeof xcr0);
}

TEST_F(MigrationOnKvm, EveryVectorComponentThatTheHostHasIsCarried) {
    if (!offers_avx(host_->system)) GTEST_SKIP() << "this KVM gives guests no AVX";
    const VmConfig config{.vcpus = 1, .memory_bytes = 16 << 20};
    auto here = VirtualMachine::create(host_->system, config);
    auto there = VirtualMachine::create(host_->system, config);
    ASSERT_OK(here);
    ASSERT_OK(there);
    const auto cpuid = host_->system.supported_cpuid();
    ASSERT_OK(cpuid);
    constexpr std::uint64_t kVectors = 0xe7;  // x87, SSE, AVX, AVX-512
    std::uint64_t xcr0 = kvm::find_cpuid(*cpuid, 0xd, 0)->eax & kVectors;
    if ((xcr0 & 0xe0) != 0xe0) xcr0 &= ~std::uint64_t{0xe0};
    auto state = save_state(**here, host_->system);
    ASSERT_OK(state);
    state->vcpus[0].xcrs->xcrs[0].value = xcr0;
    fill_vectors(state->vcpus[0].xsave, *cpuid, xcr0);
    ASSERT_OK(load_state(**here, *state));
    const auto saved = save_state(**here, host_->system);
    ASSERT_OK(saved);
    const auto carried = decode_state(encode_state(*saved));
    ASSERT_OK(carried);
    ASSERT_OK(load_state(**there, *carried));
    const auto arrived = save_state(**there, host_->system);
    ASSERT_OK(arrived);
    EXPECT_EQ(arrived->vcpus[0].xsave, saved->vcpus[0].xsave);
    EXPECT_EQ(
        std::memcmp(arrived->vcpus[0].xsave.data() + 160, state->vcpus[0].xsave.data() + 160, 256),
        0);
    const kvm::CpuidEntry* avx = kvm::find_cpuid(*cpuid, 0xd, 2);
    ASSERT_NE(avx, nullptr);
    EXPECT_EQ(std::memcmp(arrived->vcpus[0].xsave.data() + avx->ebx,
                          state->vcpus[0].xsave.data() + avx->ebx, avx->eax),
              0);
}

constexpr std::uint32_t kMtrrDefaultType = 0x2ff;
constexpr std::uint32_t kMtrrMask0 = 0x201;

TEST_F(MigrationOnKvm, MsrsThatTheKernelDoesNotListAreCarried) {
    const VmConfig config{.vcpus = 1, .memory_bytes = 16 << 20};
    auto here = VirtualMachine::create(host_->system, config);
    auto there = VirtualMachine::create(host_->system, config);
    ASSERT_OK(here);
    ASSERT_OK(there);
    constexpr std::uint64_t kMask = 0xff000800;
    ASSERT_OK((*here)->vcpus()[0].set_msr(kMtrrDefaultType, 0xc06));
    ASSERT_OK((*here)->vcpus()[0].set_msr(kMtrrMask0, kMask));
    const auto saved = save_state(**here, host_->system);
    ASSERT_OK(saved);
    ASSERT_OK(load_state(**there, *saved));
    EXPECT_EQ(*(*there)->vcpus()[0].msr(kMtrrDefaultType), 0xc06u);
    EXPECT_EQ(*(*there)->vcpus()[0].msr(kMtrrMask0), kMask);
}

TEST_F(MigrationOnKvm, AGuestWithAGuestOfItsOwnIsCarriedOrRefusedByName) {
    const VmConfig config{.vcpus = 1, .memory_bytes = 16 << 20};
    auto here = VirtualMachine::create(host_->system, config);
    ASSERT_OK(here);
    if ((*here)->board().state_sizes().nested == 0) GTEST_SKIP() << "this KVM has no nested state";
    constexpr std::uint64_t kSvme = 1u << 12;
    kvm::Vcpu& vcpu = (*here)->vcpus()[0];
    auto sregs = vcpu.sregs();
    ASSERT_OK(sregs);
    EXPECT_TRUE(vcpu.nested_state((*here)->board().state_sizes().nested)->empty());
    sregs->efer |= kSvme;
    if (!vcpu.set_sregs(*sregs)) GTEST_SKIP() << "this host gives guests no SVM";
    // As a hypervisor in the guest has it with its interrupts held off: GIF clear.
    abi::kvm_nested_state gif_clear{};
    gif_clear.format = abi::kKVM_NESTED_FORMAT_SVM;
    gif_clear.size = sizeof gif_clear;
    ASSERT_OK(vcpu.set_nested_state(std::as_bytes(std::span{&gif_clear, 1})));
    const auto saved = save_state(**here, host_->system);
    ASSERT_OK(saved);
    ASSERT_EQ(saved->vcpus[0].nested.size(), sizeof gif_clear);
    auto there = VirtualMachine::create(host_->system, config);
    ASSERT_OK(there);
    ASSERT_OK(load_state(**there, *decode_state(encode_state(*saved))));
    const auto arrived = save_state(**there, host_->system);
    ASSERT_OK(arrived);
    EXPECT_EQ(arrived->vcpus[0].nested, saved->vcpus[0].nested);
    EXPECT_EQ(arrived->vcpus[0].sregs.efer, sregs->efer);
}

TEST_F(MigrationOnKvm, ADestinationThatLacksACpuFeatureRefusesItByName) {
    const VmConfig config{.vcpus = 1, .memory_bytes = 32 << 20};
    auto cpuid = host_cpu_model(host_->system, config);
    ASSERT_OK(cpuid);
    kvm::CpuidEntry* features = kvm::find_cpuid(*cpuid, 1);
    ASSERT_NE(features, nullptr);
    if (features->ecx == ~0u) GTEST_SKIP() << "this host has every feature there is";
    features->ecx = ~0u;
    KvmDestinationVm destination{host_->system, host_->findings, {}};
    const auto created = destination.create(encode_shape({config, *cpuid}));
    ASSERT_FALSE(created);
    EXPECT_EQ(created.error().code, state::ErrorCode::kUnsupported);
    EXPECT_EQ(created.error().where, "CPUID 0x1.0 ECX");
    EXPECT_EQ(destination.machine(), nullptr);
}

TEST_F(MigrationOnKvm, TheNoticeDeviceIsRaisedBeforeTheGuestRuns) {
    constexpr std::uint64_t kPage = 0xd0000;
    auto machine = boot(*host_, 1);
    ASSERT_OK(machine);
    ASSERT_OK((*machine)->stop());
    VirtualMachine& first = **machine;
    ASSERT_OK(first.board().devices().add_notice(
        {first.memory(), [&first](std::uint64_t gpa) { first.mark_dirty(gpa); }}, kPage, 5'000));
    ASSERT_OK(first.resume());
    KvmSourceVm source{host_->system, std::move(*machine), host_->findings};
    ArrivalOptions options;
    options.plan.policy = state::Policy::kAdvanceAndNotify;
    KvmDestinationVm destination{host_->system, host_->findings, options};
    const Ends ends = migrate(source, destination, address());
    if (const auto* kept = std::get_if<Kept>(&*ends.source)) FAIL() << kept->reason.message();
    VirtualMachine& moved = *destination.machine();
    const auto page = moved.memory().read_object<abi::time_travel_page>(kPage);
    ASSERT_OK(page);
    EXPECT_EQ(page->migration_sequence, 1u);
    EXPECT_EQ(page->release_after_ns, 5'000u);
    EXPECT_EQ(page->gap_ns, static_cast<std::uint64_t>(destination.plan()->notice->gap.raw()))
        << "of the plan that counted, however often the instant was missed";
    EXPECT_GT(page->gap_ns, 0u);
    EXPECT_EQ(page->time_travelled_ns, 0u) << "REALTIME advanced";
    EXPECT_EQ(destination.certificate()->notice->sequence, 1u);
    EXPECT_EQ(moved.board().devices().events(), acpi::kEventNotice);
    EXPECT_EQ(moved.board().notice()->status().counts.raised, 1u);
    ASSERT_OK(moved.stop());
}

TEST_F(MigrationOnKvm, AnMsrThatTheDestinationRefusesIsNamed) {
    auto machine = boot(*host_, 2);
    ASSERT_OK(machine);
    ASSERT_OK((*machine)->stop());
    auto state = save_state(**machine, host_->system);
    ASSERT_OK(state);
    constexpr std::uint32_t kNoSuchMsr = 0xdead'beef;
    if ((*machine)->vcpus()[1].set_msr(kNoSuchMsr, 1)) GTEST_SKIP() << "KVM ignores unknown MSRs";
    state->vcpus[1].msrs.push_back({kNoSuchMsr, 0x123});
    auto other =
        VirtualMachine::create(host_->system, (*machine)->config(), (*machine)->cpu_model());
    ASSERT_OK(other);
    const auto loaded = load_state(**other, *state);
    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().code, state::ErrorCode::kKernel);
    EXPECT_EQ(loaded.error().where, "vCPU 1: KVM_SET_MSRS of MSR 0xdeadbeef to 0x123");
}

}  // namespace
}  // namespace continuo::vmm
