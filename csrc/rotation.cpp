#include "rotation.h"

#include <algorithm>

namespace bitwright {

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

void mix(const Kernels& level, const float* x, const float* before, const float* after, int columns, int block, float* y) {
  for (int k = 0; k < columns; k++) y[k] = before ? x[k] * before[k] : x[k];
  for (int k = 0; k < columns; k += block) level.steps.hadamard(y + k, block);
  for (int k = 0; after && k < columns; k++) y[k] *= after[k];
}

}  // namespace bitwright
