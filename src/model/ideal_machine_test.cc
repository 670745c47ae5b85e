#include "continuo/model/ideal_machine.h"

#include <gtest/gtest.h>

#include "contract_tests.h"

namespace continuo::machine {
namespace {

using model::IdealHost;
using model::IdealMachine;

class IdealSubject final : public ContractSubject {
  public:
    IdealSubject(IdealHost host, std::size_t vcpus, Hz guest)
        : host_{host}, machine_{host_, vcpus, guest} {
        machine_.enable_kvmclock();
    }
    Machine& machine() override { return machine_; }
    void sleep_ns(std::uint64_t ns) override {
        host_.sleep(ns * host_.frequency.floor_khz() / 1'000'000);
    }

  private:
    IdealHost host_;
    IdealMachine machine_;
};

ContractFactory ideal(std::string name, IdealHost host, std::uint64_t guest_khz) {
    return {std::move(name), [=](std::size_t vcpus) {
                return std::make_unique<IdealSubject>(host, vcpus, *Hz::from_khz(guest_khz));
            }};
}

IdealHost host_with(std::uint64_t khz, std::optional<int> bits, std::uint64_t call_ticks) {
    IdealHost host;
    host.frequency = *Hz::from_khz(khz);
    host.scaling_frac_bits = bits;
    host.call_ticks_max = call_ticks;
    return host;
}

INSTANTIATE_TEST_SUITE_P(Ideal, MachineContract,
                         testing::Values(ideal("instant", host_with(2'000'000, {}, 0), 2'000'000),
                                         ideal("jitter", host_with(2'400'000, {}, 40), 2'400'000),
                                         ideal("scaled48", host_with(3'000'000, 48, 7), 1'999'999),
                                         ideal("scaled32", host_with(2'100'123, 32, 7), 3'456'789),
                                         ideal("tolerated", host_with(2'000'000, {}, 3),
                                               2'000'400)),
                         [](const auto& instance) { return instance.param.name; });

}  // namespace
}  // namespace continuo::machine
