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

// A distillation: rows [rows][columns] of logits of a student and of its parent, each float32 or, where `brief`, bfloat16.
struct Following {
  const void* student;
  void* parent;  // becomes the gradient of the mean of w divergence(parent, student) over rows in the student's logits
  int rows, columns;
  bool brief;
  // w = 1 + ambiguity * (product of both entropies)^sharpness, entropies as shares of log(columns).
  double ambiguity, sharpness;
};

// The mean over rows.
double follow_rows(const Kernels& level, const Following& f);

}  // namespace bitwright
