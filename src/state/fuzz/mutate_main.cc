// A main() for the fuzz target where libFuzzer is not at hand (g++): replays every file of the
// given folders, then mutations of them, a stated number from a stated seed, so that a failure
// comes again. A signal leaves the input in ./crash-input.
//
//   continuo_decode_replay --runs N --seed S FOLDER...
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

using Input = std::vector<std::uint8_t>;
constexpr std::size_t kInputMax = 16384;

/// What is running, for the signal handler.
const Input* running = nullptr;

void leave_input(int signal) {
    constexpr std::string_view text = "the input is in ./crash-input\n";
    const int file = ::open("crash-input", O_CREAT | O_TRUNC | O_WRONLY, 0644);
    if (file >= 0 && running != nullptr && ::write(file, running->data(), running->size()) >= 0 &&
        ::close(file) == 0)
        static_cast<void>(!::write(STDERR_FILENO, text.data(), text.size()));
    std::signal(signal, SIG_DFL);
    std::raise(signal);
}

void run(const Input& input) {
    running = &input;
    LLVMFuzzerTestOneInput(input.data(), input.size());
}

/// splitmix64.
class Random {
  public:
    explicit Random(std::uint64_t seed) : state_{seed} {}
    std::uint64_t next() {
        std::uint64_t z = state_ += 0x9e37'79b9'7f4a'7c15;
        z = (z ^ (z >> 30)) * 0xbf58'476d'1ce4'e5b9;
        z = (z ^ (z >> 27)) * 0x94d0'49bb'1331'11eb;
        return z ^ (z >> 31);
    }
    std::size_t below(std::size_t limit) { return static_cast<std::size_t>(next() % limit); }

  private:
    std::uint64_t state_;
};

void flip_bit(Input& input, Random& random) {
    const std::size_t at = random.below(input.size());
    input[at] = static_cast<std::uint8_t>(input[at] ^ (1U << random.below(8)));
}

/// A number that is on an edge of something, over 1, 2, 4 or 8 bytes.
void put_edge(Input& input, Random& random) {
    constexpr std::array<std::uint64_t, 10> edges{
        0, 1, 0x7f, 0x80, 0xffff, 0x7fff'ffff, 0x8000'0000, 1ULL << 32, 1ULL << 63, ~0ULL};
    const std::uint64_t value = edges[random.below(edges.size())];
    const std::size_t size = std::size_t{1} << random.below(4);
    const std::size_t at = random.below(input.size());
    for (std::size_t i = 0; i < size && at + i < input.size(); ++i)
        input[at + i] = static_cast<std::uint8_t>(value >> (8 * i));
}

void put_character(Input& input, Random& random) {
    constexpr std::string_view characters = "{}[]\":,-.eE0123456789\\ un";
    input[random.below(input.size())] =
        static_cast<std::uint8_t>(characters[random.below(characters.size())]);
}

void remove_range(Input& input, Random& random) {
    const auto from = static_cast<std::ptrdiff_t>(random.below(input.size()));
    const auto length = static_cast<std::ptrdiff_t>(random.below(64)) + 1;
    const auto size = static_cast<std::ptrdiff_t>(input.size());
    input.erase(input.begin() + from, input.begin() + std::min(from + length, size));
}

void copy_range(Input& input, const Input& other, Random& random) {
    const std::size_t from = random.below(other.size());
    const std::size_t length = std::min(other.size() - from, random.below(128) + 1);
    const auto begin = other.begin() + static_cast<std::ptrdiff_t>(from);
    input.insert(input.begin() + static_cast<std::ptrdiff_t>(random.below(input.size() + 1)), begin,
                 begin + static_cast<std::ptrdiff_t>(length));
}

Input mutated(const std::vector<Input>& corpus, Random& random) {
    Input input = corpus[random.below(corpus.size())];
    const Input& other = corpus[random.below(corpus.size())];
    for (std::size_t step = random.below(4) + 1; step > 0 && !input.empty(); --step) {
        switch (random.below(5)) {
            case 0:
                flip_bit(input, random);
                break;
            case 1:
                put_edge(input, random);
                break;
            case 2:
                put_character(input, random);
                break;
            case 3:
                remove_range(input, random);
                break;
            default:
                copy_range(input, other, random);
        }
    }
    input.resize(std::min(input.size(), kInputMax));
    return input;
}

std::vector<Input> read_corpus(int argc, char** argv) {
    std::vector<std::filesystem::path> files;
    for (int i = 5; i < argc; ++i)
        for (const auto& entry : std::filesystem::directory_iterator{argv[i]})
            if (entry.is_regular_file()) files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    std::vector<Input> corpus;
    for (const auto& path : files) {
        std::ifstream file{path, std::ios::binary};
        corpus.emplace_back(std::istreambuf_iterator<char>{file}, std::istreambuf_iterator<char>{});
        if (corpus.back().empty()) corpus.pop_back();
    }
    return corpus;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 6 || std::string_view{argv[1]} != "--runs" ||
        std::string_view{argv[3]} != "--seed") {
        std::fprintf(stderr, "usage: %s --runs N --seed S FOLDER...\n", argv[0]);
        return 2;
    }
    const std::uint64_t runs = std::strtoull(argv[2], nullptr, 10);
    const std::uint64_t seed = std::strtoull(argv[4], nullptr, 10);
    for (const int signal : {SIGABRT, SIGSEGV, SIGFPE, SIGILL, SIGBUS})
        std::signal(signal, leave_input);
    const std::vector<Input> corpus = read_corpus(argc, argv);
    if (corpus.empty()) {
        std::fprintf(stderr, "no seed in the folders\n");
        return 2;
    }
    for (const Input& input : corpus)
        run(input);
    Random random{seed};
    for (std::uint64_t i = 0; i < runs; ++i)
        run(mutated(corpus, random));
    std::printf("%zu seeds and %llu mutations of them, seed %llu: no finding\n", corpus.size(),
                static_cast<unsigned long long>(runs), static_cast<unsigned long long>(seed));
    return 0;
}
