// Activations as int8 codes in the order in which the kernels read them.
#pragma once
#include "kernels/types.h"
#include "memory.h"

namespace bitwright {

// Blocks of one matrix's input. The buffers grow to the largest matrix they have served and are reused.
class ActivationBlocks {
 public:
  // Room for `count` tokens of the level's blocks, at most kMaxBlocks of them. Blocks may then be filled by different threads.
  void resize(const Kernels& level, const MatrixView& m, int count);
  // Quantizes tokens of block b; x is token 0 of block 0.
  void fill(const Kernels& level, const MatrixView& m, const float* x, size_t stride, int b);
  void fill_all(const Kernels& level, const MatrixView& m, const float* x, size_t stride, int count);

  const Activations* blocks() const { return blocks_; }
  int size() const { return size_; }

 private:
  Activations blocks_[kMaxBlocks];
  int size_ = 0;
  Memory<> buffer_[kMaxBlocks];
  size_t capacity_[kMaxBlocks] = {};
};

// y [count][stride_y] = W x, with up to `threads` threads of the shared team.
void multiply(const Kernels& level, const MatrixView& m, const float* x, size_t stride_x, int count, float* y,
              size_t stride_y, int threads);

}  // namespace bitwright
