// What is inconsistent in a page that somebody handed us: for `continuo inspect`, for logs and for
// refusals. A finding is a sentence for people; nothing decides by its text. An empty list means
// that the page is one that its writer can have meant, not that it is right.
#pragma once

#include <string>
#include <vector>

#include "continuo/abi/clock_pairing.h"
#include "continuo/abi/hyperv.h"
#include "continuo/abi/kvm_clock.h"
#include "continuo/abi/pvclock.h"
#include "continuo/abi/steal_time.h"
#include "continuo/abi/vmclock.h"

namespace continuo::abi {

struct Finding {
    std::string field;  ///< ABI name
    std::string text;   ///< the value, what is wrong with it, and what follows from that
};

/// In the order of the fields.
std::vector<Finding> inconsistencies(const pvclock_vcpu_time_info& page);
std::vector<Finding> inconsistencies(const pvclock_wall_clock& page);
std::vector<Finding> inconsistencies(const kvm_clock_data& data);
std::vector<Finding> inconsistencies(const ms_hyperv_tsc_page& page);
std::vector<Finding> inconsistencies(const kvm_clock_pairing& pairing);
std::vector<Finding> inconsistencies(const kvm_steal_time& page);
std::vector<Finding> inconsistencies(const vmclock_abi& page);

}  // namespace continuo::abi
