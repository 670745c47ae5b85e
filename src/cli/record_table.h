// A record for people.
#pragma once

#include <string>

#include "continuo/state/record.h"

namespace continuo::cli {

std::string record_table(const state::Record& record);

/// "x86_64" or "arm64".
std::string architecture_name(state::Architecture architecture);

}  // namespace continuo::cli
