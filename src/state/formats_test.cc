// docs/formats/ and tests/golden/ against the code: every example there is read, every example of
// output is made again, and every key that stands in an example is explained. After a change that
// is meant, CONTINUO_UPDATE_EXAMPLES=1 writes the examples of output anew.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <sstream>

#include "continuo/state/codec.h"
#include "continuo/state/json.h"
#include "sample_records.h"

namespace continuo::state {
namespace {

namespace fs = std::filesystem;

const fs::path kRoot{CONTINUO_SOURCE_DIR};
const fs::path kFormats = kRoot / "docs" / "formats";
const fs::path kGolden = kRoot / "tests" / "golden";

std::string content(const fs::path& path) {
    std::ifstream file{path, std::ios::binary};
    EXPECT_TRUE(file) << path;
    return {std::istreambuf_iterator<char>{file}, {}};
}

std::vector<std::byte> bytes_of(const std::string& text) {
    const auto raw = std::as_bytes(std::span{text});
    return {raw.begin(), raw.end()};
}

/// The text of the first fenced block of this language in a page.
std::string fenced_block(const std::string& page, const std::string& language) {
    const std::size_t fence = page.find("```" + language + "\n");
    EXPECT_NE(fence, std::string::npos) << "no block of " << language;
    const std::size_t from = page.find('\n', fence) + 1;
    return page.substr(from, page.find("```", from) - from);
}

/// Bytes of a listing: an offset, pairs of hexadecimal digits, "|" and what they mean, in each
/// line.
std::vector<std::byte> bytes_of_listing(const std::string& listing) {
    std::vector<std::byte> bytes;
    std::istringstream lines{listing};
    for (std::string line; std::getline(lines, line);) {
        std::istringstream words{line.substr(0, line.find('|'))};
        std::size_t offset = 0;
        words >> std::hex >> offset;
        EXPECT_EQ(offset, bytes.size()) << line;
        for (unsigned byte = 0; words >> std::hex >> byte;)
            bytes.push_back(static_cast<std::byte>(byte));
    }
    return bytes;
}

TEST(Formats, TheHexExampleIsTheExampleRecord) {
    const auto blob = bytes_of_listing(fenced_block(content(kFormats / "record.md"), "hex"));
    const auto record = decode(blob);
    ASSERT_TRUE(record) << record.error().message();
    EXPECT_TRUE(*record == sample::two_vcpus());
    EXPECT_EQ(encode(*record), blob);
}

TEST(Formats, TheJsonExampleOfARecordIsTheSameRecord) {
    const std::string text = content(kFormats / "record.example.json");
    const auto record = record_from_json(text);
    ASSERT_TRUE(record) << record.error().message();
    EXPECT_TRUE(*record == sample::two_vcpus());
    EXPECT_EQ(json_text(record_to_json(*record)), text);
}

Destination example_destination() {
    const auto destination = destination_from_json(content(kFormats / "destination.example.json"));
    EXPECT_TRUE(destination) << destination.error().message();
    return destination.value_or(Destination{});
}

TEST(Formats, TheJsonExampleOfADestinationIsRead) {
    const Destination destination = example_destination();
    EXPECT_EQ(destination.anchor.counter.raw(), 5'000'000'000'000U);
    EXPECT_EQ(destination.anchor.frequency.hz(), 3'000'000'000U);
    EXPECT_EQ(destination.scaling_frac_bits, 48);
    EXPECT_EQ(destination.vcpu_count, 4U);
    EXPECT_FALSE(destination.same_boot);
    EXPECT_EQ(destination.quirks, 0U);
}

void expect_example(const std::string& file, const Json& made) {
    const fs::path path = kFormats / file;
    if (std::getenv("CONTINUO_UPDATE_EXAMPLES") != nullptr)
        std::ofstream{path, std::ios::binary} << json_text(made);
    EXPECT_EQ(content(path), json_text(made)) << file << " is not what the program prints";
}

PlanResult example_plan(std::optional<int> frac_bits) {
    Destination destination = example_destination();
    destination.scaling_frac_bits = frac_bits;
    PlanOptions options;
    options.policy = Policy::kAdvanceAndNotify;
    options.resume_at = destination.anchor.counter + Ticks<HostCounter>::from_raw(60'000'000);
    return plan(sample::two_vcpus(), destination, options);
}

TEST(Formats, TheExampleOfAPlanIsWhatThePlannerSays) {
    const PlanResult accepted = example_plan(48);
    ASSERT_TRUE(accepted) << json_text(plan_to_json(accepted));
    expect_example("plan.example.json", plan_to_json(accepted));
}

TEST(Formats, TheExampleOfARefusalIsWhatThePlannerSays) {
    const PlanResult refused = example_plan(std::nullopt);
    ASSERT_FALSE(refused);
    expect_example("plan.refused.example.json", plan_to_json(refused));
}

/// A certificate for the example's plan: TSCs to the tick, kvmclock 1 ns late.
Certificate example_certificate(const Plan& planned) {
    Certificate certificate;
    certificate.policy = planned.policy;
    certificate.elapsed_by = planned.elapsed_by;
    certificate.gap = planned.gap;
    certificate.gap_bound_ns = planned.gap_bound_ns;
    certificate.measures = planned.measures;
    certificate.rate = planned.rate;
    certificate.tsc_rate_error = planned.tsc_rate_error;
    certificate.resume_at = planned.resume_at.raw();
    for (const PrescribedTsc& tsc : planned.tsc) {
        const std::uint64_t value = tsc.at_resume.raw();
        certificate.clocks.push_back(
            {ClockKind::kTsc, tsc.vcpu, "ticks", value, value, 0, 0, tsc.bound});
    }
    const std::uint64_t ns = planned.kvmclock->at_resume.raw();
    certificate.clocks.push_back(
        {ClockKind::kKvmclock, {}, "ns", ns, ns + 1, 1, 2, planned.kvmclock->bound});
    certificate.trim = {9, 1, true};
    certificate.observed.push_back({0, planned.tsc[0].at_resume.raw() + 11'200, 4'480, 1, 0});
    certificate.notice = planned.notice;
    return certificate;
}

TEST(Formats, TheExampleOfACertificateIsWhatIsPrinted) {
    const PlanResult accepted = example_plan(48);
    ASSERT_TRUE(accepted);
    const Certificate certificate = example_certificate(*accepted);
    EXPECT_TRUE(certificate.holds());
    expect_example("certificate.example.json", certificate_to_json(certificate));
}

void collect_keys(const nlohmann::json& json, std::set<std::string>& keys) {
    if (json.is_object())
        for (const auto& [key, value] : json.items())
            keys.insert(key);
    if (json.is_structured())
        for (const auto& value : json)
            collect_keys(value, keys);
}

TEST(Formats, EveryKeyOfAnExampleIsExplainedOnItsPage) {
    const std::pair<const char*, const char*> pages[] = {
        {"record.md", "record.example.json"},
        {"destination.md", "destination.example.json"},
        {"plan.md", "plan.example.json"},
        {"plan.md", "plan.refused.example.json"},
        {"certificate.md", "certificate.example.json"}};
    for (const auto& [page, example] : pages) {
        const std::string text = content(kFormats / page);
        std::set<std::string> keys;
        collect_keys(nlohmann::json::parse(content(kFormats / example)), keys);
        for (const std::string& key : keys)
            EXPECT_NE(text.find("`" + key + "`"), std::string::npos) << page << ": " << key;
    }
}

// ---- golden blobs: what earlier releases wrote ----

/// Blobs that must never go away: each is promised to every later release.
const char* const kPromised[] = {"record-v1-two-vcpus",      "record-v1-arm64",
                                 "record-v1-by-value",       "record-v1-64-vcpus",
                                 "record-v1-optional-field", "record-v1-mandatory-field",
                                 "record-v1-suspended"};

class Golden : public testing::TestWithParam<const char*> {};

TEST_P(Golden, IsReadAsItWasMeant) {
    const auto blob = bytes_of(content(kGolden / (std::string{GetParam()} + ".bin")));
    const std::string text = content(kGolden / (std::string{GetParam()} + ".json"));
    const auto decoded = decode(blob);
    if (nlohmann::json::parse(text).contains("error")) {
        ASSERT_FALSE(decoded);
        EXPECT_EQ(json_text(error_to_json(decoded.error())), text);
        return;
    }
    const auto expected = record_from_json(text);
    ASSERT_TRUE(expected) << expected.error().message();
    ASSERT_TRUE(decoded) << decoded.error().message();
    EXPECT_TRUE(*decoded == *expected);
    // Version 1 is what this release writes; a field that it skipped is not written again.
    const bool whole = std::string{GetParam()} != "record-v1-optional-field";
    EXPECT_EQ(encode(*decoded) == blob, whole);
}

INSTANTIATE_TEST_SUITE_P(Formats, Golden, testing::ValuesIn(kPromised), [](const auto& blob) {
    std::string name{blob.param};
    std::replace(name.begin(), name.end(), '-', '_');
    return name;
});

TEST(Formats, EveryGoldenBlobIsPromised) {
    for (const auto& entry : fs::directory_iterator{kGolden}) {
        if (entry.path().extension() != ".bin") continue;
        const std::string stem = entry.path().stem();
        EXPECT_NE(std::find(std::begin(kPromised), std::end(kPromised), stem), std::end(kPromised))
            << stem;
    }
}

}  // namespace
}  // namespace continuo::state
