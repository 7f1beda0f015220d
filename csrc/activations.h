// Activations as int8 codes in the order in which the kernels read them.
#pragma once
#include "kernels/types.h"
#include "memory.h"

namespace bitwright {

// Blocks of one matrix's input. The buffer grows to the largest matrix it has served and is reused.
class ActivationBlocks {
 public:
  // x [count][stride]; as few blocks as the level allows, at most kMaxBlocks * level.tokens tokens.
  void fill(const Kernels& level, const MatrixView& m, const float* x, size_t stride, int count);

  const Activations* blocks() const { return blocks_; }
  int size() const { return size_; }

 private:
  void fill_block(const Kernels& level, const MatrixView& m, const float* x, size_t stride, int b, int used, int tokens);

  Activations blocks_[kMaxBlocks];
  int size_ = 0;
  Memory<> buffer_[kMaxBlocks];
  size_t capacity_[kMaxBlocks] = {};
  Memory<int8_t> rows_;
  size_t rows_capacity_ = 0;
};

// y [count][stride_y] = W x, with up to `threads` threads of the shared team.
void multiply(const Kernels& level, const MatrixView& m, const float* x, size_t stride_x, int count, float* y,
              size_t stride_y, int threads);

}  // namespace bitwright
