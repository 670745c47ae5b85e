// doctor's report as JSON, for `doctor` and for what `demo` says of its host.
#pragma once

#include "continuo/kvm/doctor.h"
#include "continuo/state/json.h"

namespace continuo::cli {

state::Json doctor_json(const kvm::DoctorReport& report);

}  // namespace continuo::cli
