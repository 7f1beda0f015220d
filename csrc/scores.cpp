#include "scores.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <vector>

#include "team.h"

namespace bitwright {
namespace {

// Row of float32 or bfloat16 numbers as float32.
void widen(const void* rows, bool brief, size_t at, int count, float* out) {
  if (!brief) {
    std::memcpy(out, static_cast<const float*>(rows) + at, count * sizeof(float));
    return;
  }
  const uint16_t* x = static_cast<const uint16_t*>(rows) + at;
  for (int i = 0; i < count; i++) {
    const uint32_t bits = uint32_t(x[i]) << 16;
    std::memcpy(out + i, &bits, sizeof bits);
  }
}

// The inverse, half to even; the numbers are finite.
void narrow(const float* x, int count, bool brief, void* rows, size_t at) {
  if (!brief) {
    std::memcpy(static_cast<float*>(rows) + at, x, count * sizeof(float));
    return;
  }
  uint16_t* out = static_cast<uint16_t*>(rows) + at;
  for (int i = 0; i < count; i++) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    out[i] = uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
  }
}

double entropy_of(const RowSums& r) { return std::max(std::log(r.sum) - r.weighted / r.sum, 0.0); }

}  // namespace

void score_rows(const Kernels& level, float* logits, int rows, int columns, const int64_t* targets, const float* parent,
                const Scores& out, int threads) {
  std::atomic<int> next{0};
  Team::shared().run(threads, [&](int, int) {
    for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < rows;) {
      float* row = logits + size_t(i) * columns;
      const RowSums r = level.steps.row_sums(row, columns);
      const double log_sum = std::log(r.sum);
      const double divergence = level.steps.log_probabilities(row, columns, r.top, float(log_sum),
                                                              parent ? parent + size_t(i) * columns : nullptr);
      out.nll[i] = -row[targets[i]];
      out.confidence[i] = float(1 / r.sum);
      out.entropy[i] = float(log_sum - r.weighted / r.sum);
      out.power[i] = float(r.squared / (r.sum * r.sum));
      out.top1[i] = r.index;
      if (parent) out.divergence[i] = float(std::max(divergence, 0.0));
    }
  });
}

double follow_rows(const Kernels& level, const Following& f) {
  std::vector<float> student(f.columns), parent(f.columns);
  const double most = std::log(double(f.columns));
  double total = 0;
  for (int i = 0; i < f.rows; i++) {
    const size_t at = size_t(i) * f.columns;
    widen(f.student, f.brief, at, f.columns, student.data());
    widen(f.parent, f.brief, at, f.columns, parent.data());
    const RowSums s = level.steps.row_sums(student.data(), f.columns), p = level.steps.row_sums(parent.data(), f.columns);
    const double product = entropy_of(s) / most * (entropy_of(p) / most);
    const double weight = f.ambiguity > 0 ? 1 + f.ambiguity * std::pow(product, f.sharpness) : 1;
    total += weight * level.steps.follow(student.data(), float(s.top + std::log(s.sum)), parent.data(),
                                         float(p.top + std::log(p.sum)), f.columns, float(weight / f.rows));
    narrow(parent.data(), f.columns, f.brief, f.parent, at);
  }
  return total / f.rows;
}

}  // namespace bitwright
