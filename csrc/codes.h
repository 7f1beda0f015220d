// Single codes and rows of a packed matrix, by the address formula of the layout.
#pragma once
#include "kernels/types.h"

namespace bitwright {

float from_half(uint16_t half);

// The code of a dense term.
int dense_code(const Term& t, int row, int column);

// out [columns]: the weights of one row of a matrix of dense terms.
void decode_row(const MatrixView& m, int row, float* out);

}  // namespace bitwright
