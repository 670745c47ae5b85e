// One HTML page around a JSON document: the page's own style and script and Chart.js stand in it,
// so that it needs neither a network nor a file beside it. What it shows is in report/.
#pragma once

#include <string>

#include "continuo/state/json.h"

namespace continuo::cli {

/// The page that shows a document of schema continuo/compare/1.
std::string report_page(const state::Json& document);

}  // namespace continuo::cli
