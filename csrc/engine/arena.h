// Copies of the weights of a plan, in the order of use, in one stretch of huge pages: streaming them is up to half faster
// than from the pages of a mapped file, which the system may then drop.
#pragma once
#include <deque>

#include "kernels/types.h"
#include "memory.h"

namespace bitwright {

class Arena {
 public:
  // A view whose memory will lie in the arena once `fill` has been called. Views stay where they are.
  const MatrixView* take(const MatrixView& m);
  void fill();

 private:
  std::deque<MatrixView> views_;
  Memory<> memory_;
};

}  // namespace bitwright
