// Copies of the weights of a plan, in the order of use, in one stretch of huge pages: streaming them is up to half faster
// than from the pages of a mapped file, which the system may then drop.
#pragma once
#include <deque>
#include <unordered_set>
#include <utility>
#include <vector>

#include "kernels/types.h"
#include "memory.h"

namespace bitwright {

class Team;

class Arena {
 public:
  // A view that `fill` will change; it stays where it is.
  const MatrixView* take(const MatrixView& m);
  // Memory of a file that weights are views of: its pages go back to the system once all is copied, and return if they are read.
  void give_back(const uint8_t* data, size_t bytes) { files_.emplace_back(data, bytes); }
  // Copies once, with so many threads, and lets the views lead to the copies. Nobody may use them meanwhile.
  void fill(Team& team, int threads);
  bool full() const { return bool(memory_); }
  // Whether a stream that began there was copied.
  bool left(const void* stream) const { return left_.count(stream) > 0; }

 private:
  std::deque<MatrixView> views_;
  std::vector<std::pair<const uint8_t*, size_t>> files_;
  std::unordered_set<const void*> left_;
  Memory<> memory_;
};

}  // namespace bitwright
