// The rotation of inputs of src/bitwright/rotation.py: signs times a power of two, then Hadamard transforms of blocks.
#pragma once
#include <vector>

#include "kernels/types.h"

namespace bitwright {

// Columns of a block.
int mixed_columns(int columns);
// What each column is multiplied by before it is mixed.
std::vector<float> rotation_factors(int columns);
// y [columns] = H (x * before) * after; null: 1.
void mix(const Kernels& level, const float* x, const float* before, const float* after, int columns, int block, float* y);

}  // namespace bitwright
