// The record, the destination, the plan, the certificate and errors as JSON; docs/formats/ has each
// schema with an example that the tests run. Numbers of 64 bits are exact JSON integers in both
// directions. Reading is strict: a key that no schema has, a number with a fraction or out of
// range, a value of another type or a second key of the same name is an error that names the place.
// Files are not here.
#pragma once

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "continuo/state/certificate.h"
#include "continuo/state/error.h"
#include "continuo/state/plan.h"
#include "continuo/state/record.h"

namespace continuo::state {

/// Keys stay in the order in which the documentation has them.
using Json = nlohmann::ordered_json;

/// Largest JSON text that is read. 4096 vCPUs need about 1.2 MB.
inline constexpr std::size_t kJsonBytesMax = std::size_t{4} << 20;
/// Deepest nesting that is read; the schemas need 3.
inline constexpr std::size_t kJsonDepthMax = 16;

/// docs/formats/record.md. record_from_json(json_text(record_to_json(r))) == r where check(r)
/// holds.
Json record_to_json(const Record& record);
/// docs/formats/destination.md. Reads back equal where destination_from_json() would let it
/// through.
Json destination_to_json(const Destination& destination);
/// docs/formats/plan.md: the plan, or the refusals; "verdict" says which.
Json plan_to_json(const PlanResult& result);
/// docs/formats/certificate.md.
Json certificate_to_json(const Certificate& certificate);
/// {"error": {"code", "where", "what", "advice", "errno"}}.
Json error_to_json(const Error& error);

/// Indented by two, with a newline at its end. Bytes that are not UTF-8 become U+FFFD.
std::string json_text(const Json& json);

/// The record in a text of docs/formats/record.md. Fails with kMalformed, kTooLarge, or kVersion
/// where "schema" names something else; `where` is a JSON pointer, or line and column where the
/// text is no JSON. Checks what check() checks.
Result<Record> record_from_json(std::string_view text);
/// The destination in a text of docs/formats/destination.md. Fails in the same way.
Result<Destination> destination_from_json(std::string_view text);

}  // namespace continuo::state
