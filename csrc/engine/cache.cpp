#include "cache.h"

#include <algorithm>

namespace bitwright {
// Codes of x [dim] at the places that `place` names; returns the scale.
template <class Place> float Cache::quantize(const Steps& steps, const float* x, Place place) const {
  int8_t high[kMostDims], low[kMostDims];
  const float scale = steps.digits(x, dim_, fine_ ? kLargestDigits : 127, high, low);
  for (int i = 0; i < dim_; i++) {
    uint8_t* at = place(i);
    at[0] = uint8_t((fine_ ? high[i] : high[i] * 128 + low[i]) + 128);
    if (fine_) at[plane()] = uint8_t(low[i] + 128);
  }
  return scale;
}

Cache::Cache(int layers, int kv_heads, int head_dim, bool fine)
    : kv_heads_(kv_heads), dim_(head_dim), padded_((head_dim + kLanes - 1) / kLanes * kLanes), fine_(fine) {
  head_bytes_ = (fine ? 4 : 2) * plane() + 2 * kPage * sizeof(float);
  page_bytes_ = head_bytes_ * kv_heads * layers;
}

void Cache::reserve(int positions) {
  while (int(pages_.size()) * kPage < positions) pages_.push_back(allocate_zeros(page_bytes_));
}

Cache::Page Cache::page(int index, int layer, int kv_head) const {
  uint8_t* base = pages_[index].get() + (size_t(layer) * kv_heads_ + kv_head) * head_bytes_;
  uint8_t* values = base + (fine_ ? 2 : 1) * plane();
  float* scales = reinterpret_cast<float*>(values + (fine_ ? 2 : 1) * plane());
  return {base, values, scales, scales + kPage};
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

// Pages lie far apart, where no hardware prefetcher finds them.
void Cache::prefetch(const uint8_t* stream) const {
  for (size_t i = 0; i < (fine_ ? 2 : 1) * plane(); i += kVector) __builtin_prefetch(stream + i, 0, 2);
}

void Cache::attend(const Steps& steps, int layer, int kv_head, const float* query, int first, int last, float scale, float cap,
                   AttentionScratch& scratch, float* out) const {
  const int first_page = first / kPage, last_page = last / kPage, origin = first_page * kPage, count = last + 1 - origin;
  scratch.scores.resize(size_t(last_page + 1 - first_page) * kPage);
  float* scores = scratch.scores.data();
  Digits& x = scratch.digits;
  const auto sums = [&](const uint8_t* codes, int quads, int tiles, float* to) {
    steps.sums(codes, size_t(quads) * kVector, x, quads, tiles, to);
    if (!fine_) return;
    alignas(kVector) float low[kMostDims];
    steps.sums(codes + plane(), size_t(quads) * kVector, x, quads, tiles, low);
    for (int i = 0; i < tiles * kLanes; i++) to[i] = to[i] * 128 + low[i];
  };

  alignas(kVector) float part[kMostDims];
  std::fill(part, part + padded_, 0.0f);
  std::copy(query, query + dim_, part);
  steps.split(part, padded_, x);
  for (int i = first_page; i <= last_page; i++) {
    const Page p = page(i, layer, kv_head);
    prefetch(i < last_page ? page(i + 1, layer, kv_head).keys : page(first_page, layer, kv_head).values);
    float* to = scores + (i - first_page) * kPage;
    sums(p.keys, padded_ / 4, (std::min(last + 1 - i * kPage, kPage) + kLanes - 1) / kLanes, to);
    for (int j = 0; j < kPage; j++) to[j] *= x.step * scale * p.key_scale[j];
  }
  const int skip = first - origin;
  if (cap > 0) steps.soft_cap(scores + skip, cap, count - skip);
  const float total = steps.softmax(scores + skip, count - skip);
  std::fill(scores, scores + skip, 0.0f);
  std::fill(scores + count, scores + scratch.scores.size(), 0.0f);

  std::fill(out, out + dim_, 0.0f);
  for (int i = first_page; i <= last_page; i++) {
    const Page p = page(i, layer, kv_head);
    if (i < last_page) prefetch(page(i + 1, layer, kv_head).values);
    float weights[kPage];
    for (int j = 0; j < kPage; j++) weights[j] = scores[(i - first_page) * kPage + j] * p.value_scale[j];
    steps.split(weights, kPage, x);
    sums(p.values, kPage / 4, padded_ / kLanes, part);
    for (int j = 0; j < dim_; j++) out[j] += x.step * part[j];
  }
  for (int d = 0; d < dim_; d++) out[d] /= total;
}

}  // namespace bitwright
