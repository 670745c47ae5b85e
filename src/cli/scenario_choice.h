// Which scenarios, seeds and threads a command of the simulator works with.
#pragma once

#include <string>
#include <vector>

#include "continuo/sim/compare.h"
#include "continuo/sim/scenario.h"

namespace continuo::cli {

/// A scenario as its file has it, and what to call it in errors.
struct ScenarioText {
    std::string name;
    std::string text;
};

/// These files, and all *.toml of these folders in the order of their names; with none, those that
/// the program was built with. kIo where one cannot be read, kTooLarge over 8 MiB, kInvalidArgument
/// where a folder has none.
state::Result<std::vector<ScenarioText>> read_scenarios(const std::vector<std::string>& paths);

/// Errors name file, line and key. kInvalidArgument where two scenarios have one name.
state::Result<std::vector<sim::Scenario>> parse_scenarios(const std::vector<ScenarioText>& texts);

/// Both.
state::Result<std::vector<sim::Scenario>> load_scenarios(const std::vector<std::string>& paths);

/// "7..7" or "1..500"; a number alone is 1..N. kInvalidArgument, naming the option.
state::Result<sim::SeedRange> parse_seeds(std::string_view option, const std::string& text);

/// 1 to 1024; empty: one for each processor of this machine.
state::Result<unsigned> parse_jobs(std::string_view option, const std::string& text);

}  // namespace continuo::cli
