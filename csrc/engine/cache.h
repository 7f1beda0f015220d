// Keys and values as int8 in the layout of the kernels. A page holds 64 positions of one layer and kv head:
//   keys    [4 tiles of 16 positions][dims / 4][64]: a position is a row, so scores of 16 positions are one product
//   values  [dims / 16][16 quads of positions][64]: a dim is a row, so a weighted sum is a product as well
//   scales  of the 64 keys, then of the values
// Pages lie in stretches that double, 1, 1, 2, 4, 8, ...: inside one those of a head follow each other, and are read in that
// order, because short pieces of memory far apart are read at half the speed.
// A fine cache has a second plane of lower digits behind each plane of codes, for about 14 bits. Positions past the end
// may hold anything finite: their weight is zero. Queries and weights always have two digits.
// A query gathers ranges of kRange positions one by one, each from nothing, and what they gave is folded in their order:
// the bits do not depend on who gathered which.
#pragma once
#include <vector>

#include "kernels/types.h"
#include "memory.h"

namespace bitwright {

constexpr int kQueries = 16;       // that read a page together
constexpr int kRange = 8 * kPage;  // positions

// One token's query of one head: x [dims], and the positions it sees.
struct Request {
  const float* x;
  int first, last;

  bool sees(int range) const { return first < (range + 1) * kRange && last >= range * kRange; }
};

class Cache {
 public:
  // The pages that are read after others: those of a head from this position on.
  struct Place {
    int kv_head, position;
  };

  Cache(int layers, int kv_heads, int head_dim, bool fine);

  void reserve(int positions);
  void write(const Steps& steps, int position, int layer, int kv_head, const float* key, const float* value);

  void begin(const Steps& steps, const Request& request, float scale, float cap, Query& query) const;
  // Up to kQueries queries that share a kv head gather a range.
  void gather(const Steps& steps, int layer, int kv_head, int range, Query* queries, int count, float cap, Place next) const;
  // Asks for the pages that are gathered first.
  void fetch(int layer, Place first, int last) const;

  size_t bytes() const { return size_t(pages()) * page_bytes_; }

 private:
  uint8_t* place(int index, int layer, int kv_head) const;
  Page page(int index, int layer, int kv_head) const;
  int pages() const { return stretches_.empty() ? 0 : 1 << (stretches_.size() - 1); }
  size_t plane() const { return size_t(kPage) * padded_; }
  size_t codes() const { return (fine_ ? 2 : 1) * plane(); }  // of the keys or values of a page
  float quantize(const Steps& steps, const float* x, int offset, uint8_t* high, uint8_t* low) const;

  int kv_heads_, dim_, padded_;  // dims, and rounded up to a tile
  bool fine_;
  size_t head_bytes_, page_bytes_;
  std::vector<Memory<>> stretches_;
};

}  // namespace bitwright
