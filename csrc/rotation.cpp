#include "rotation.h"

#include <algorithm>
#include <cmath>

namespace bitwright {

constexpr double kPi = 3.14159265358979323846;

int mixed_columns(int columns) { return std::min(columns & -columns, kMostMixed); }

std::vector<float> rotation_factors(int columns) {
  float size = 1;
  for (int block = mixed_columns(columns); block >= 4; block /= 4) size /= 2;
  std::vector<float> factors(columns);
  for (int k = 0; k < columns; k++) {
    uint32_t h = uint32_t(k) + 1;  // signs are bits of MurmurHash3's finalizer
    h = (h ^ h >> 16) * 0x85EBCA6Bu, h = (h ^ h >> 13) * 0xC2B2AE35u, h ^= h >> 16;
    factors[k] = h & 1 ? size : -size;
  }
  return factors;
}

std::vector<float> rotation_across(int columns) {
  const int blocks = columns / mixed_columns(columns);
  if (blocks == 1 || blocks > kMostBlocks) return {};
  std::vector<float> matrix(size_t(blocks) * blocks);
  for (int i = 0; i < blocks; i++)
    for (int k = 0; k < blocks; k++) {
      const double angle = 2 * kPi * (i * k % blocks) / blocks;
      matrix[i * blocks + k] = float((std::cos(angle) + std::sin(angle)) / std::sqrt(double(blocks)));
    }
  return matrix;
}

void mix(const Kernels& level, const float* x, const float* before, const float* after, const Rotation& r, float* y) {
  static thread_local std::vector<float> blocks;
  if (r.across) blocks.resize(r.columns);
  float* mixed = r.across ? blocks.data() : y;
  for (int k = 0; k < r.columns; k++) mixed[k] = before ? x[k] * before[k] : x[k];
  for (int k = 0; k < r.columns; k += r.block) level.steps.hadamard(mixed + k, r.block);
  if (r.across) level.steps.across(r.across, mixed, r.columns / r.block, r.block, y);
  for (int k = 0; after && k < r.columns; k++) y[k] *= after[k];
}

}  // namespace bitwright
