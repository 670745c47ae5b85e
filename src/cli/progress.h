// Progress of whatever takes more than a second, on stderr, a line at a time.
#pragma once

#include <fmt/format.h>

#include <cstdio>
#include <string>
#include <utility>

namespace continuo::cli {

inline void progress_line(const std::string& text) {
    std::fprintf(stderr, "continuo: %s\n", text.c_str());
}

template <class... Args>
void progress(fmt::format_string<Args...> format, Args&&... args) {
    progress_line(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace continuo::cli
