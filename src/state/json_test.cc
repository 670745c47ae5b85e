#include "continuo/state/json.h"

#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <ostream>

#include "continuo/state/codec.h"
#include "sample_records.h"

namespace continuo::state {
namespace {

/// What the tests compare destinations by.
void expect_equal(const Destination& a, const Destination& b) {
    EXPECT_EQ(a.architecture, b.architecture);
    EXPECT_EQ(a.identity, b.identity);
    EXPECT_EQ(a.anchor, b.anchor);
    EXPECT_EQ(a.same_boot, b.same_boot);
    EXPECT_EQ(a.scaling_frac_bits, b.scaling_frac_bits);
    EXPECT_EQ(a.vcpu_count, b.vcpu_count);
    EXPECT_EQ(a.masterclock, b.masterclock);
    EXPECT_EQ(a.quirks, b.quirks);
    EXPECT_EQ(a.by_value_bound_ns, b.by_value_bound_ns);
}

TEST(RecordJson, RoundTrips) {
    for (const Record& record : {sample::two_vcpus(), sample::arm64(), sample::many_vcpus(1),
                                 sample::many_vcpus(kVcpusMax)}) {
        const std::string text = json_text(record_to_json(record));
        EXPECT_LT(text.size(), kJsonBytesMax / 2);
        const auto read = record_from_json(text);
        ASSERT_TRUE(read) << read.error().message();
        EXPECT_TRUE(*read == record);
    }
}

TEST(RecordJson, NumbersOf64BitsAreExact) {
    Record record = sample::arm64();
    const std::string text = json_text(record_to_json(record));
    EXPECT_NE(text.find("\"counter\": 18446744073709551615,"), std::string::npos) << text;
    EXPECT_NE(text.find("\"tai_ns\": 9223372036854775808,"), std::string::npos) << text;
    record = sample::two_vcpus();
    record.vcpus[0].tsc_adjust = std::numeric_limits<std::int64_t>::min();
    const auto read = record_from_json(json_text(record_to_json(record)));
    ASSERT_TRUE(read);
    EXPECT_EQ(read->vcpus[0].tsc_adjust, std::numeric_limits<std::int64_t>::min());
}

TEST(RecordJson, TheShortestRecordHasTheDocumentedDefaults) {
    const auto read = record_from_json(R"({
        "anchor": {"counter": 5, "tai_ns": 6, "tai_bound_ns": 7}, "host_hz": 1000000000,
        "vcpus": [{"counter": 9, "frequency_hz": 2000000000}]})");
    ASSERT_TRUE(read) << read.error().message();
    Record expected;
    expected.anchor.counter = Count<SourceCounter>::from_raw(5);
    expected.anchor.tai = Instant<Tai>::from_raw(6);
    expected.anchor.tai_bound_ns = 7;
    expected.anchor.tai_offset_sec = 37;
    expected.vcpus.resize(1);
    expected.vcpus[0].counter = Count<GuestCounter>::from_raw(9);
    expected.vcpus[0].frequency = *Hz::from_hz(2'000'000'000);
    EXPECT_TRUE(*read == expected);
}

Destination full_destination() {
    Destination destination;
    destination.identity = sample::two_vcpus().source;
    destination.anchor.counter = Count<HostCounter>::from_raw(~0ULL);
    destination.anchor.tai = Instant<Tai>::from_raw(1'760'000'049'000'000'000);
    destination.anchor.tai_bound_ns = 40'000;
    destination.anchor.tai_offset_sec = 0;
    destination.anchor.synchronised = false;
    destination.anchor.frequency = *Hz::from_hz(3'000'000'000);
    destination.same_boot = true;
    destination.scaling_frac_bits = 48;
    destination.vcpu_count = 3;
    destination.masterclock = false;
    for (const Quirk quirk : kAllQuirks)
        destination.quirks |= static_cast<Quirks>(quirk);
    destination.by_value_bound_ns = 123;
    return destination;
}

TEST(DestinationJson, RoundTrips) {
    Destination destination = full_destination();
    for (const std::optional<int> bits :
         {std::optional{48}, std::optional{32}, std::optional<int>{}}) {
        destination.scaling_frac_bits = bits;
        destination.quirks >>= 1;
        const auto read = destination_from_json(json_text(destination_to_json(destination)));
        ASSERT_TRUE(read) << read.error().message();
        expect_equal(*read, destination);
    }
}

TEST(DestinationJson, TheShortestDestinationHasTheDocumentedDefaults) {
    const auto read = destination_from_json(
        R"({"anchor": {"counter": 1, "tai_ns": 2, "tai_bound_ns": 3}, "host_hz": 1000000000})");
    ASSERT_TRUE(read) << read.error().message();
    Destination expected;
    expected.anchor.counter = Count<HostCounter>::from_raw(1);
    expected.anchor.tai = Instant<Tai>::from_raw(2);
    expected.anchor.tai_bound_ns = 3;
    expected.anchor.tai_offset_sec = 37;
    expected.vcpu_count = kVcpusMax;
    expect_equal(*read, expected);
}

// ---- what is refused, and in which words ----

struct Bad {
    const char* name;
    std::function<void(nlohmann::json&)> apply;
    const char* message;  ///< how Error::message() begins
};

void PrintTo(const Bad& bad, std::ostream* out) {
    *out << bad.name;
}

class BadRecord : public testing::TestWithParam<Bad> {};
class BadDestination : public testing::TestWithParam<Bad> {};

nlohmann::json tree_of(const Json& json) {
    return nlohmann::json::parse(json.dump());
}

template <class R>
void expect_error(const R& result, const std::string& begin, ErrorCode code) {
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().message().substr(0, begin.size()), begin);
    EXPECT_EQ(name(result.error().code), name(code));
}

TEST_P(BadRecord, IsATypedErrorThatNamesThePlace) {
    nlohmann::json tree = tree_of(record_to_json(sample::two_vcpus()));
    GetParam().apply(tree);
    const auto result = record_from_json(tree.dump());
    ASSERT_FALSE(result);
    const std::string begin = GetParam().message;
    EXPECT_EQ(result.error().message().substr(0, begin.size()), begin);
}

const Bad kBadRecords[] = {
    {"Negative", [](auto& r) { r["vcpus"][1]["counter"] = -5; },
     "/vcpus/1/counter: expected an unsigned integer below 2^64, found -5"},
    {"String", [](auto& r) { r["vcpus"][1]["counter"] = "5"; },
     "/vcpus/1/counter: expected an unsigned integer below 2^64, found \"5\""},
    {"Null", [](auto& r) { r["anchor"]["counter"] = nullptr; },
     "/anchor/counter: expected an unsigned integer below 2^64, found null"},
    {"Missing", [](auto& r) { r["anchor"].erase("tai_ns"); }, "/anchor/tai_ns: missing"},
    {"MissingObject", [](auto& r) { r.erase("anchor"); }, "/anchor: missing"},
    {"NotAnObject", [](auto& r) { r["anchor"] = 7; }, "/anchor: expected an object, found 7"},
    {"NotTheWholeAnObject", [](auto& r) { r = nlohmann::json::array(); },
     "the whole document: expected an object, found an array"},
    {"UnknownKey", [](auto& r) { r["anchor"]["tai"] = 1; },
     "/anchor/tai: unknown key. The keys here are counter, tai_ns, tai_bound_ns, tai_offset_sec, "
     "synchronised"},
    {"UnknownKeyWithSlash", [](auto& r) { r["a/b~c"] = 1; }, "/a~1b~0c: unknown key"},
    {"UnknownKeyForTerminals", [](auto& r) { r["\x1b[2J"] = 1; }, "/?[2J: unknown key"},
    {"UnknownArch", [](auto& r) { r["arch"] = "riscv64"; },
     "/arch: expected \"x86_64\" or \"arm64\", found \"riscv64\""},
    {"BoolAsNumber", [](auto& r) { r["anchor"]["synchronised"] = 1; },
     "/anchor/synchronised: expected true or false, found 1"},
    {"OffsetSigned", [](auto& r) { r["vcpus"][0]["tsc_offset"] = -1; },
     "/vcpus/0/tsc_offset: expected an unsigned integer below 2^64, found -1"},
    {"AdjustOver63Bits", [](auto& r) { r["vcpus"][0]["tsc_adjust"] = 1ULL << 63; },
     "/vcpus/0/tsc_adjust: expected an integer from -9223372036854775808 to 9223372036854775807, "
     "found 9223372036854775808"},
    {"OffsetSecOver31Bits", [](auto& r) { r["anchor"]["tai_offset_sec"] = 1LL << 31; },
     "/anchor/tai_offset_sec: expected an integer from -2147483648 to 2147483647"},
    {"FrequencyZero", [](auto& r) { r["host_hz"] = 0; },
     "/host_hz: expected an integer from 1000 to 4294967295999, found 0"},
    {"VcpuFrequencyHuge", [](auto& r) { r["vcpus"][0]["frequency_hz"] = ~0ULL; },
     "/vcpus/0/frequency_hz: expected an integer from 1000 to 4294967295999"},
    {"MulZero", [](auto& r) { r["kvmclock"]["mul"] = 0; },
     "/kvmclock/mul: expected an integer from 1 to 4294967295, found 0"},
    {"Shift", [](auto& r) { r["kvmclock"]["shift"] = 32; },
     "/kvmclock/shift: expected an integer from -63 to 31, found 32"},
    {"Origin", [](auto& r) { r["kvmclock"]["origin"] = "moon"; },
     "/kvmclock/origin: expected \"page\" or \"kernel\", found \"moon\""},
    {"PageWithoutAPage", [](auto& r) { r["vcpus"][0]["system_time_msr"] = 0; },
     "/kvmclock/origin: a line from vCPU 0's page"},
    {"KvmclockOnArm64",
     [](auto& r) {
         r = tree_of(record_to_json(sample::arm64()));
         r["kvmclock"] = tree_of(record_to_json(sample::two_vcpus()))["kvmclock"];
     },
     "/kvmclock: kvmclock on arm64"},
    {"NoVcpus", [](auto& r) { r["vcpus"] = nlohmann::json::array(); }, "/vcpus: no vCPU"},
    {"TooManyVcpus",
     [](auto& r) { r["vcpus"] = nlohmann::json(std::vector<nlohmann::json>(4097, r["vcpus"][0])); },
     "/vcpus: 4097 vCPUs, over the limit of 4096"},
    {"VcpuIsANumber", [](auto& r) { r["vcpus"][1] = 3; }, "/vcpus/1: expected an object, found 3"},
    {"BootIdShort", [](auto& r) { r["boot_id"] = "0f8e3c41"; },
     "/boot_id: expected a UUID as in /proc/sys/kernel/random/boot_id, found \"0f8e3c41\""},
    {"BootIdZero", [](auto& r) { r["boot_id"] = "00000000-0000-0000-0000-000000000000"; },
     "/boot_id: all zero"},
    {"KernelLong", [](auto& r) { r["kernel"] = std::string(256, 'k'); },
     "/kernel: a kernel string of 256 bytes, over the limit of 255"},
    {"KernelWithNewline", [](auto& r) { r["kernel"] = "a\nb"; },
     "/kernel: a kernel string that is not printable UTF-8"},
    {"AnotherSchema", [](auto& r) { r["schema"] = "continuo/destination/1"; },
     "/schema: expected \"continuo/record/1\", found \"continuo/destination/1\""},
    {"NewerSchema", [](auto& r) { r["schema"] = "continuo/record/2"; },
     "/schema: expected \"continuo/record/1\""},
    {"LongValueIsClipped", [](auto& r) { r["arch"] = std::string(4000, 'x'); },
     "/arch: expected \"x86_64\" or \"arm64\", found "
     "\"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..."},
};
INSTANTIATE_TEST_SUITE_P(RecordJson, BadRecord, testing::ValuesIn(kBadRecords),
                         [](const auto& bad) { return std::string{bad.param.name}; });

TEST_P(BadDestination, IsATypedErrorThatNamesThePlace) {
    nlohmann::json tree = tree_of(destination_to_json(full_destination()));
    GetParam().apply(tree);
    const auto result = destination_from_json(tree.dump());
    ASSERT_FALSE(result);
    const std::string begin = GetParam().message;
    EXPECT_EQ(result.error().message().substr(0, begin.size()), begin);
}

const Bad kBadDestinations[] = {
    {"FracBits", [](auto& d) { d["scaling_frac_bits"] = 40; },
     "/scaling_frac_bits: expected 48 (Intel), 32 (AMD) or null, found 40"},
    {"FracBitsOnArm64", [](auto& d) { d["arch"] = "arm64"; },
     "/scaling_frac_bits: arm64 does not scale"},
    {"Quirk", [](auto& d) { d["quirks"].push_back("haunted"); },
     "/quirks: no quirk: \"haunted\". The quirks are "},
    {"QuirkNumber", [](auto& d) { d["quirks"].push_back(3); }, "/quirks: no quirk: 3"},
    {"QuirksNoArray", [](auto& d) { d["quirks"] = "none"; },
     "/quirks: expected an array, found \"none\""},
    {"Vcpus", [](auto& d) { d["vcpus"] = 4097; },
     "/vcpus: expected an integer from 0 to 4096, found 4097"},
    {"SameBoot", [](auto& d) { d["same_boot"] = "yes"; },
     "/same_boot: expected true or false, found \"yes\""},
    {"NoHostHz", [](auto& d) { d.erase("host_hz"); }, "/host_hz: missing"},
    {"Kernel", [](auto& d) { d["kernel"] = "\x1b[31m"; }, "/kernel: not printable UTF-8"},
    {"UnknownKey", [](auto& d) { d["hostHz"] = 1; }, "/hostHz: unknown key"},
    {"ARecord", [](auto& d) { d = tree_of(record_to_json(sample::two_vcpus())); },
     "/schema: expected \"continuo/destination/1\", found \"continuo/record/1\""},
};
INSTANTIATE_TEST_SUITE_P(DestinationJson, BadDestination, testing::ValuesIn(kBadDestinations),
                         [](const auto& bad) { return std::string{bad.param.name}; });

TEST(StrictJson, SyntaxErrorsHaveLineAndColumn) {
    using E = ErrorCode;
    expect_error(record_from_json("{\n  \"arch\": x86_64\n}"),
                 "line 2, column 11: no JSON after \"{\\n  \\\"arch\\\": x\"", E::kMalformed);
    expect_error(record_from_json(""), "line 1, column 1: no JSON: the text ends too early",
                 E::kMalformed);
    expect_error(record_from_json("{\"arch\": \"x86_64\""),
                 "line 1, column 17: no JSON: the text ends too early", E::kMalformed);
    expect_error(record_from_json("{} {}"), "line 1, column 4: no JSON after \"{} {\"",
                 E::kMalformed);
    expect_error(record_from_json("{\"kernel\": \"\xc3\"}"), "line 1, column 14: no JSON",
                 E::kMalformed);
    expect_error(record_from_json("{\"a\": NaN}"), "line 1, column 7: no JSON", E::kMalformed);
    expect_error(record_from_json("// c\n{}"), "line 1, column 1: no JSON", E::kMalformed);
}

TEST(StrictJson, NumbersAreWhole) {
    using E = ErrorCode;
    const std::string advice = ". Numbers have no fraction and no exponent here";
    const auto with = [](const std::string& number) {
        return destination_from_json("{\"quirks\": [1, [2, {\"host_hz\": " + number + "}]]}");
    };
    const std::string begin = "/quirks/1/1/host_hz: expected an integer of at most 64 bits, found ";
    for (const char* number :
         {"1.0", "1e3", "-1.5", "18446744073709551616", "-9223372036854775809"})
        expect_error(with(number), begin + number + advice, E::kMalformed);
    expect_error(with("1E400"), "line 1, column 36: no JSON", E::kMalformed);
    expect_error(with("01"), "line 1, column 33: no JSON", E::kMalformed);
}

TEST(StrictJson, KeysStandOnce) {
    expect_error(record_from_json("{\"anchor\": {\"counter\": 1, \"counter\": 2}}"),
                 "/anchor/counter: the key stands here twice", ErrorCode::kMalformed);
}

TEST(StrictJson, LimitsOfSizeAndDepth) {
    expect_error(record_from_json(std::string(kJsonBytesMax + 1, ' ')),
                 "the whole document: 4194305 bytes, over the limit", ErrorCode::kTooLarge);
    expect_error(record_from_json(std::string(100'000, '[')),
                 "/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0: nested deeper than 16", ErrorCode::kTooLarge);
}

TEST(StrictJson, MinusZeroIsZero) {
    const auto read = destination_from_json(
        R"({"anchor": {"counter": -0, "tai_ns": 2, "tai_bound_ns": 3}, "host_hz": 1000000000})");
    ASSERT_TRUE(read);
    EXPECT_EQ(read->anchor.counter.raw(), 0U);
}

TEST(StrictJson, AnEveryPrefixOfARecordIsAnError) {
    const std::string text = record_to_json(sample::two_vcpus()).dump();
    for (std::size_t size = 0; size < text.size(); ++size)
        EXPECT_FALSE(record_from_json(std::string_view{text}.substr(0, size))) << size;
}

TEST(ErrorJson, HasAllParts) {
    const Error error{ErrorCode::kKernel, "vCPU 2", "KVM_SET_CLOCK failed", "Try again", 22};
    EXPECT_EQ(error_to_json(error).dump(),
              R"({"error":{"code":"kernel","where":"vCPU 2","what":"KVM_SET_CLOCK failed",)"
              R"("advice":"Try again","errno":22}})");
    const Error bytes{ErrorCode::kPeer, "\xff", "", "", 0};
    EXPECT_NE(json_text(error_to_json(bytes)).find("\xef\xbf\xbd"), std::string::npos);
}

}  // namespace
}  // namespace continuo::state
