// A weight as the kernels read it: checked terms, owned or viewed memory.
#pragma once
#include <algorithm>
#include <deque>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/types.h"
#include "memory.h"

namespace bitwright {

inline int parts(int n, int size) { return (n + size - 1) / size; }

inline void require(bool ok, const std::string& message) {
  if (!ok) throw std::invalid_argument(message);
}

// An array that somebody else owns.
struct Array {
  bool given = false;
  const uint8_t* data = nullptr;  // null also where it is empty
  std::vector<size_t> shape;
  size_t bytes = 0;

  explicit operator bool() const { return given; }
};

// The fields of `Dense` and `Sparse` in bitwright/protocols.py; `where` is empty for a dense term.
struct TermSource {
  std::string where;
  bool base3 = false, trellis = false;
  int per_word = 0;
  int bits = 0;
  Array codes, table, values, scales, mins, starts, counts, inputs, picked;
  float offset = 0;
  int group = 0;  // 0: the whole row
  int block = 0;
  int activation_group = 0;
  bool rotated = false;
};

// Whether activations are the same, in the same order, for matrices of the same columns and groups.
inline bool same_order(const Runs& a, const Runs& b) {
  return a.unit == b.unit && a.order == b.order && a.inputs == b.inputs && !a.picked == !b.picked &&
         std::equal(a.picked, a.picked + a.places, b.picked, b.picked + b.places);
}

class Matrix {
 public:
  // Throws std::invalid_argument with a sentence where shapes do not fit each other.
  Matrix(const std::vector<TermSource>& terms, int rows, int columns, const float* bias);
  Matrix(Matrix&&) = default;  // memory stays where it is, so views into it stay right

  const MatrixView& view() const { return view_; }
  // Bytes read for one token.
  size_t bytes() const { return bytes_; }

 private:
  void add_dense(const TermSource& source, Term& term);
  void add_codes(const TermSource& source, Term& term);
  void add_words(const TermSource& source, Term& term);
  void add_sparse(const TermSource& source, Term& term);
  void add_bitmap(const TermSource& source, Term& term);
  void add_scales(const TermSource& source, Term& term, int groups);
  void bitmap_of_offsets(const TermSource& source, Term& term);
  void keep_tail(Term& term, size_t value_bytes);
  int runs_of(int unit, const float* inputs, Order order = Order::quads);
  int runs_of_picked(const Array& picked);
  int add_runs(const Runs& wanted);
  const float* inputs_of(const Array& inputs);
  void rotate_inputs();
  void place_scratch();
  const uint8_t* hold(const Array& array);
  template <class T> T* own(size_t count) {
    memory_.push_back(allocate_zeros(count * sizeof(T)));
    return reinterpret_cast<T*>(memory_.back().get());
  }

  MatrixView view_{};
  size_t bytes_ = 0;
  std::vector<Memory<>> memory_;
  std::deque<std::vector<int>> tables_;
  std::deque<std::vector<Run>> kinds_;
  std::vector<std::pair<const uint8_t*, const float*>> inputs_;  // given and converted
};

}  // namespace bitwright
