#include "sim.h"

namespace continuo::cli {

void add_sim(CLI::App& program, Invocation& invocation) {
    CLI::App* sim = program.add_subcommand("sim", "Simulate hosts, guests and moves");
    sim->require_subcommand(1);
    add_sim_list(*sim, invocation);
    add_sim_run(*sim, invocation);
    add_sim_replay(*sim, invocation);
}

}  // namespace continuo::cli
