#include "report_page.h"

#include <cerrno>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string_view>

#include "continuo/state/error.h"

extern "C" {
extern const char continuo_report_css[], continuo_report_css_end[];
extern const char continuo_report_page_js[], continuo_report_page_js_end[];
extern const char continuo_report_compare_html[], continuo_report_compare_html_end[];
extern const char continuo_report_compare_js[], continuo_report_compare_js_end[];
extern const char continuo_report_watch_html[], continuo_report_watch_html_end[];
extern const char continuo_report_watch_js[], continuo_report_watch_js_end[];
extern const char continuo_report_chart_js[], continuo_report_chart_js_end[];
}

namespace continuo::cli {

using state::Json;

namespace {

std::string_view between(const char* begin, const char* end) {
    return {begin, static_cast<std::size_t>(end - begin)};
}

/// JSON as the content of a <script>: no "</script" and no "<!--" can stand in it.
std::string escaped(const Json& document) {
    std::string out;
    for (const char c : document.dump(-1, ' ', false, Json::error_handler_t::replace))
        c == '<' ? out += "\\u003c" : out += c;
    return out;
}

struct PageFiles {
    std::string_view html, js;
};
PageFiles files_of(ReportPage page) {
    switch (page) {
        case ReportPage::kCompare:
            return {between(continuo_report_compare_html, continuo_report_compare_html_end),
                    between(continuo_report_compare_js, continuo_report_compare_js_end)};
        case ReportPage::kWatch:
            return {between(continuo_report_watch_html, continuo_report_watch_html_end),
                    between(continuo_report_watch_js, continuo_report_watch_js_end)};
    }
    return {};
}

/// What the mark in the page stands for; empty for any other text between two @.
std::string_view asset(const PageFiles& files, std::string_view mark) {
    if (mark == "@CSS@") return between(continuo_report_css, continuo_report_css_end);
    if (mark == "@CHART_JS@")
        return between(continuo_report_chart_js, continuo_report_chart_js_end);
    if (mark == "@PAGE_JS@") return between(continuo_report_page_js, continuo_report_page_js_end);
    if (mark == "@REPORT_JS@") return files.js;
    return {};
}

}  // namespace

std::string report_page(ReportPage which, const Json& document) {
    const PageFiles files = files_of(which);
    std::string_view rest = files.html;
    const std::string data = escaped(document);
    std::string page;
    while (!rest.empty()) {
        const std::size_t open = rest.find('@');
        page += rest.substr(0, open);
        if (open == std::string_view::npos) break;
        const std::size_t close = rest.find('@', open + 1);
        CONTINUO_CHECK(close != std::string_view::npos);
        const std::string_view mark = rest.substr(open, close - open + 1);
        page += mark == "@DATA@" ? std::string_view{data} : asset(files, mark);
        rest.remove_prefix(close + 1);
    }
    return page;
}

state::Status write_page(const std::string& path, ReportPage which, const Json& document) {
    const std::string page = report_page(which, document);
    errno = 0;
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file{std::fopen(path.c_str(), "wb"),
                                                               std::fclose};
    if (file && std::fwrite(page.data(), 1, page.size(), file.get()) == page.size() &&
        std::fflush(file.get()) == 0)
        return {};
    return state::fail(state::ErrorCode::kIo, path, "the page could not be written",
                       "Check the path of --html", errno);
}

}  // namespace continuo::cli
