// Keys and values as int8 in the layout of the kernels. A page holds 64 positions of every layer and kv head:
//   keys    [4 tiles of 16 positions][dims / 4][64]: a position is a row, so scores of 16 positions are one product
//   values  [dims / 16][16 quads of positions][64]: a dim is a row, so a weighted sum is a product as well
// Pages lie in stretches that double, 1, 1, 2, 4, 8, ...: inside one the keys of a head are contiguous, and so are its
// values, because short pieces of memory far apart are read at half the speed.
// Codes are stored + 128, because kernels want them unsigned; each position of a head has one scale for its key and one
// for its value. A fine cache has a second plane of lower digits behind each, for about 14 bits. Positions past the end
// may hold anything finite: their weight is zero. Queries and weights are always two digits.
#pragma once
#include <vector>

#include "kernels/types.h"
#include "memory.h"

namespace bitwright {

constexpr int kPage = 64;

constexpr int kQueries = 16;  // that read a page together

// One token's query of one head: x [dims], the positions it sees, and where the result goes.
struct Query {
  const float* x;
  float* out;
  int first, last;
};

// Scratch of one thread.
struct AttentionScratch {
  std::vector<float> scores;
  Digits digits[kQueries];
};

class Cache {
 public:
  Cache(int layers, int kv_heads, int head_dim, bool fine);

  void reserve(int positions);
  void write(const Steps& steps, int position, int layer, int kv_head, const float* key, const float* value);

  // Up to kQueries queries that share a kv head.
  void attend(const Steps& steps, int layer, int kv_head, const Query* queries, int count, float scale, float cap,
              AttentionScratch& scratch) const;

  size_t bytes() const { return size_t(pages()) * page_bytes_; }

 private:
  struct Page {
    uint8_t *keys, *values;
    float *key_scale, *value_scale;  // [64]
  };
  Page page(int index, int layer, int kv_head) const;
  int pages() const { return stretches_.empty() ? 0 : 1 << (stretches_.size() - 1); }
  void prefetch(const uint8_t* stream) const;
  void pad(const float* x, float* out) const;
  size_t plane() const { return size_t(kPage) * padded_; }
  size_t codes() const { return (fine_ ? 2 : 1) * plane(); }  // of the keys or values of a page
  template <class Place> float quantize(const Steps& steps, const float* x, Place place) const;

  int kv_heads_, dim_, padded_;  // dims, and rounded up to a tile
  bool fine_;
  size_t head_bytes_, page_bytes_;
  std::vector<Memory<>> stretches_;
};

}  // namespace bitwright
