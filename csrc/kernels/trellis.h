// Bitshift trellis with a tail: a 64-bit word holds `per_word` weights, weight i is the 7-bit window of the circular word
// that starts at bit floor(i * 64 / per_word), looked up in a table of 128 entries (after QTIP, arXiv 2406.11235), of which
// the last bit of the window turns the sign: values of the second half are those of the first, negated.
#pragma once
#include <cstdint>

namespace bitwright {

constexpr int kWord = 64, kWordBytes = 8;
constexpr int kWindow = 7, kStates = 1 << kWindow;
constexpr int kLeastPerWord = 11;  // a window moves on by 6 bits at most: it shares one with the next

constexpr bool has_kernel(int per_word) { return per_word >= 12 && per_word <= kWord && per_word % (per_word < 32 ? 4 : 8) == 0; }

template <int N> constexpr int kEights = (N + 7) / 8;  // of the columns of a word

constexpr int window_start(int per_word, int i) { return i * kWord / per_word; }

// Columns whose windows start at the same bit of a byte are a stride apart: one rotation of the word brings all of them to the
// beginnings of its bytes. Where a word has an odd number of quads it is every other byte, and those between are for columns
// half a stride on. The column whose window rotation `place` / 8 brings to byte `place` % 8; -1: none.
constexpr int strided_column(int per_word, int place) {
  const int bytes = per_word % 8 ? 2 : 1, stride = per_word * bytes / 8;
  const int first = place / 8 + place % bytes * ((stride + 1) / 2);
  return first < stride ? place % 8 / bytes * stride + first : -1;
}

// Windows to be chosen for rows [rows][columns] of numbers in units of the table.
struct TrellisJob {
  int rows, columns, per_word;
  const float* x;
  const float* importance;  // [rows][columns]: of each squared error; null: 1
  // Upper triangular [columns][columns], one word at most: x - value = e u, the errors e of earlier columns change the
  // targets of later ones, and sum e^2 is least. Null: columns are independent.
  const float* u;
  const float* table;  // [kStates]
  uint8_t* windows;    // [rows][columns]
};

}  // namespace bitwright
