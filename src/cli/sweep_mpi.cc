// continuo-sweep: `continuo compare` over many machines. Every rank takes pieces of the work from
// one counter, which rank 0 holds and any rank raises; what they found is added up a tree. No order
// of taking or adding shows in the result: it is that of one process over the same seeds, to the
// hash.
#include <mpi.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "compare_command.h"
#include "continuo/sim/compare.h"
#include "run_progress.h"
#include "scenario_choice.h"

namespace continuo::cli {

namespace {

constexpr const char* kExample =
    "Same answer as `continuo compare` with the same scenarios and seeds. Rank 0 reads the "
    "scenarios\n"
    "and prints; the other machines need the program alone.\n"
    "Example:\n"
    "  $ mpirun -n 4 build/continuo-sweep --seeds 100000 --html report.html\n";

int rank_of_this_process() {
    int rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    return rank;
}

void broadcast(std::string& text) {
    auto size = static_cast<std::uint64_t>(text.size());
    MPI_Bcast(&size, 1, MPI_UINT64_T, 0, MPI_COMM_WORLD);
    text.resize(static_cast<std::size_t>(size));
    MPI_Bcast(text.data(), static_cast<int>(size), MPI_CHAR, 0, MPI_COMM_WORLD);
}

/// What rank 0 has read, on every rank.
void broadcast(std::vector<ScenarioText>& texts) {
    auto count = static_cast<std::uint64_t>(texts.size());
    MPI_Bcast(&count, 1, MPI_UINT64_T, 0, MPI_COMM_WORLD);
    texts.resize(static_cast<std::size_t>(count));
    for (ScenarioText& text : texts) {
        broadcast(text.name);
        broadcast(text.text);
    }
}

/// The next piece that nobody has taken: one counter at rank 0, raised from anywhere.
class PieceCounter {
  public:
    explicit PieceCounter(int rank) {
        const MPI_Aint bytes = rank == 0 ? sizeof(std::uint64_t) : 0;
        MPI_Win_allocate(bytes, sizeof(std::uint64_t), MPI_INFO_NULL, MPI_COMM_WORLD, &count_,
                         &window_);
        if (rank == 0) *count_ = 0;
        MPI_Barrier(MPI_COMM_WORLD);
        MPI_Win_lock_all(0, window_);
    }
    PieceCounter(const PieceCounter&) = delete;
    PieceCounter& operator=(const PieceCounter&) = delete;
    ~PieceCounter() {
        MPI_Win_unlock_all(window_);
        MPI_Win_free(&window_);
    }
    std::uint64_t take() {
        const std::uint64_t one = 1;
        std::uint64_t piece = 0;
        MPI_Fetch_and_op(&one, &piece, MPI_UINT64_T, 0, 0, MPI_SUM, window_);
        MPI_Win_flush(0, window_);
        return piece;
    }

  private:
    std::uint64_t* count_ = nullptr;
    MPI_Win window_{};
};

/// MPI's user function: inout[i] += in[i].
void add_tallies(void* in, void* inout, int* count, MPI_Datatype*) {
    const auto* from = static_cast<const sim::Tally*>(in);
    auto* to = static_cast<sim::Tally*>(inout);
    for (int i = 0; i < *count; ++i)
        to[i].merge(from[i]);
}

/// The sum of all ranks' tallies, at rank 0.
void add_up(sim::Tallies& tallies, int rank) {
    MPI_Datatype tally{};
    MPI_Type_contiguous(static_cast<int>(sizeof(sim::Tally)), MPI_BYTE, &tally);
    MPI_Type_commit(&tally);
    MPI_Op add{};
    MPI_Op_create(&add_tallies, 1, &add);
    std::vector<sim::Tally>& cells = tallies.raw();
    const int count = static_cast<int>(cells.size());
    MPI_Reduce(rank == 0 ? MPI_IN_PLACE : cells.data(), cells.data(), count, tally, add, 0,
               MPI_COMM_WORLD);
    MPI_Op_free(&add);
    MPI_Type_free(&tally);
}

sim::Tallies run_share(const sim::Work& work, int rank) {
    PieceCounter counter{rank};
    RunProgress progress;
    sim::Tallies own{work};
    const std::uint64_t pieces = work.pieces();
    for (std::uint64_t piece = counter.take(); piece < pieces; piece = counter.take()) {
        own.run_piece(work, piece);
        if (rank == 0) progress.show_share("pieces", piece + 1, pieces);
    }
    return own;
}

/// Rank 0 reads; where it cannot, all ranks end.
Result<std::vector<ScenarioText>> read_on_rank_0(const CompareOptions& options, int rank) {
    std::vector<ScenarioText> texts;
    int readable = 1;
    Result<std::vector<ScenarioText>> read = texts;
    if (rank == 0) {
        read = read_scenarios(options.scenarios);
        readable = read ? 1 : 0;
    }
    MPI_Bcast(&readable, 1, MPI_INT, 0, MPI_COMM_WORLD);
    if (readable == 0)
        return rank == 0 ? read
                         : state::fail(state::ErrorCode::kPeer, "rank 0", "it read no scenarios");
    if (rank == 0) texts = *std::move(read);
    broadcast(texts);
    return texts;
}

Result<ExitCode> sweep(const CompareOptions& options) {
    const int rank = rank_of_this_process();
    const auto texts = read_on_rank_0(options, rank);
    if (!texts) return tl::unexpected(texts.error());
    // From here on every rank has the same text: all fail alike, or none.
    auto scenarios = parse_scenarios(*texts);
    if (!scenarios) return tl::unexpected(scenarios.error());
    auto work = compare_work(options, *std::move(scenarios));
    if (!work) return tl::unexpected(work.error());
    sim::Tallies tallies = run_share(*work, rank);
    add_up(tallies, rank);
    if (rank != 0) return ExitCode::kDone;
    return print_comparison(options, sim::Comparison{*std::move(work), std::move(tallies)});
}

ExitCode run_program(int argc, char** argv) {
    CLI::App program{"continuo-sweep runs `continuo compare` over many machines, by MPI.",
                     "continuo-sweep"};
    CompareOptions options;
    add_compare_options(program, options);
    program.footer(kExample);
    const int rank = rank_of_this_process();
    try {
        program.parse(argc, argv);
    } catch (const CLI::ParseError& exit) {
        if (rank != 0) return exit.get_exit_code() == 0 ? ExitCode::kDone : ExitCode::kUsage;
        if (exit.get_exit_code() == 0) {
            (void)print_text(program.help());
            return ExitCode::kDone;
        }
        return report({state::ErrorCode::kInvalidArgument, "command line", exit.what(),
                       "See `continuo-sweep --help`", 0},
                      options.json);
    }
    const auto code = sweep(options);
    if (code) return *code;
    return rank == 0 ? report(code.error(), options.json) : exit_code(code.error().code);
}

}  // namespace

}  // namespace continuo::cli

int main(int argc, char** argv) {
    using continuo::cli::ExitCode;
    MPI_Init(&argc, &argv);
    int code = static_cast<int>(ExitCode::kInternal);
    try {
        code = static_cast<int>(continuo::cli::run_program(argc, argv));
    } catch (const std::exception& error) {
        // The other ranks would wait for this one for ever.
        std::fprintf(stderr, "continuo-sweep: error: internal: %s\n", error.what());
        MPI_Abort(MPI_COMM_WORLD, code);
    }
    MPI_Finalize();
    return code;
}
