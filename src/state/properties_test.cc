// What holds for every record, destination and blob. RC_PARAMS="seed=..." repeats a failure.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "continuo/state/codec.h"
#include "continuo/state/json.h"
#include "record_gen.h"
#include "wire.h"

namespace continuo::state {
namespace {

/// rapidcheck reads its parameters from the environment when the first property runs.
const bool kCasesSet = setenv("RC_PARAMS", "max_success=500", 0) == 0;

RC_GTEST_PROP(RecordProperty, TheWireCarriesEveryRecordAndBytesAreUnique, ()) {
    const Record record = gen::record();
    RC_ASSERT(check(record).has_value());
    const auto blob = encode(record);
    const auto decoded = decode(blob);
    RC_ASSERT(decoded.has_value());
    RC_ASSERT(*decoded == record);
    RC_ASSERT(encode(*decoded) == blob);
}

RC_GTEST_PROP(RecordProperty, JsonCarriesEveryRecord, ()) {
    const Record record = gen::record();
    const std::string text = json_text(record_to_json(record));
    const auto read = record_from_json(text);
    RC_ASSERT(read.has_value());
    RC_ASSERT(*read == record);
    RC_ASSERT(json_text(record_to_json(*read)) == text);
    // The order of keys and white space carry nothing.
    const auto sorted = record_from_json(nlohmann::json::parse(text).dump());
    RC_ASSERT(sorted.has_value());
    RC_ASSERT(*sorted == record);
}

RC_GTEST_PROP(RecordProperty, EqualBytesMeanEqualRecords, ()) {
    const Record a = gen::record();
    const Record b = gen::flag() ? a : gen::record();
    RC_ASSERT((a == b) == (encode(a) == encode(b)));
}

RC_GTEST_PROP(RecordProperty, AForgedByteIsAnErrorOrAnotherRecordThatRoundTrips, ()) {
    auto blob = encode(gen::record());
    const std::size_t body = blob.size() - wire::kHeaderBytes - wire::kHashBytes;
    const int changes = *rc::gen::inRange(1, 4);
    for (int i = 0; i < changes; ++i)
        blob[wire::kHeaderBytes + gen::u64() % body] = static_cast<std::byte>(gen::u64());
    wire::seal(blob);
    const auto decoded = decode(blob);
    if (!decoded) {
        RC_ASSERT(decoded.error().where.find("byte ") != std::string::npos);
        return;
    }
    // A forged type can turn a field into an unknown optional one, and that is not written again.
    const auto again = decode(encode(*decoded));
    RC_ASSERT(again.has_value());
    RC_ASSERT(*again == *decoded);
}

RC_GTEST_PROP(DestinationProperty, JsonCarriesEveryDestination, ()) {
    const Destination destination = gen::destination();
    const std::string text = json_text(destination_to_json(destination));
    const auto read = destination_from_json(text);
    RC_ASSERT(read.has_value());
    RC_ASSERT(read->identity == destination.identity);
    RC_ASSERT(read->anchor == destination.anchor);
    RC_ASSERT(read->exchange == destination.exchange);
    RC_ASSERT(json_text(destination_to_json(*read)) == text);
}

RC_GTEST_PROP(PlanProperty, EveryRecordAndDestinationGiveAPlanOrRefusalsInExactJson, ()) {
    const Record record = gen::record();
    Destination destination = gen::destination();
    if (gen::flag()) {
        destination.architecture = record.architecture;
        destination.vcpu_count = kVcpusMax;
        destination.anchor.tai = record.anchor.tai + Nanos<Tai>::from_raw(1'000'000'000);
        destination.anchor.frequency = record.anchor.frequency;
    }
    PlanOptions options;
    options.clamp_gap = gen::flag();
    options.policy = gen::flag() ? Policy::kAdvance : Policy::kFreezeAndNotify;
    const PlanResult result = plan(record, destination, options);
    const auto json = nlohmann::json::parse(json_text(plan_to_json(result)));
    RC_ASSERT(json["verdict"] == (result ? "accepted" : "refused"));
    if (!result) {
        RC_ASSERT(json["refusals"].size() == result.error().size());
        return;
    }
    const bool has_kvmclock = result->kvmclock.has_value();
    RC_ASSERT(json["clocks"].size() == result->tsc.size() + (has_kvmclock ? 1 : 0));
    for (std::size_t i = 0; i < result->tsc.size(); ++i) {
        const auto& row = json["clocks"][i];
        RC_ASSERT(row["offset"].get<std::uint64_t>() == result->tsc[i].map.offset());
        RC_ASSERT(static_cast<std::uint64_t>(row["offset_signed"].get<std::int64_t>()) ==
                  result->tsc[i].map.offset());
        RC_ASSERT(row["prescribed_at_resume"].get<std::uint64_t>() ==
                  result->tsc[i].at_resume.raw());
        RC_ASSERT(row["bound"]["total"].get<std::uint64_t>() == result->tsc[i].bound.total());
    }
}

}  // namespace
}  // namespace continuo::state
