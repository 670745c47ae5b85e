// The contract of machine.h as tests: every machine passes them, the real one and the model's. A
// module instantiates them with a factory of its own:
//
//   INSTANTIATE_TEST_SUITE_P(Ideal, MachineContract, testing::Values(ContractFactory{...}));
//
// A control that a host is proven not to have makes its tests SKIP with the reason, never pass.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>

#include "continuo/machine/migration.h"

namespace continuo::machine {

/// A machine under test and the things that it runs on.
class ContractSubject {
  public:
    ContractSubject() = default;
    ContractSubject(const ContractSubject&) = delete;
    ContractSubject& operator=(const ContractSubject&) = delete;
    virtual ~ContractSubject() = default;
    virtual Machine& machine() = 0;
    /// Lets time pass on the host: about this long.
    virtual void sleep_ns(std::uint64_t ns) = 0;
};

struct ContractFactory {
    std::string name;
    /// A VM of so many vCPUs, stopped, kvmclock not enabled by its guest; or the reason why there
    /// is none here.
    std::function<tl::expected<std::unique_ptr<ContractSubject>, std::string>(std::size_t vcpus)>
        make;
};

inline void PrintTo(const ContractFactory& factory, std::ostream* out) {
    *out << factory.name;
}

class MachineContract : public testing::TestWithParam<ContractFactory> {
  protected:
    static constexpr std::size_t kVcpus = 4;

    void SetUp() override {
        auto made = GetParam().make(kVcpus);
        if (!made) GTEST_SKIP() << made.error();
        subject_ = std::move(*made);
        const auto facts = machine().host_facts();
        ASSERT_TRUE(facts) << facts.error().message();
        facts_ = *facts;
    }

    Machine& machine() { return subject_->machine(); }
    bool lacks(state::Quirk quirk) const { return state::has(facts_.quirks, quirk); }
    bool offset_works() const {
        return !lacks(state::Quirk::kNoTscOffset) && !lacks(state::Quirk::kTscOffsetIgnored);
    }
    bool x86() const { return facts_.architecture == state::Architecture::kX86_64; }
    bool value_works() const { return !lacks(state::Quirk::kTscWriteIgnored); }

    std::unique_ptr<ContractSubject> subject_;
    HostFacts facts_;
};

}  // namespace continuo::machine
