// One fuzz target for every decoder of foreign bytes below the VMM: the wire format of records (as
// it is, and with its length and hash put right, so that the fuzzer gets behind them), the JSON of
// records and destinations, and the clock pages of src/abi. Whatever decodes must survive its own
// round trip and the planner.
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string_view>
#include <vector>

#include "continuo/abi/bytes.h"
#include "continuo/abi/findings.h"
#include "continuo/state/codec.h"
#include "continuo/state/json.h"
#include "continuo/state/plan.h"
#include "wire.h"

namespace {

using namespace continuo;
using Bytes = std::span<const std::byte>;

void expect_error(const state::Error& error) {
    CONTINUO_CHECK(!error.where.empty());
    CONTINUO_CHECK(!error.what.empty());
    CONTINUO_CHECK(error.message().size() < 2000);
}

void round_trips(const state::Record& record) {
    CONTINUO_CHECK(state::check(record).has_value());
    const auto blob = state::encode(record);
    const auto again = state::decode(blob);
    CONTINUO_CHECK(again.has_value());
    CONTINUO_CHECK(*again == record);
    const auto from_json = state::record_from_json(state::json_text(state::record_to_json(record)));
    CONTINUO_CHECK(from_json.has_value());
    CONTINUO_CHECK(*from_json == record);
}

/// Any record and any destination that were let through give a plan or refusals.
void is_planned(const state::Record& record, const state::Destination& destination) {
    for (const auto policy : {state::Policy::kFreeze, state::Policy::kAdvance,
                              state::Policy::kFreezeAndNotify, state::Policy::kAdvanceAndNotify}) {
        for (const bool clamp : {false, true}) {
            state::PlanOptions options;
            options.policy = policy;
            options.clamp_gap = clamp;
            const auto planned = state::plan(record, destination, options);
            CONTINUO_CHECK(planned || !planned.error().empty());
            CONTINUO_CHECK(!state::json_text(state::plan_to_json(planned)).empty());
        }
    }
}

state::Destination destination_for(const state::Record& record, std::uint64_t hz, int frac_bits) {
    state::Destination destination;
    destination.architecture = record.architecture;
    destination.anchor.counter = state::Count<state::HostCounter>::from_raw(5'000'000'000'000);
    destination.anchor.tai = record.anchor.tai + state::Nanos<state::Tai>::from_raw(1'000'000'000);
    destination.anchor.frequency = *state::Hz::from_hz(hz);
    destination.vcpu_count = state::kVcpusMax;
    if (frac_bits != 0) destination.scaling_frac_bits = frac_bits;
    return destination;
}

void try_record(const state::Result<state::Record>& result) {
    if (!result) return expect_error(result.error());
    round_trips(*result);
    is_planned(*result, destination_for(*result, result->anchor.frequency.hz(), 0));
    is_planned(*result, destination_for(*result, 2'900'000'000, 48));
    is_planned(*result, destination_for(*result, state::kFrequencyMaxHz, 32));
}

void try_wire(Bytes bytes) {
    try_record(state::decode(bytes));
    if (bytes.size() < state::kRecordBytesMin) return;
    std::vector<std::byte> sealed{bytes.begin(), bytes.end()};
    for (std::size_t i = 0; i < state::wire::kMagic.size(); ++i)
        sealed[i] = std::byte{state::wire::kMagic[i]};
    state::wire::seal(sealed);
    try_record(state::decode(sealed));
}

void try_json(std::string_view text) {
    try_record(state::record_from_json(text));
    const auto destination = state::destination_from_json(text);
    if (!destination) return expect_error(destination.error());
    const auto again =
        state::destination_from_json(state::json_text(state::destination_to_json(*destination)));
    CONTINUO_CHECK(again.has_value());
    CONTINUO_CHECK(again->anchor == destination->anchor && again->quirks == destination->quirks);
    state::Record record;
    record.vcpus.resize(2);
    record.vcpus[1].counter = state::Count<state::GuestCounter>::from_raw(~0ULL);
    record.kvmclock.emplace();
    is_planned(record, *destination);
}

template <class Page>
void try_findings(Bytes bytes) {
    if (const auto page = abi::decode<Page>(bytes))
        for (const abi::Finding& finding : abi::inconsistencies(*page))
            CONTINUO_CHECK(!finding.field.empty() && !finding.text.empty());
}

void try_pages(Bytes bytes) {
    try_findings<abi::pvclock_wall_clock>(bytes);
    try_findings<abi::kvm_clock_data>(bytes);
    try_findings<abi::ms_hyperv_tsc_page>(bytes);
    try_findings<abi::kvm_clock_pairing>(bytes);
    try_findings<abi::kvm_steal_time>(bytes);
    try_findings<abi::pvclock_vcpu_time_info>(bytes);
    try_findings<abi::vmclock_abi>(bytes);
    if (const auto page = abi::decode<abi::pvclock_vcpu_time_info>(bytes)) {
        if (const auto line = abi::pvclock_line(*page)) {
            const auto same = abi::pvclock_page(*line, page->version, page->flags);
            CONTINUO_CHECK(same.tsc_timestamp == page->tsc_timestamp);
            CONTINUO_CHECK(line->at(line->tsc_timestamp()) == line->system_time());
            for (const std::uint64_t tsc : {std::uint64_t{0}, page->system_time, ~std::uint64_t{0}})
                line->at(time::Count<time::GuestCounter>::from_raw(tsc));
        }
    }
    if (const auto page = abi::decode<abi::vmclock_abi>(bytes))
        for (const std::uint64_t counter : {std::uint64_t{0}, page->flags, ~std::uint64_t{0}})
            abi::vmclock_time_at(*page, time::Count<time::GuestCounter>::from_raw(counter));
    if (const auto page = abi::decode<abi::ms_hyperv_tsc_page>(bytes))
        abi::hyperv_reference_time(*page, time::Count<time::GuestCounter>::from_raw(~0ULL));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const Bytes bytes = std::as_bytes(std::span{data, size});
    try_wire(bytes);
    try_json({reinterpret_cast<const char*>(data), size});
    try_pages(bytes);
    return 0;
}
