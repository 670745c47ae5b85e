// Snapshots of the witness guest on a real /dev/kvm, whatever the architecture: many lives of one.
#include <sys/mman.h>

#include <set>

#include "continuo/vmm/snapshot.h"
#include "migration_kvm_fixture.h"
#include "protocol.h"
#include "snapshot_file.h"

namespace continuo::vmm {
namespace {

using namespace std::chrono_literals;
using state::ErrorCode;
using state::Policy;

constexpr HostMemory kRoomy{1ull << 40, 1ull << 40};

kvm::Fd new_file() {
    return kvm::Fd{::memfd_create("snapshot", MFD_CLOEXEC)};
}

/// One life of a snapshot.
struct Life {
    Policy policy;
    Generation generation;
    std::unique_ptr<KvmDestinationVm> vm;
};

class SnapshotOnKvm : public MigrationOnKvm {
  protected:
    /// The snapshot of a witness, which goes on.
    kvm::Fd take(KvmSourceVm& source) {
        kvm::Fd file = new_file();
        const auto saved = save_snapshot(source, file.get(), AfterSnapshot::kGoOn);
        EXPECT_TRUE(saved) << saved.error().message();
        return file;
    }
    Result<Life> restore(const kvm::Fd& file, Policy policy) {
        ArrivalOptions options;
        options.plan.policy = policy;
        options.generation = new_generation();
        Life life{policy, *options.generation,
                  std::make_unique<KvmDestinationVm>(host_->system, host_->findings, options)};
        auto restored = restore_snapshot(file.get(), *life.vm, kRoomy, {});
        if (!restored) return tl::unexpected(std::move(restored.error()));
        return life;
    }
    bool counters_are_fixed() const {
        return state::has(host_->findings.quirks, state::Quirk::kTscOffsetIgnored) &&
               state::has(host_->findings.quirks, state::Quirk::kTscWriteIgnored);
    }
    bool offsets_are_exact() const {
        return !state::has(host_->findings.quirks, state::Quirk::kNoTscOffset);
    }
};

/// The file with another SNAPSHOT frame; all else, and every hash, as a writer would have it.
kvm::Fd with_shape(const kvm::Fd& file, const std::function<void(Bytes& shape)>& change) {
    kvm::Fd changed = new_file();
    auto reader = FrameFileReader::open(file.get());
    FrameFileWriter writer{changed.get()};
    std::uint64_t pages = 0;
    for (;;) {
        auto frame = reader->next();
        EXPECT_TRUE(frame);
        if (!frame || frame->type == FrameType::kEnd) break;
        PayloadReader in{frame->payload};
        if (frame->type == FrameType::kPages) pages += in.get<std::uint32_t>();
        if (frame->type != FrameType::kSnapshot) {
            EXPECT_TRUE(writer.put(frame->type, frame->payload));
            continue;
        }
        PayloadWriter out;
        out.put_bytes(in.get_bytes(24));
        const auto block = in.get_block();
        Bytes shape{block.begin(), block.end()};
        change(shape);
        EXPECT_TRUE(writer.put(FrameType::kSnapshot, out.put_block(shape).take()));
    }
    EXPECT_TRUE(writer.put_end(pages));
    return changed;
}

/// x86-64: CPUID 1 as no CPU has it. Entries of 40 bytes stand behind 32 others; ECX is the sixth
/// word of one.
void promise_all_features(Bytes& shape) {
    for (std::size_t at = 32; at + 40 <= shape.size(); at += 40) {
        std::uint32_t function = 0;
        std::memcpy(&function, shape.data() + at, sizeof function);
        if (function == 1) std::memset(shape.data() + at + 20, 0xff, 4);
    }
}

/// By lines: what each clock of this life is, against the record and against the source, which ran
/// on beside it. Both are stopped.
void expect_clocks(const Life& life, KvmSourceVm& source, const HostFindings& findings,
                   bool exact) {
    for (const state::ClockCertificate& clock : life.vm->certificate()->clocks)
        EXPECT_TRUE(clock.holds()) << state::name(clock.clock) << " seam " << clock.seam;
    if (!exact) return;
    const auto here = clock_machine_of(*life.vm->machine(), findings);
    const auto there = clock_machine_of(*source.machine(), findings);
    const state::Plan& plan = *life.vm->plan();
    for (std::uint32_t vcpu = 0; vcpu < 2; ++vcpu) {
        const auto map = here->tsc_map(vcpu);
        const auto original = there->tsc_map(vcpu);
        ASSERT_OK(map);
        ASSERT_OK(original);
        if (state::freezes(life.policy)) {
            EXPECT_EQ(map->at(plan.resume_at), life.vm->record()->vcpus[vcpu].counter)
                << "it goes on where it was saved";
        } else {
            EXPECT_EQ(map->at(plan.resume_at), original->at(plan.resume_at))
                << "it is where it would be";
        }
    }
}

void expect_guest_saw(const Life& life) {
    VirtualMachine& machine = *life.vm->machine();
    ASSERT_OK(await_epoch(machine, *life.vm->epoch(), 30s));
    const auto seen = observe_witness(machine, *life.vm->plan(), *life.vm->epoch());
    ASSERT_OK(seen);
    ASSERT_EQ(seen->size(), 2u);
    for (const state::GuestObservation& vcpu : *seen) {
        EXPECT_GE(vcpu.after_resume_ns, 0);
        EXPECT_LE(std::abs(vcpu.kvmclock_seam_ns.value_or(0)), 3);
        EXPECT_EQ(vcpu.backward_steps, 0u);
    }
    const auto reports = witness_reports(machine.memory(), 2);
    ASSERT_OK(reports);
    EXPECT_EQ(summarise(*reports).generation, life.generation.counter());
}

TEST_F(SnapshotOnKvm, ManyLivesOfOneRunSideBySide) {
    auto machine = boot(*host_, 2);
    ASSERT_OK(machine);
    KvmSourceVm source{host_->system, std::move(*machine), host_->findings};
    const kvm::Fd file = take(source);
    std::vector<Life> lives;
    for (const Policy policy : {Policy::kAdvance, Policy::kFreeze, Policy::kAdvanceAndNotify,
                                Policy::kFreezeAndNotify, Policy::kAdvance}) {
        auto life = restore(file, policy);
        if (state::freezes(policy) && counters_are_fixed()) {
            ASSERT_FALSE(life);
            EXPECT_EQ(life.error().code, ErrorCode::kRefused);
            continue;
        }
        ASSERT_OK(life);
        EXPECT_EQ(life->vm->certificate()->notice.has_value(), state::notifies(policy));
        lives.push_back(std::move(*life));
    }
    std::set<std::uint64_t> generations;
    std::int64_t gap = 0;
    for (const Life& life : lives) {
        expect_guest_saw(life);
        EXPECT_TRUE(generations.insert(life.generation.counter()).second);
        EXPECT_GT(life.vm->plan()->gap.raw(), gap) << "each has its own, and a later one more";
        gap = life.vm->plan()->gap.raw();
    }
    ASSERT_OK(run_loops(*source.machine(), 50));
    std::this_thread::sleep_for(30ms);
    // A vCPU that runs has its controls to itself.
    ASSERT_OK(source.machine()->stop());
    for (const Life& life : lives) {
        ASSERT_OK(life.vm->machine()->stop());
        expect_clocks(life, source, host_->findings, offsets_are_exact());
        expect_whole(*life.vm->machine());
    }
    expect_whole(*source.machine());
}

TEST_F(SnapshotOnKvm, WhatThisHostCannotBeIsNamed) {
    auto machine = boot(*host_, 2);
    ASSERT_OK(machine);
    KvmSourceVm source{host_->system, std::move(*machine), host_->findings};
    const kvm::Fd file = take(source);
    ASSERT_OK(restore(with_shape(file, [](Bytes&) {}), Policy::kAdvance));
    const auto other =
        restore(with_shape(file, [](Bytes& shape) { shape[0] = std::byte{kX86 ? 2 : 1}; }),
                Policy::kAdvance);
    ASSERT_FALSE(other);
    EXPECT_EQ(other.error().code, ErrorCode::kUnsupported);
    EXPECT_NE(other.error().what.find(kX86 ? "arm64" : "x86-64"), std::string::npos);
    if (kX86) {
        const auto better = restore(with_shape(file, promise_all_features), Policy::kAdvance);
        ASSERT_FALSE(better);
        EXPECT_EQ(better.error().code, ErrorCode::kUnsupported);
        EXPECT_EQ(better.error().where, "CPUID 0x1.0 ECX");
    }
    const auto cut =
        restore(with_shape(file, [](Bytes& shape) { shape.pop_back(); }), Policy::kAdvance);
    ASSERT_FALSE(cut);
    EXPECT_EQ(cut.error().code, ErrorCode::kMalformed);
    const auto more = restore(with_shape(file,
                                         [](Bytes& shape) {
                                             shape[8] = std::byte{0};
                                             shape[11] = std::byte{4};
                                         }),
                              Policy::kAdvance);
    ASSERT_FALSE(more) << "64 MiB in its shape, 32 MiB in the file";
    EXPECT_EQ(more.error().code, ErrorCode::kMalformed);
    ASSERT_OK(run_loops(*source.machine(), 50));
}

TEST_F(SnapshotOnKvm, AGuestThatHasDiedIsNotSaved) {
    auto machine = boot(*host_, 1);
    ASSERT_OK(machine);
    ASSERT_OK((*machine)->stop());
    ASSERT_OK(lead_astray((*machine)->vcpus()[0]));
    ASSERT_OK((*machine)->resume());
    const auto until = after(10s);
    while ((*machine)->health() && std::chrono::steady_clock::now() < until)
        std::this_thread::sleep_for(1ms);
    KvmSourceVm source{host_->system, std::move(*machine), host_->findings};
    const kvm::Fd file = new_file();
    const auto saved = save_snapshot(source, file.get(), AfterSnapshot::kGoOn);
    ASSERT_FALSE(saved);
    EXPECT_EQ(saved.error().code, ErrorCode::kGuest);
}

}  // namespace
}  // namespace continuo::vmm
