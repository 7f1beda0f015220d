// Which instruction-set level runs.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "kernels/types.h"

namespace bitwright {

// Levels compiled in and supported by this processor, best first; the last is "portable".
const std::vector<const Kernels*>& levels();
// Levels that cannot be used here, with the reason.
const std::vector<std::pair<std::string, std::string>>& refused_levels();

const Kernels& level();
// Throws std::invalid_argument where there is no such level here.
void set_level(const std::string& name);

}  // namespace bitwright
