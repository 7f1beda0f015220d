#include "cache.h"

#include <algorithm>
#include <cmath>

namespace bitwright {
namespace {

// The factor between an integer of two digits, high * 128 + low, and the float it stands for.
constexpr int kDigit = 128, kLargest = 127 * kDigit;

struct Digits {
  float step;
  int32_t high_sum, low_sum;
};

// x [n] as digits in the order of `pair`: [n / 4][2][4].
Digits split(const float* x, int n, int8_t* out) {
  float top = 0;
  for (int i = 0; i < n; i++) top = std::max(top, std::fabs(x[i]));
  Digits d{top / kLargest, 0, 0};
  const float inverse = d.step > 0 ? 1 / d.step : 0;
  for (int i = 0; i < n; i++) {
    const int v = int(std::nearbyint(x[i] * inverse));
    const int high = (v + kDigit / 2) >> 7, low = v - high * kDigit;
    int8_t* quad = out + i / 4 * 8 + i % 4;
    quad[0] = int8_t(high), quad[4] = int8_t(low);
    d.high_sum += high, d.low_sum += low;
  }
  return d;
}

// 16 sums of (code - 128) * x, the codes being unsigned.
void product(const Steps& steps, const uint8_t* codes, const int8_t* digits, int quads, const Digits& d, float* out) {
  alignas(kVector) int32_t sums[2 * kLanes];
  steps.pair(codes, digits, quads, sums);
  for (int i = 0; i < kLanes; i++)
    out[i] = float((sums[i] - 128 * d.high_sum) * kDigit + (sums[kLanes + i] - 128 * d.low_sum));
}

}  // namespace

// Codes of x [dim] at the places that `place` names; returns the scale.
template <class Place> float Cache::quantize(const float* x, Place place) const {
  float top = 0;
  for (int i = 0; i < dim_; i++) top = std::max(top, std::fabs(x[i]));
  const float scale = top / (fine_ ? kLargest : 127), inverse = scale > 0 ? 1 / scale : 0;
  for (int i = 0; i < dim_; i++) {
    const int v = int(std::nearbyint(x[i] * inverse)), high = fine_ ? (v + kDigit / 2) >> 7 : v;
    uint8_t* at = place(i);
    at[0] = uint8_t(high + 128);
    if (fine_) at[plane()] = uint8_t(v - high * kDigit + 128);
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

void Cache::write(int position, int layer, int kv_head, const float* key, const float* value) {
  const Page p = page(position / kPage, layer, kv_head);
  const int i = position % kPage, quads = padded_ / 4;
  uint8_t* key_row = p.keys + size_t(i / kLanes) * quads * kVector + i % kLanes * 4;
  p.key_scale[i] = quantize(key, [&](int d) { return key_row + d / 4 * kVector + d % 4; });
  uint8_t* value_column = p.values + i / 4 * kVector + i % 4;
  constexpr int tile = kPage / 4 * kVector;
  p.value_scale[i] = quantize(value, [&](int d) { return value_column + d / kLanes * tile + d % kLanes * 4; });
}

void Cache::attend(const Steps& steps, int layer, int kv_head, const float* query, int first, int last, float scale, float cap,
                   AttentionScratch& scratch, float* out) const {
  const int first_page = first / kPage, last_page = last / kPage, origin = first_page * kPage, count = last + 1 - origin;
  scratch.scores.resize(size_t(last_page + 1 - first_page) * kPage);
  float* scores = scratch.scores.data();
  float sums[kLanes];
  const auto fine_product = [&](const uint8_t* codes, int quads, const Digits& d) {
    product(steps, codes, scratch.digits, quads, d, sums);
    if (!fine_) return;
    float low[kLanes];
    product(steps, codes + plane(), scratch.digits, quads, d, low);
    for (int i = 0; i < kLanes; i++) sums[i] = sums[i] * kDigit + low[i];
  };

  std::memset(scratch.digits, 0, size_t(2) * padded_);
  const Digits q = split(query, dim_, scratch.digits);
  for (int at = first / kLanes * kLanes; at <= last; at += kLanes) {
    const Page p = page(at / kPage, layer, kv_head);
    fine_product(p.keys + size_t(at % kPage) / kLanes * (padded_ / 4) * kVector, padded_ / 4, q);
    const float* key_scale = p.key_scale + at % kPage;
    for (int i = 0; i < kLanes; i++) scores[at - origin + i] = sums[i] * (q.step * scale * key_scale[i]);
  }
  const int skip = first - origin;
  if (cap > 0) steps.soft_cap(scores + skip, cap, count - skip);
  const float total = steps.softmax(scores + skip, count - skip);
  std::fill(scores, scores + skip, 0.0f);
  std::fill(scores + count, scores + scratch.scores.size(), 0.0f);

  std::fill(out, out + dim_, 0.0f);
  for (int i = first_page; i <= last_page; i++) {
    const Page p = page(i, layer, kv_head);
    float weights[kPage];
    for (int j = 0; j < kPage; j++) weights[j] = scores[(i - first_page) * kPage + j] * p.value_scale[j];
    const Digits w = split(weights, kPage, scratch.digits);
    for (int d = 0; d < dim_; d += kLanes) {
      fine_product(p.values + size_t(d) / kLanes * (kPage / 4) * kVector, kPage / 4, w);
      for (int j = 0; j < std::min(kLanes, dim_ - d); j++) out[d + j] += w.step * sums[j];
    }
  }
  for (int d = 0; d < dim_; d++) out[d] /= total;
}

}  // namespace bitwright
