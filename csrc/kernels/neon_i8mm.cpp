// Armv8.2 with dot products and i8mm.
#include <arm_neon.h>

#include <cstring>

#include "types.h"

namespace bitwright::neon_i8mm {
constexpr int kRowsAtOnce = 4;
#include "viterbi.inl"
#include "kernels.inl"
#include "masked.inl"
#include "steps.inl"
#include "neon.inl"

extern const Kernels kernels;
const Kernels kernels = kernels_of<Policy>("neon-i8mm", steps_of<Policy>());

}  // namespace bitwright::neon_i8mm
