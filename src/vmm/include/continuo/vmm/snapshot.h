// A VM as a file: written while it stands still, and any number of VMs made of it later, each with
// the gap that lies behind it and a generation of its own. The file is what a migration sends, in
// frames: docs/formats/snapshot.md. Works on the same two interfaces as a migration, so all of it
// runs without KVM. Names of files, and what becomes of a file that could not be written to its
// end, are the caller's.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

#include "continuo/vmm/generation.h"
#include "continuo/vmm/migration.h"

namespace continuo::vmm {

/// Names one snapshot; random.
using SnapshotId = MigrationId;

struct SavedSnapshot {
    SnapshotId id{};
    std::uint64_t bytes = 0;                 ///< of the file
    std::uint64_t pages = 0;                 ///< stored
    std::uint64_t zero_pages = 0;            ///< looked at and left out: they are zero
    std::chrono::nanoseconds stood_still{};  ///< from the stop to the resume, or to the end
};

enum class AfterSnapshot : std::uint8_t { kGoOn, kStandStill };

/// Stops the VM, writes all of it into `fd`, an empty regular file, and lets it go on unless told
/// otherwise. After any failure it goes on, and the file is of no use. kInvalidArgument, kIo, or
/// what the VM says.
Result<SavedSnapshot> save_snapshot(SourceVm& vm, int fd, AfterSnapshot after);

/// What this host has for VMs, in bytes.
struct HostMemory {
    std::uint64_t total = 0;
    std::uint64_t available = 0;  ///< without pushing others out
};
/// /proc/meminfo. kKernel where it does not say.
Result<HostMemory> this_hosts_memory();

struct RestoredSnapshot {
    SnapshotId id{};
    std::uint64_t bytes = 0;
    std::uint64_t pages = 0;
    std::chrono::nanoseconds reading{};  ///< memory, and all hashes
    std::chrono::nanoseconds total{};    ///< until the VM entered, or will at an instant ahead
};

/// Told of the bytes read so far, and of how many there are.
using ReadProgress = std::function<void(std::uint64_t done, std::uint64_t of)>;

/// Makes `vm` of the snapshot in `fd` and lets it run. The file is left as it is, and others may
/// read it meanwhile. Where it fails the VM is discarded: kTruncated, kMalformed, kIntegrity or
/// kVersion with the byte of the file; kTooLarge where this host has not the memory; else what the
/// VM says, such as kUnsupported or kRefused.
Result<RestoredSnapshot> restore_snapshot(int fd, DestinationVm& vm, const HostMemory& host,
                                          const ReadProgress& progress);

}  // namespace continuo::vmm
