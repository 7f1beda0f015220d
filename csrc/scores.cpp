#include "scores.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "team.h"

namespace bitwright {

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

}  // namespace bitwright
