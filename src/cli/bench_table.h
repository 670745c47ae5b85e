// What `continuo bench counter` prints: the benchmark's figures for people, in the form of the
// table that the kernel's mailing list saw in 2021, with that table's figures beside them; and as
// JSON.
#pragma once

#include <array>
#include <string>

#include "continuo/state/json.h"
#include "continuo/vmm/counter_bench.h"

namespace continuo::cli {

/// Whole ns, as printed there.
struct PublishedNs {
    std::uint64_t average;
    std::uint64_t deviation;
    std::uint64_t p95;
};
/// The tables of the thread "KVM: Add idempotent controls for migrating system counter state"
/// (Oliver Upton, July 2021): 10000 reads of the physical counter by a guest on an Ampere Mt. Jade
/// (two Altra of 80 cores).
struct PublishedReads {
    std::string_view mode;  ///< how KVM ran the guest
    PublishedNs native;
    PublishedNs trapped;
};
inline constexpr std::array<PublishedReads, 2> kPublishedReads{{
    {"nVHE", {54, 124, 258}, {148, 122, 348}},
    {"VHE", {53, 92, 204}, {152, 94, 307}},
}};

/// ps as ns with one decimal, rounded to the nearest: "54.3ns".
std::string show_ps(std::uint64_t ps);

std::string counter_bench_text(const vmm::CounterBench& bench, bool emulated);
state::Json counter_bench_json(const vmm::CounterBench& bench, bool emulated);

}  // namespace continuo::cli
