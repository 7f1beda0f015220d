#include "cache.h"

#include <algorithm>

namespace bitwright {
namespace {

constexpr int kPagesAhead = 2;  // pages between the one that is read and the one that is fetched

}  // namespace

Cache::Cache(int layers, int kv_heads, int head_dim, bool fine)
    : kv_heads_(kv_heads), dim_(head_dim), padded_((head_dim + kLanes - 1) / kLanes * kLanes), fine_(fine) {
  head_bytes_ = 2 * codes() + 2 * kPage * sizeof(float);
  page_bytes_ = head_bytes_ * kv_heads * layers;
}

void Cache::reserve(int positions) {
  while (pages() * kPage < positions) {
    const size_t count = size_t(std::max(pages(), 1)) * (page_bytes_ / head_bytes_);
    uint8_t* at = stretches_.emplace_back(allocate(count * head_bytes_)).get();
    // Any code is finite, scales are so once they are zero.
    for (size_t i = 0; i < count; i++, at += head_bytes_) std::memset(at + 2 * codes(), 0, 2 * kPage * sizeof(float));
  }
}

uint8_t* Cache::place(int index, int layer, int kv_head) const {
  const int stretch = index ? 32 - __builtin_clz(unsigned(index)) : 0;
  const size_t first = index ? size_t(1) << (stretch - 1) : 0, count = std::max(first, size_t(1));
  return stretches_[stretch].get() + ((size_t(layer) * kv_heads_ + kv_head) * count + index - first) * head_bytes_;
}

Page Cache::page(int index, int layer, int kv_head) const {
  const uint8_t* at = place(index, layer, kv_head);
  const float* scales = reinterpret_cast<const float*>(at + 2 * codes());
  return {at, at + codes(), scales, scales + kPage, padded_, fine_, index * kPage, kPage, at};
}

// Codes of x [dim], `offset` added, and zeros up to whole tiles; those of a cache that is not fine are in `high`. Returns the
// scale.
float Cache::quantize(const Steps& steps, const float* x, int offset, uint8_t* high, uint8_t* low) const {
  alignas(kVector) float padded[kMostDims];
  alignas(kVector) int8_t digits[2][kMostDims];
  std::fill(std::copy(x, x + dim_, padded), padded + padded_, 0.0f);
  const float scale = steps.digits(padded, padded_, fine_ ? kLargestDigits : 127, digits[0], digits[1]);
  const int n = padded_;  // a store to bytes might change members, for all that the compiler knows
  if (fine_)
    for (int i = 0; i < n; i++) high[i] = uint8_t(digits[0][i] + offset), low[i] = uint8_t(digits[1][i] + offset);
  else
    for (int i = 0; i < n; i++) high[i] = uint8_t(digits[0][i] * 128 + digits[1][i] + offset);
  return scale;
}

void Cache::write(const Steps& steps, int position, int layer, int kv_head, const float* key, const float* value) {
  uint8_t* page = place(position / kPage, layer, kv_head);
  float* scales = reinterpret_cast<float*>(page + 2 * codes());
  const int i = position % kPage, dims = padded_, planes = fine_ ? 2 : 1;
  constexpr int tile = kPage / 4 * kVector;
  uint8_t digits[2][kMostDims];
  scales[i] = quantize(steps, key, 128, digits[0], digits[1]);
  for (int p = 0; p < planes; p++) {
    uint8_t* row = page + p * plane() + i / kLanes * (dims / 4) * kVector + i % kLanes * 4;
    for (int d = 0; d < dims; d += 4) std::memcpy(row + d * kLanes, digits[p] + d, 4);
  }
  scales[kPage + i] = quantize(steps, value, 0, digits[0], digits[1]);
  for (int p = 0; p < planes; p++) {
    uint8_t* column = page + codes() + p * plane() + i / 4 * kVector + i % 4;
    for (int d = 0; d < dims; d += kLanes, column += tile)
      for (int lane = 0; lane < kLanes; lane++) column[lane * 4] = digits[p][d + lane];
  }
}

void Cache::begin(const Steps& steps, const Request& request, float scale, float cap, Query& q) const {
  std::fill(std::copy(request.x, request.x + dim_, q.mixed), q.mixed + padded_, 0.0f);
  q.step = steps.digits(q.mixed, padded_, kLargestDigits, q.high, q.low) * (cap > 0 ? scale : scale * kLog2E);
  q.high_sum = q.low_sum = 0;
  for (int i = 0; i < padded_; i++) q.high_sum += q.high[i], q.low_sum += q.low[i];
  q.first = request.first, q.last = request.last;
}

void Cache::gather(const Steps& steps, int layer, int kv_head, int range, Query* queries, int count, float cap, Place next) const {
  int first = queries[0].first, last = queries[0].last;
  for (Query* q = queries; q < queries + count; q++) {
    first = std::min(first, q->first), last = std::max(last, q->last);
    q->top = kNoScore;
    std::fill_n(q->sum, kLanes, 0.0f), std::fill_n(q->mixed, padded_, 0.0f);
  }
  const int from = std::max(first, range * kRange) / kPage, end = std::min(last, (range + 1) * kRange - 1) / kPage + 1;
  for (int i = from; i < end; i++) {
    Page p = page(i, layer, kv_head);
    p.used = std::min(last + 1 - p.start, kPage);
    const int ahead = i + kPagesAhead, after = std::min(next.position / kPage + ahead - end, last / kPage);
    p.next = ahead < end ? place(ahead, layer, kv_head) : place(after, layer, next.kv_head);
    steps.attend(p, queries, count, cap);
  }
}

void Cache::fetch(int layer, Place first, int last) const {
  const int from = first.position / kPage, end = std::min(from + kPagesAhead, last / kPage + 1);
  for (int i = from; i < end; i++) {
    const uint8_t* at = place(i, layer, first.kv_head);
    for (size_t byte = 0; byte < head_bytes_; byte += kVector) __builtin_prefetch(at + byte);
  }
}

}  // namespace bitwright
