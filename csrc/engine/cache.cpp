#include "cache.h"

#include <algorithm>
#include <cmath>

namespace bitwright {
// Codes of x [dim] at the places that `place` names; returns the scale.
template <class Place> float Cache::quantize(const Steps& steps, const float* x, Place place) const {
  int8_t high[kMostDims], low[kMostDims];
  alignas(kVector) float padded[kMostDims];
  pad(x, padded);
  const float scale = steps.digits(padded, padded_, fine_ ? kLargestDigits : 127, high, low);
  for (int i = 0; i < dim_; i++) {
    uint8_t* at = place(i);
    at[0] = uint8_t((fine_ ? high[i] : high[i] * 128 + low[i]) + 128);
    if (fine_) at[plane()] = uint8_t(low[i] + 128);
  }
  return scale;
}

void Cache::pad(const float* x, float* out) const {
  std::copy(x, x + dim_, out);
  std::fill(out + dim_, out + padded_, 0.0f);
}

Cache::Cache(int layers, int kv_heads, int head_dim, bool fine)
    : kv_heads_(kv_heads), dim_(head_dim), padded_((head_dim + kLanes - 1) / kLanes * kLanes), fine_(fine) {
  head_bytes_ = 2 * codes() + 2 * kPage * sizeof(float);
  page_bytes_ = head_bytes_ * kv_heads * layers;
}

void Cache::reserve(int positions) {
  while (pages() * kPage < positions) {
    const int count = std::max(pages(), 1);
    uint8_t* at = stretches_.emplace_back(allocate(count * page_bytes_)).get();
    // Any code is finite, scales are so once they are zero.
    for (size_t i = 0; i < page_bytes_ / head_bytes_; i++, at += count * head_bytes_)
      std::memset(at + 2 * count * codes(), 0, count * 2 * kPage * sizeof(float));
  }
}

Cache::Page Cache::page(int index, int layer, int kv_head) const {
  const int stretch = index ? 32 - __builtin_clz(unsigned(index)) : 0;
  const size_t first = index ? size_t(1) << (stretch - 1) : 0, count = std::max(first, size_t(1)), at = index - first;
  uint8_t* base = stretches_[stretch].get() + (size_t(layer) * kv_heads_ + kv_head) * count * head_bytes_;
  float* scales = reinterpret_cast<float*>(base + 2 * count * codes()) + at * 2 * kPage;
  return {base + at * codes(), base + (count + at) * codes(), scales, scales + kPage};
}

void Cache::write(const Steps& steps, int position, int layer, int kv_head, const float* key, const float* value) {
  const Page p = page(position / kPage, layer, kv_head);
  const int i = position % kPage, quads = padded_ / 4;
  uint8_t* key_row = p.keys + size_t(i / kLanes) * quads * kVector + i % kLanes * 4;
  p.key_scale[i] = quantize(steps, key, [&](int d) { return key_row + d / 4 * kVector + d % 4; });
  uint8_t* value_column = p.values + i / 4 * kVector + i % 4;
  constexpr int tile = kPage / 4 * kVector;
  p.value_scale[i] = quantize(steps, value, [&](int d) { return value_column + d / kLanes * tile + d % kLanes * 4; });
}

void Cache::prefetch(const uint8_t* stream) const {
  for (size_t i = 0; i < codes(); i += kVector) __builtin_prefetch(stream + i, 0, 2);
}

void Cache::attend(const Steps& steps, int layer, int kv_head, const Query* queries, int count, float scale, float cap,
                   AttentionScratch& scratch) const {
  int first = queries[0].first, last = queries[0].last;
  for (int i = 1; i < count; i++) first = std::min(first, queries[i].first), last = std::max(last, queries[i].last);
  const int first_page = first / kPage, pages = last / kPage + 1 - first_page, origin = first_page * kPage;
  const size_t stride = size_t(pages) * kPage;
  if (scratch.scores.size() < stride * count) scratch.scores.resize(stride * count);
  float* scores = scratch.scores.data();
  Digits* x = scratch.digits;
  const size_t lower = fine_ ? plane() : 0;

  for (int i = 0; i < count; i++) {
    alignas(kVector) float padded[kMostDims];
    pad(queries[i].x, padded);
    steps.split(padded, padded_, x[i]);
    x[i].step *= scale;
  }
  for (int i = 0; i < pages; i++) {
    const Page p = page(first_page + i, layer, kv_head);
    prefetch(i + 1 < pages ? page(first_page + i + 1, layer, kv_head).keys : page(first_page, layer, kv_head).values);
    const int tiles = (std::min(last + 1 - origin - i * kPage, kPage) + kLanes - 1) / kLanes;
    steps.products({p.keys, size_t(padded_ / 4) * kVector, lower, padded_ / 4, tiles, p.key_scale}, x, count, scores + i * kPage,
                   stride);
  }

  float total[kQueries];
  for (int i = 0; i < count; i++) {
    float* row = scores + i * stride;
    const int from = queries[i].first - origin, to = queries[i].last + 1 - origin;
    if (cap > 0) steps.soft_cap(row + from, cap, to - from);
    std::fill(row, row + from, -INFINITY);
    std::fill(row + to, row + stride, -INFINITY);
    total[i] = steps.softmax(row, int(stride));
  }

  alignas(kVector) float sums[kQueries * kMostDims];
  std::fill(sums, sums + count * padded_, 0.0f);
  for (int i = 0; i < pages; i++) {
    const Page p = page(first_page + i, layer, kv_head);
    if (i + 1 < pages) prefetch(page(first_page + i + 1, layer, kv_head).values);
    for (int j = 0; j < count; j++) {
      float weights[kPage];
      for (int k = 0; k < kPage; k++) weights[k] = scores[j * stride + i * kPage + k] * p.value_scale[k];
      steps.split(weights, kPage, x[j]);
    }
    steps.products({p.values, kPage / 4 * kVector, lower, kPage / 4, padded_ / kLanes, nullptr}, x, count, sums, padded_);
  }
  for (int i = 0; i < count; i++)
    for (int d = 0; d < dim_; d++) queries[i].out[d] = sums[size_t(i) * padded_ + d] / total[i];
}

}  // namespace bitwright
