// Moves one witness VM back and forth between the two hosts and writes down what each of them knew
// and what the guest saw, as raw facts: which of it is true is judged elsewhere (judge.py), by
// another implementation of the arithmetic.
#pragma once

#include <vector>

#include "shared_page.h"
#include "steps.h"

namespace continuo::crosshost {

/// Runs all steps together with the other side; a starts with the VM. One JSON object a line goes
/// to stdout, each with "event": README.md lists them. A refused move is a fact, not a failure.
/// Fails where a host or the guest does not do its part.
Status shuttle(SharedPage& page, const std::vector<Step>& steps);

}  // namespace continuo::crosshost
