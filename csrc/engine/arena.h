// Copies of the weights of a plan, in the order of use, in one stretch of huge pages: streaming them is up to half faster
// than from the pages of a mapped file, which the system may then drop.
#pragma once
#include <deque>

#include "kernels/types.h"
#include "memory.h"

namespace bitwright {

class Team;

class Arena {
 public:
  // A view that `fill` will change; it stays where it is.
  const MatrixView* take(const MatrixView& m);
  // Copies once, with so many threads, and lets the views lead to the copies. Nobody may use them meanwhile.
  void fill(Team& team, int threads);

 private:
  std::deque<MatrixView> views_;
  Memory<> memory_;
};

}  // namespace bitwright
