#include "report_page.h"

#include <nlohmann/json.hpp>
#include <string_view>

#include "continuo/state/error.h"

extern "C" {
extern const char continuo_report_html[], continuo_report_html_end[];
extern const char continuo_report_css[], continuo_report_css_end[];
extern const char continuo_report_js[], continuo_report_js_end[];
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

/// What the mark in the page stands for; empty for any other text between two @.
std::string_view asset(std::string_view mark) {
    if (mark == "@CSS@") return between(continuo_report_css, continuo_report_css_end);
    if (mark == "@CHART_JS@")
        return between(continuo_report_chart_js, continuo_report_chart_js_end);
    if (mark == "@REPORT_JS@") return between(continuo_report_js, continuo_report_js_end);
    return {};
}

}  // namespace

std::string report_page(const Json& document) {
    std::string_view rest = between(continuo_report_html, continuo_report_html_end);
    const std::string data = escaped(document);
    std::string page;
    while (!rest.empty()) {
        const std::size_t open = rest.find('@');
        page += rest.substr(0, open);
        if (open == std::string_view::npos) break;
        const std::size_t close = rest.find('@', open + 1);
        CONTINUO_CHECK(close != std::string_view::npos);
        const std::string_view mark = rest.substr(open, close - open + 1);
        page += mark == "@DATA@" ? std::string_view{data} : asset(mark);
        rest.remove_prefix(close + 1);
    }
    return page;
}

}  // namespace continuo::cli
