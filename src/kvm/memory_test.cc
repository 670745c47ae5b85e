#include "continuo/kvm/memory.h"

#include <gtest/gtest.h>

#include <limits>

namespace continuo::kvm {
namespace {

constexpr std::uint64_t kSize = 4 * kPageSize;
constexpr std::uint64_t kTop = std::numeric_limits<std::uint64_t>::max();

TEST(GuestMemory, HoldsWhatIsWritten) {
    auto memory = GuestMemory::create(kSize);
    ASSERT_TRUE(memory);
    ASSERT_TRUE(memory->write_object<std::uint64_t>(kSize - 8, 0x1122334455667788));
    EXPECT_EQ(memory->read_object<std::uint64_t>(kSize - 8), 0x1122334455667788u);
    EXPECT_EQ(memory->load<std::uint32_t>(kSize - 4), 0x11223344u);
    ASSERT_TRUE(memory->store<std::uint32_t>(kSize - 8, 7));
    EXPECT_EQ(memory->read_object<std::uint64_t>(kSize - 8), 0x1122334400000007u);
}

TEST(GuestMemory, KnowsThePagesThatWereTouched) {
    auto memory = GuestMemory::create(200 * kPageSize);
    ASSERT_TRUE(memory);
    std::uint64_t bitmap[4] = {~0ull, ~0ull, ~0ull, ~0ull};
    ASSERT_TRUE(memory->find_touched_pages(bitmap));
    EXPECT_EQ(bitmap[0] | bitmap[1] | bitmap[2] | bitmap[3], 0u);
    for (const std::uint64_t page : {0u, 1u, 63u, 64u, 199u})
        ASSERT_TRUE(memory->write_object<std::uint32_t>(page * kPageSize + 8, 0));
    ASSERT_TRUE(memory->find_touched_pages(bitmap));
    EXPECT_EQ(bitmap[0], 1ull << 63 | 3);
    EXPECT_EQ(bitmap[1], 1u);
    EXPECT_EQ(bitmap[2], 0u);
    EXPECT_EQ(bitmap[3], 1u << 7);
}

TEST(GuestMemory, GoesOnBehindAHole) {
    constexpr AddressRange kHole{64 * kPageSize, 128 * kPageSize};
    constexpr std::uint64_t kBehind = kHole.begin + kHole.bytes;
    auto memory = GuestMemory::create_around(66 * kPageSize, kHole);
    ASSERT_TRUE(memory);
    ASSERT_EQ(memory->ranges().size(), 2u);
    EXPECT_EQ(memory->ranges()[1].begin, kBehind);
    EXPECT_EQ(memory->ranges()[1].bytes, 2 * kPageSize);
    EXPECT_EQ(memory->size(), 66 * kPageSize);
    ASSERT_TRUE(memory->write_object<std::uint32_t>(kBehind + kPageSize, 5));
    EXPECT_EQ(memory->host()[65 * kPageSize], std::byte{5}) << "one piece to the host";
    EXPECT_EQ(memory->offset_of(kBehind), 64 * kPageSize);
    EXPECT_EQ(memory->offset_of(kHole.begin), std::nullopt);
    struct Row {
        std::uint64_t gpa;
        std::uint64_t length;
        bool inside;
    };
    const Row rows[] = {
        {kHole.begin - 1, 1, true},
        {kHole.begin - 1, 2, false},
        {kHole.begin, 1, false},
        {kHole.begin - 8, kHole.bytes + 16, false},
        {kBehind - 1, 1, false},
        {kBehind, 2 * kPageSize, true},
        {kBehind, 2 * kPageSize + 1, false},
        {kTop, 1, false},
    };
    for (const Row& row : rows)
        EXPECT_EQ(memory->at(row.gpa, row.length).has_value(), row.inside)
            << row.gpa << " " << row.length;
    std::uint64_t bitmap[2] = {};
    ASSERT_TRUE(memory->find_touched_pages(bitmap));
    EXPECT_EQ(bitmap[1], 2u);
    const auto small = GuestMemory::create_around(64 * kPageSize, kHole);
    ASSERT_TRUE(small);
    EXPECT_EQ(small->ranges().size(), 1u);
}

TEST(GuestMemory, RefusesAddressesOutside) {
    auto memory = GuestMemory::create(kSize, 2 * kPageSize);
    ASSERT_TRUE(memory);
    const std::uint64_t base = 2 * kPageSize;
    struct Row {
        std::uint64_t gpa;
        std::uint64_t length;
        bool inside;
    };
    const Row rows[] = {
        {base, kSize, true},          {base, kSize + 1, false}, {base - 1, 1, false},
        {base + kSize, 0, true},      {base + kSize, 1, false}, {base + kSize - 1, 1, true},
        {base + kSize - 1, 2, false}, {kTop, 1, false},         {kTop, kTop, false},
        {base, kTop, false},          {base + 1, kTop, false},  {0, base, false},
        {1ull << 31, 8, false},       {1ull << 32, 8, false},   {1ull << 63, 8, false},
    };
    for (const Row& row : rows) {
        EXPECT_EQ(memory->contains(row.gpa, row.length), row.inside)
            << row.gpa << "+" << row.length;
        const auto at = memory->at(row.gpa, row.length);
        EXPECT_EQ(at.has_value(), row.inside);
        if (!at) {
            EXPECT_EQ(at.error().code, state::ErrorCode::kGuest);
        }
    }
}

TEST(GuestMemory, NamesTheAddressThatIsOutside) {
    auto memory = GuestMemory::create(kSize);
    ASSERT_TRUE(memory);
    const auto page = memory->read_object<std::uint64_t>(0xdeadbeef000);
    ASSERT_FALSE(page);
    EXPECT_NE(page.error().where.find("0xdeadbeef000"), std::string::npos);
}

TEST(GuestMemory, RefusesMisalignedSharedWords) {
    auto memory = GuestMemory::create(kSize);
    ASSERT_TRUE(memory);
    EXPECT_EQ(memory->load<std::uint64_t>(4).error().code, state::ErrorCode::kGuest);
    EXPECT_EQ(memory->store<std::uint32_t>(2, 1).error().code, state::ErrorCode::kGuest);
    EXPECT_TRUE(memory->load<std::uint8_t>(3));
}

TEST(GuestMemory, RefusesSizesThatAreNoPages) {
    for (const std::uint64_t size : {std::uint64_t{0}, std::uint64_t{1}, kPageSize + 1, kTop,
                                     std::uint64_t{1} << 63, (std::uint64_t{1} << 46) + kPageSize})
        EXPECT_EQ(GuestMemory::create(size).error().code, state::ErrorCode::kInvalidArgument)
            << size;
    EXPECT_FALSE(GuestMemory::create(kPageSize, 1));
    EXPECT_FALSE(GuestMemory::create(kPageSize, kTop - kPageSize + 1));
}

TEST(GuestMemory, MovesWithoutUnmapping) {
    auto made = GuestMemory::create(kSize);
    ASSERT_TRUE(made);
    ASSERT_TRUE(made->store<std::uint64_t>(0, 42));
    GuestMemory moved = std::move(*made);
    EXPECT_EQ(moved.load<std::uint64_t>(0), 42u);
    EXPECT_FALSE(made->contains(0, 1));
}

}  // namespace
}  // namespace continuo::kvm
