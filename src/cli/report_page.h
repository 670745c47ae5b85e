// One HTML page around a JSON document: the page's own style and script and Chart.js stand in it,
// so that it needs neither a network nor a file beside it. What a page shows is in report/.
#pragma once

#include <cstdint>
#include <string>

#include "continuo/state/error.h"
#include "continuo/state/json.h"

namespace continuo::cli {

/// What a document is of.
enum class ReportPage : std::uint8_t {
    kCompare,  ///< continuo/compare/1
    kWatch,    ///< continuo/watch/1
};

/// The page that shows a document.
std::string report_page(ReportPage page, const state::Json& document);
/// Writes it. kIo, naming --html.
state::Status write_page(const std::string& path, ReportPage page, const state::Json& document);

}  // namespace continuo::cli
