// The arithmetic written down once more, straight from its definition and as slow as that is: what kernels are checked against.
#pragma once
#include "kernels/types.h"

namespace bitwright {

// y [count][rows] = W x, x [count][columns].
void reference_multiply(const MatrixView& m, const float* x, int count, float* y);

}  // namespace bitwright
