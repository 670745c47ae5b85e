// What the counter benchmark needs of an architecture: which ways to read there are, how each is
// provoked, and what shows that it was. The build picks the file. Internal to vmm/.
#pragma once

#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "continuo/vmm/counter_bench.h"
#include "continuo/vmm/virtual_machine.h"
#include "counter_bench_abi.h"

namespace continuo::vmm::counter_bench {

struct ReadKind {
    std::string_view id;
    std::string_view clock;
    std::string_view how;
    ReadPath path = ReadPath::kNothing;
    std::string_view nothing;
    Method method = Method::kNothing;
    bool user_mode = false;
};

/// In the order in which they are reported.
std::span<const ReadKind> read_kinds();

std::vector<HostFact> host_facts();

/// Holds what a kind of read needs of its VM or host, and gives the host back at its end. Knows
/// what shows that the reads were of that kind.
class Provocation {
  public:
    Provocation() = default;
    Provocation(const Provocation&) = delete;
    Provocation& operator=(const Provocation&) = delete;
    virtual ~Provocation() = default;

    /// kUnsupported where what was seen contradicts what the kind says of itself.
    virtual Status check(const ReadKind& kind, const ReadCost& cost,
                         const Report& report) const = 0;
};

/// Sets up a stopped VM, and the host, so that reads of this kind take the path that it names.
/// kUnsupported, with the reason, where this host has no way to.
Result<std::unique_ptr<Provocation>> provoke(const ReadKind& kind, VirtualMachine& machine,
                                             const CounterBenchOptions& options);

/// The frequency of the guest's counter.
Result<time::Hz> counter_frequency(VirtualMachine& machine, const Report& report);

}  // namespace continuo::vmm::counter_bench
