#include "cache.h"

#include <algorithm>

namespace bitwright {
namespace {

constexpr int kAhead = 2;  // pages between the one that is read and the one that is fetched

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

// Codes of x [dim], `offset` added, at the places that `at` names; returns the scale.
template <class At> float Cache::quantize(const Steps& steps, const float* x, int offset, At at) const {
  int8_t high[kMostDims], low[kMostDims];
  alignas(kVector) float padded[kMostDims];
  std::fill(std::copy(x, x + dim_, padded), padded + padded_, 0.0f);
  const float scale = steps.digits(padded, padded_, fine_ ? kLargestDigits : 127, high, low);
  for (int i = 0; i < dim_; i++) {
    uint8_t* code = at(i);
    code[0] = uint8_t((fine_ ? high[i] : high[i] * 128 + low[i]) + offset);
    if (fine_) code[plane()] = uint8_t(low[i] + offset);
  }
  return scale;
}

void Cache::write(const Steps& steps, int position, int layer, int kv_head, const float* key, const float* value) {
  uint8_t* page = place(position / kPage, layer, kv_head);
  float* scales = reinterpret_cast<float*>(page + 2 * codes());
  const int i = position % kPage, quads = padded_ / 4;
  uint8_t* key_row = page + size_t(i / kLanes) * quads * kVector + i % kLanes * 4;
  scales[i] = quantize(steps, key, 128, [&](int d) { return key_row + d / 4 * kVector + d % 4; });
  uint8_t* value_column = page + codes() + i / 4 * kVector + i % 4;
  constexpr int tile = kPage / 4 * kVector;
  scales[kPage + i] = quantize(steps, value, 0, [&](int d) { return value_column + d / kLanes * tile + d % kLanes * 4; });
}

void Cache::begin(const Steps& steps, const Request& request, float scale, Query& q) const {
  std::fill(std::copy(request.x, request.x + dim_, q.mixed), q.mixed + padded_, 0.0f);
  q.step = steps.digits(q.mixed, padded_, kLargestDigits, q.high, q.low) * scale;
  q.high_sum = q.low_sum = 0;
  for (int i = 0; i < padded_; i++) q.high_sum += q.high[i], q.low_sum += q.low[i];
  q.first = request.first, q.last = request.last;
  q.top = -1e30f;
  std::fill_n(q.sum, kLanes, 0.0f), std::fill_n(q.mixed, padded_, 0.0f);
}

void Cache::attend(const Steps& steps, int layer, int kv_head, const Request* requests, int count, float scale, float cap,
                   Query* queries) const {
  int first = requests[0].first, last = requests[0].last;
  for (int i = 0; i < count; i++) {
    first = std::min(first, requests[i].first), last = std::max(last, requests[i].last);
    begin(steps, requests[i], cap > 0 ? scale : scale * kLog2E, queries[i]);
  }
  const int neighbour = std::min(kv_head + 1, kv_heads_ - 1), from = first / kPage, end = last / kPage + 1;
  for (int i = from; i < end; i++) {
    Page p = page(i, layer, kv_head);
    p.used = std::min(last + 1 - p.start, kPage);
    const int after = i + kAhead - end;  // among the pages of the neighbour
    p.next = after < 0 ? place(i + kAhead, layer, kv_head) : place(std::min(from + after, end - 1), layer, neighbour);
    steps.attend(p, queries, count, cap);
  }
  for (int i = 0; i < count; i++) {
    float total = 0;
    for (float lane : queries[i].sum) total += lane;
    for (int d = 0; d < dim_; d++) requests[i].out[d] = queries[i].mixed[d] / total;
  }
}

}  // namespace bitwright
