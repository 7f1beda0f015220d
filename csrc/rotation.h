// The rotation of inputs of src/bitwright/rotation.py: signs times a power of two, Hadamard transforms of blocks, a Hartley
// transform among the blocks.
#pragma once
#include <vector>

#include "kernels/types.h"

namespace bitwright {

// Columns of a block.
int mixed_columns(int columns);
// What each column is multiplied by before it is mixed.
std::vector<float> rotation_factors(int columns);
// The matrix [blocks][blocks] that mixes blocks; empty where there is one, or more than kMostBlocks.
std::vector<float> rotation_across(int columns);
// y [columns] = H (x * before) * after, with the blocks and the matrix of r; null: 1.
void mix(const Kernels& level, const float* x, const float* before, const float* after, const Rotation& r, float* y);

}  // namespace bitwright
