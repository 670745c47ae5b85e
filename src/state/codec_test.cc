#include "continuo/state/codec.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <ostream>

#include "sample_records.h"
#include "wire.h"

namespace continuo::state {
namespace {

using Blob = std::vector<std::byte>;

template <class T>
void poke(Blob& blob, std::size_t at, T value) {
    std::memcpy(blob.data() + at, &value, sizeof value);
}

/// Offset of the n-th field of this type number (0-based); the blob must be well formed.
std::size_t offset_of(const Blob& blob, wire::Field field, std::size_t n = 0) {
    std::size_t at = wire::kHeaderBytes;
    while (at < blob.size() - wire::kHashBytes) {
        std::uint16_t type = 0;
        std::uint16_t length = 0;
        std::memcpy(&type, blob.data() + at, 2);
        std::memcpy(&length, blob.data() + at + 2, 2);
        if (type == static_cast<std::uint16_t>(field) && n-- == 0) return at;
        at += wire::kFieldHeaderBytes + length;
    }
    ADD_FAILURE() << "no such field";
    return 0;
}

Blob field(std::uint16_t type, std::size_t length) {
    Blob bytes(wire::kFieldHeaderBytes + length, std::byte{0x5a});
    poke(bytes, 0, type);
    poke(bytes, 2, static_cast<std::uint16_t>(length));
    return bytes;
}

void insert(Blob& blob, std::size_t at, const Blob& what) {
    blob.insert(blob.begin() + static_cast<std::ptrdiff_t>(at), what.begin(), what.end());
}

void erase(Blob& blob, std::size_t at, std::size_t length) {
    const auto from = blob.begin() + static_cast<std::ptrdiff_t>(at);
    blob.erase(from, from + static_cast<std::ptrdiff_t>(length));
}

std::size_t end_of_fields(const Blob& blob) {
    return blob.size() - wire::kHashBytes;
}

Error error_of(const Blob& blob) {
    const auto result = decode(blob);
    if (result) {
        ADD_FAILURE() << "decoded";
        return {};
    }
    return result.error();
}

TEST(Codec, RoundTrips) {
    for (const Record& record : {sample::two_vcpus(), sample::arm64(), sample::many_vcpus(1),
                                 sample::many_vcpus(kVcpusMax)}) {
        const Blob blob = encode(record);
        const auto decoded = decode(blob);
        ASSERT_TRUE(decoded) << decoded.error().message();
        EXPECT_TRUE(*decoded == record);
        EXPECT_EQ(encode(*decoded), blob);
    }
}

TEST(Codec, SizesAreAsDocumented) {
    // 24 header and hash, 8 architecture, 20 boot id, 4 + 32 kernel, 44 anchor, 12 sequence,
    // 44 kvmclock, 60 a vCPU, 8 rate bound, 12 suspended
    EXPECT_EQ(encode(sample::two_vcpus()).size(),
              24U + 8 + 20 + 36 + 44 + 12 + 44 + 2 * 60 + 8 + 12);
    Record largest = sample::many_vcpus(kVcpusMax);
    largest.kvmclock = sample::two_vcpus().kvmclock;
    largest.kvmclock->origin = KvmclockOrigin::kKernel;
    largest.source.kernel.assign(kKernelBytesMax, 'k');
    EXPECT_EQ(encode(largest).size(), 24U + 8 + 20 + 259 + 44 + 12 + 44 + 4096 * 60 + 8 + 12);
    EXPECT_EQ(encode(largest).size(), 246'191U);
    EXPECT_TRUE(decode(encode(largest)));
}

TEST(Codec, EveryPrefixIsRefused) {
    const Blob blob = encode(sample::two_vcpus());
    for (std::size_t size = 0; size < blob.size(); ++size) {
        const auto result = decode(std::span{blob}.first(size));
        ASSERT_FALSE(result) << size;
        EXPECT_EQ(result.error().code, ErrorCode::kTruncated) << size;
    }
}

TEST(Codec, EveryPrefixWithAnHonestHashIsRefused) {
    const Blob blob = encode(sample::two_vcpus());
    for (std::size_t size = kRecordBytesMin; size < blob.size(); ++size) {
        Blob cut{blob.begin(), blob.begin() + static_cast<std::ptrdiff_t>(size)};
        wire::seal(cut);
        // Cut exactly behind a vCPU it is a whole record of those that are left, at an unknown
        // rate, and what lies behind the vCPUs may be missing.
        const std::size_t behind_rate = blob.size() - 12;
        const std::size_t behind_both = behind_rate - 8;
        if (size == behind_rate || size == behind_both ||
            size == behind_both - wire::kVcpuFieldBytes) {
            const auto rest = decode(cut);
            ASSERT_TRUE(rest);
            EXPECT_EQ(rest->vcpus.size(), size < behind_both ? 1U : 2U);
            EXPECT_EQ(rest->anchor.rate_bound_ppb,
                      size == behind_rate ? 27'000U : kRateBoundUnknownPpb);
            EXPECT_FALSE(rest->anchor.suspended_ns);
            continue;
        }
        EXPECT_EQ(error_of(cut).code, ErrorCode::kMalformed) << size;
    }
}

TEST(Codec, EveryFlippedBitIsRefused) {
    const Blob blob = encode(sample::two_vcpus());
    for (std::size_t bit = 0; bit < blob.size() * 8; ++bit) {
        Blob flipped = blob;
        flipped[bit / 8] ^= std::byte{1} << (bit % 8);
        const Error error = error_of(flipped);
        EXPECT_TRUE(error.code == ErrorCode::kIntegrity || bit / 8 < wire::kHeaderBytes)
            << bit << ": " << error.message();
        EXPECT_NE(error.where.find("byte"), std::string::npos);
    }
}

/// A forger with the hash on their side: never a crash, and success only where the flip made
/// another well-formed record, which then survives its own round trip.
TEST(Codec, EveryFlippedBitWithAnHonestHashIsAnErrorOrAnotherRecord) {
    const Record record = sample::two_vcpus();
    const Blob blob = encode(record);
    std::size_t refused = 0;
    for (std::size_t bit = wire::kHeaderBytes * 8; bit < end_of_fields(blob) * 8; ++bit) {
        Blob flipped = blob;
        flipped[bit / 8] ^= std::byte{1} << (bit % 8);
        wire::seal(flipped);
        const auto result = decode(flipped);
        if (!result) {
            ++refused;
            continue;
        }
        EXPECT_FALSE(*result == record) << bit;
        // The type of the rate bound, or of the suspended time, became one that nobody knows, and
        // that is not written again.
        const std::size_t byte = bit / 8;
        const bool dropped = byte == 300 || byte == 301 || byte == 308 || byte == 309;
        EXPECT_EQ(encode(*result) == flipped, !dropped) << bit;
    }
    EXPECT_GT(refused, 400U);
}

struct Tampering {
    const char* name;
    std::function<void(Blob&)> apply;
    ErrorCode code;
    const char* where;
    const char* what;
};

void PrintTo(const Tampering& tampering, std::ostream* out) {
    *out << tampering.name;
}

class Tampered : public testing::TestWithParam<Tampering> {};

TEST_P(Tampered, IsATypedErrorThatNamesThePlace) {
    Blob blob = encode(sample::two_vcpus());
    GetParam().apply(blob);
    wire::seal(blob);
    const Error error = error_of(blob);
    EXPECT_EQ(name(error.code), name(GetParam().code)) << error.message();
    EXPECT_EQ(error.where, GetParam().where);
    EXPECT_NE(error.what.find(GetParam().what), std::string::npos) << error.what;
}

// Offsets in the sample: architecture 16, boot id 24, kernel 44, anchor 80, sequence 124,
// kvmclock 136, vCPU 0 180, vCPU 1 240, rate bound 300, hash 308.
const Tampering kTamperings[] = {
    {"WrongMagic", [](Blob& b) { b[3] = std::byte{'X'}; }, ErrorCode::kMalformed,
     "record, byte 0 (magic)", "CONTINUO"},
    {"VersionZero", [](Blob& b) { poke<std::uint16_t>(b, 8, 0); }, ErrorCode::kVersion,
     "record, byte 8 (version)", "version 0"},
    {"VersionNewer", [](Blob& b) { poke<std::uint16_t>(b, 8, 2); }, ErrorCode::kVersion,
     "record, byte 8 (version)", "version 2"},
    {"ReservedNotZero", [](Blob& b) { poke<std::uint16_t>(b, 10, 1); }, ErrorCode::kMalformed,
     "record, byte 10 (reserved)", "not zero"},
    {"UnknownMandatory", [](Blob& b) { insert(b, end_of_fields(b), field(0x800b, 3)); },
     ErrorCode::kVersion, "record, byte 320 (field type 11)", "mandatory field"},
    {"Duplicate",
     [](Blob& b) {
         insert(b, 124, Blob{b.begin() + 124, b.begin() + 136});
     },
     ErrorCode::kMalformed, "record, byte 136 (notice_sequence)", "a second time"},
    {"OutOfOrder",
     [](Blob& b) {
         const Blob sequence{b.begin() + 124, b.begin() + 136};
         erase(b, 124, 12);
         insert(b, end_of_fields(b), sequence);
     },
     ErrorCode::kMalformed, "record, byte 308 (field type 5)", "out of order"},
    {"MandatoryBitOnAnOptional", [](Blob& b) { poke<std::uint16_t>(b, 24, 0x8002); },
     ErrorCode::kMalformed, "record, byte 24 (boot_id)", "mandatory bit"},
    {"MandatoryBitOff", [](Blob& b) { poke<std::uint16_t>(b, 136, 6); }, ErrorCode::kMalformed,
     "record, byte 136 (kvmclock)", "mandatory bit"},
    {"ShortAnchor",
     [](Blob& b) {
         poke<std::uint16_t>(b, 82, 39);
         erase(b, 84 + 39, 1);
     },
     ErrorCode::kMalformed, "record, byte 82 (anchor)", "a length of 39, and it must be 40"},
    {"EmptyKernel",
     [](Blob& b) {
         poke<std::uint16_t>(b, 46, 0);
         erase(b, 48, 32);
     },
     ErrorCode::kMalformed, "record, byte 46 (kernel)", "must be 1 to 255"},
    {"LengthOverTheEnd", [](Blob& b) { poke<std::uint16_t>(b, 310, 9); }, ErrorCode::kMalformed,
     "record, byte 310 (field type 10)", "runs over the end"},
    {"RestOfThreeBytes",
     [](Blob& b) {
         insert(b, end_of_fields(b), {std::byte{8}, std::byte{0}, std::byte{0}});
     },
     ErrorCode::kMalformed, "record, byte 320 (field header)", "3 bytes"},
    {"NoArchitecture", [](Blob& b) { erase(b, 16, 8); }, ErrorCode::kMalformed,
     "record, byte 312 (architecture)", "missing"},
    {"NoAnchor", [](Blob& b) { erase(b, 80, 44); }, ErrorCode::kMalformed,
     "record, byte 276 (anchor)", "missing"},
    {"NoSequence", [](Blob& b) { erase(b, 124, 12); }, ErrorCode::kMalformed,
     "record, byte 308 (notice_sequence)", "missing"},
    {"NoVcpu", [](Blob& b) { erase(b, 180, 120); }, ErrorCode::kMalformed,
     "record, byte 200 (vcpu)", "missing"},
    {"Architecture3", [](Blob& b) { poke<std::uint32_t>(b, 20, 3); }, ErrorCode::kMalformed,
     "record, byte 20 (architecture)", "architecture 3"},
    {"BootIdZero", [](Blob& b) { std::fill_n(b.begin() + 28, 16, std::byte{0}); },
     ErrorCode::kMalformed, "record, byte 28 (boot_id)", "all zero"},
    {"KernelWithNul", [](Blob& b) { b[50] = std::byte{0}; }, ErrorCode::kMalformed,
     "record, byte 48 (/kernel)", "printable UTF-8"},
    {"KernelNotUtf8", [](Blob& b) { b[50] = std::byte{0xc0}; }, ErrorCode::kMalformed,
     "record, byte 48 (/kernel)", "printable UTF-8"},
    {"HostFrequencyZero", [](Blob& b) { poke<std::uint64_t>(b, 108, 0); }, ErrorCode::kMalformed,
     "record, byte 108 (anchor)", "frequency of 0"},
    {"HostFrequencyHuge", [](Blob& b) { poke<std::uint64_t>(b, 108, ~0ULL); },
     ErrorCode::kMalformed, "record, byte 108 (/host_hz)", "outside 1000 to 4294967295999"},
    {"AnchorFlag", [](Blob& b) { poke<std::uint32_t>(b, 120, 3); }, ErrorCode::kMalformed,
     "record, byte 120 (anchor)", "flag bits"},
    {"MulZero", [](Blob& b) { poke<std::uint32_t>(b, 156, 0); }, ErrorCode::kMalformed,
     "record, byte 156 (/kvmclock/mul)", "stands still"},
    {"ShiftTooHigh", [](Blob& b) { b[160] = std::byte{32}; }, ErrorCode::kMalformed,
     "record, byte 160 (kvmclock)", "shift of 32"},
    {"ShiftTooLow", [](Blob& b) { b[160] = std::byte{0xc0}; }, ErrorCode::kMalformed,
     "record, byte 160 (kvmclock)", "shift of -64"},
    {"Origin0", [](Blob& b) { b[161] = std::byte{0}; }, ErrorCode::kMalformed,
     "record, byte 161 (kvmclock)", "origin 0"},
    {"KvmclockFlag", [](Blob& b) { b[162] = std::byte{2}; }, ErrorCode::kMalformed,
     "record, byte 162 (kvmclock)", "flag bits"},
    {"KvmclockPadding", [](Blob& b) { b[163] = std::byte{1}; }, ErrorCode::kMalformed,
     "record, byte 163 (kvmclock)", "padding"},
    {"PageWithoutAPage", [](Blob& b) { poke<std::uint64_t>(b, 232, 0x1000); },
     ErrorCode::kMalformed, "record, byte 161 (/kvmclock/origin)", "vCPU 0 has none"},
    {"VcpuTwice", [](Blob& b) { poke<std::uint32_t>(b, 244, 0); }, ErrorCode::kMalformed,
     "record, byte 244 (vcpu)", "vCPU 0 where vCPU 1 must stand"},
    {"VcpuLeftOut", [](Blob& b) { erase(b, 180, 60); }, ErrorCode::kMalformed,
     "record, byte 184 (vcpu)", "vCPU 1 where vCPU 0 must stand"},
    {"VcpuFlag", [](Blob& b) { poke<std::uint32_t>(b, 188, 4); }, ErrorCode::kMalformed,
     "record, byte 188 (vcpu)", "flag bits"},
    {"OffsetWithoutItsFlag", [](Blob& b) { poke<std::uint32_t>(b, 188, 0); }, ErrorCode::kMalformed,
     "record, byte 208 (vcpu)", "flag that it is there is clear"},
    {"VcpuFrequencyZero", [](Blob& b) { poke<std::uint64_t>(b, 284, 0); }, ErrorCode::kMalformed,
     "record, byte 284 (vcpu)", "frequency of 0"},
    {"VcpuFrequencyTiny", [](Blob& b) { poke<std::uint64_t>(b, 284, 999); }, ErrorCode::kMalformed,
     "record, byte 284 (/vcpus/1/frequency_hz)", "999 Hz"},
    {"RateBoundOverTheLimit", [](Blob& b) { poke<std::uint32_t>(b, 304, 500'000'001); },
     ErrorCode::kMalformed, "record, byte 304 (/anchor/rate_bound_ppb)", "over the limit"},
    {"RateBoundThatIsUnknown", [](Blob& b) { poke<std::uint32_t>(b, 304, 500'000); },
     ErrorCode::kMalformed, "record, byte 304 (rate_bound)", "is left out"},
    {"KvmclockOnArm64",
     [](Blob& b) {
         poke<std::uint32_t>(b, 20, 2);
         for (const std::size_t at : {188U, 248U})
             poke<std::uint32_t>(b, at, 1);
         for (const std::size_t at : {232U, 292U})
             poke<std::uint64_t>(b, at, 0);
     },
     ErrorCode::kMalformed, "record, byte 136 (/kvmclock)", "kvmclock on arm64"},
    {"MsrOnArm64", [](Blob& b) { poke<std::uint32_t>(b, 20, 2); }, ErrorCode::kMalformed,
     "record, byte 232 (/vcpus/0/system_time_msr)", "kvmclock MSR on arm64"},
    {"StoppedOnArm64",
     [](Blob& b) {
         poke<std::uint32_t>(b, 20, 2);
         for (const std::size_t at : {232U, 292U})
             poke<std::uint64_t>(b, at, 0);
     },
     ErrorCode::kMalformed, "record, byte 248 (/vcpus/1/guest_stopped_pending)",
     "GUEST_STOPPED on arm64"},
    {"AdjustOnArm64",
     [](Blob& b) {
         poke<std::uint32_t>(b, 20, 2);
         poke<std::int64_t>(b, 216, -1);
     },
     ErrorCode::kMalformed, "record, byte 216 (/vcpus/0/tsc_adjust)", "TSC_ADJUST on arm64"},
};

INSTANTIATE_TEST_SUITE_P(Codec, Tampered, testing::ValuesIn(kTamperings),
                         [](const auto& tampering) { return std::string{tampering.param.name}; });

TEST(Codec, TheOffsetsOfTheseTestsAreThoseOfTheSample) {
    const Blob blob = encode(sample::two_vcpus());
    EXPECT_EQ(offset_of(blob, wire::Field::kArchitecture), 16U);
    EXPECT_EQ(offset_of(blob, wire::Field::kBootId), 24U);
    EXPECT_EQ(offset_of(blob, wire::Field::kKernel), 44U);
    EXPECT_EQ(offset_of(blob, wire::Field::kAnchor), 80U);
    EXPECT_EQ(offset_of(blob, wire::Field::kNoticeSequence), 124U);
    EXPECT_EQ(offset_of(blob, wire::Field::kKvmclock), 136U);
    EXPECT_EQ(offset_of(blob, wire::Field::kVcpu, 0), 180U);
    EXPECT_EQ(offset_of(blob, wire::Field::kVcpu, 1), 240U);
    EXPECT_EQ(offset_of(blob, wire::Field::kRateBound), 300U);
    EXPECT_EQ(offset_of(blob, wire::Field::kSuspended), 308U);
    EXPECT_EQ(end_of_fields(blob), 320U);
}

TEST(Codec, UnknownOptionalFieldsAreSkippedWhereverTheyStand) {
    Blob blob = encode(sample::two_vcpus());
    insert(blob, 300, field(8, 5));
    insert(blob, end_of_fields(blob), field(11, 0));
    insert(blob, end_of_fields(blob), field(11, 1));
    insert(blob, end_of_fields(blob), field(0x7fff, 65'535));
    wire::seal(blob);
    const auto decoded = decode(blob);
    ASSERT_TRUE(decoded) << decoded.error().message();
    EXPECT_TRUE(*decoded == sample::two_vcpus());
}

TEST(Codec, TrailingBytesAndOversizeAreRefused) {
    Blob blob = encode(sample::two_vcpus());
    blob.push_back(std::byte{0});
    EXPECT_EQ(error_of(blob).code, ErrorCode::kMalformed);
    EXPECT_EQ(error_of(blob).where, "record, byte 12 (length)");

    Blob huge(kRecordBytesMax + 1);
    const Blob head = encode(sample::two_vcpus());
    std::copy(head.begin(), head.end(), huge.begin());
    wire::seal(huge);
    EXPECT_EQ(error_of(huge).code, ErrorCode::kTooLarge);

    // 24 bytes that state 4 GiB: refused by the number, nothing is allocated for it.
    Blob liar(head.begin(), head.begin() + 24);
    poke<std::uint32_t>(liar, wire::kLengthAt, ~0U);
    EXPECT_EQ(error_of(liar).code, ErrorCode::kTooLarge);
}

TEST(Codec, OneVcpuOverTheLimitIsRefused) {
    Blob blob = encode(sample::many_vcpus(kVcpusMax));
    const std::size_t behind_vcpus = offset_of(blob, wire::Field::kRateBound);
    const auto end = blob.begin() + static_cast<std::ptrdiff_t>(behind_vcpus);
    Blob extra{end - 60, end};
    poke<std::uint32_t>(extra, 4, kVcpusMax);
    insert(blob, behind_vcpus, extra);
    wire::seal(blob);
    const Error error = error_of(blob);
    EXPECT_EQ(error.code, ErrorCode::kTooLarge);
    EXPECT_NE(error.what.find("4096"), std::string::npos);
}

TEST(Codec, RoomIsMadeForNoMoreVcpusThanTheBytesCanHold) {
    const Blob blob = encode(sample::many_vcpus(3));
    const auto decoded = decode(blob);
    ASSERT_TRUE(decoded);
    EXPECT_LE(decoded->vcpus.capacity(), blob.size() / wire::kVcpuFieldBytes);
}

TEST(Codec, AFullBlobOfUnknownFieldsIsReadInOneGo) {
    Blob blob = encode(sample::two_vcpus());
    while (blob.size() + 4 <= kRecordBytesMax)
        insert(blob, end_of_fields(blob), field(11, 0));
    wire::seal(blob);
    const auto decoded = decode(blob);
    ASSERT_TRUE(decoded);
    EXPECT_TRUE(*decoded == sample::two_vcpus());
}

TEST(Check, NamesTheCulpritByItsJsonPointer) {
    Record record = sample::two_vcpus();
    EXPECT_TRUE(check(record));
    record.source.kernel.assign(kKernelBytesMax + 1, 'k');
    EXPECT_EQ(check(record).error().where, "/kernel");
    EXPECT_EQ(check(record).error().code, ErrorCode::kTooLarge);

    record = sample::two_vcpus();
    record.vcpus[1].frequency = *Hz::from_hz(kFrequencyMaxHz + 1);
    EXPECT_EQ(check(record).error().where, "/vcpus/1/frequency_hz");

    record.vcpus.clear();
    EXPECT_EQ(check(record).error().where, "/vcpus");
    record = sample::many_vcpus(kVcpusMax + 1);
    EXPECT_EQ(check(record).error().code, ErrorCode::kTooLarge);
}

TEST(Check, KernelStringsArePrintableUtf8) {
    const auto passes = [](std::string kernel) {
        Record record = sample::two_vcpus();
        record.source.kernel = std::move(kernel);
        return check(record).has_value();
    };
    EXPECT_TRUE(passes(""));
    EXPECT_TRUE(passes("Linux \xc3\xa9 \xe2\x82\xac \xf0\x9f\x95\x92 \xc2\xa0"));
    EXPECT_TRUE(passes("\xf4\x8f\xbf\xbf"));  // U+10FFFF
    for (const char* bad : {"\n", "\x7f", "\x1b[2J", "\xc2\x85", "\x80", "\xc0\x80", "\xc1\xbf",
                            "\xe0\x9f\xbf", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80",
                            "\xf5\x80\x80\x80", "\xc3", "\xe2\x82", "\xe2\x82x", "\xff"})
        EXPECT_FALSE(passes(bad)) << bad;
}

TEST(CheckDeathTest, EncodeRefusesWhatCheckRefuses) {
    Record record = sample::two_vcpus();
    record.vcpus.clear();
    EXPECT_DEATH(encode(record), "check");
}

}  // namespace
}  // namespace continuo::state
