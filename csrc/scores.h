// What is kept of next-token predictions: softmax statistics, computed where the logits are.
#pragma once
#include "kernels/types.h"

namespace bitwright {

struct Scores {
  float *nll, *confidence, *entropy, *power, *divergence;  // [rows]; divergence only with a parent
  int32_t* top1;
};

// Logits [rows][columns] become log-probabilities in place. `parent`: log-probabilities of the model to compare with.
void score_rows(const Kernels& level, float* logits, int rows, int columns, const int64_t* targets, const float* parent,
                const Scores& out, int threads);

}  // namespace bitwright
