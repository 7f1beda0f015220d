#include "roofline.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "dispatch.h"
#include "memory.h"
#include "team.h"

namespace bitwright {
namespace {

constexpr double kSeconds = 0.3;  // for each ceiling

// The highest rate among runs of `work` by all threads, in units a second.
template <class Work> double best_rate(double units, int threads, Work work) {
  double best = 0, spent = 0;
  while (spent < kSeconds) {
    const auto start = std::chrono::steady_clock::now();
    Team::shared().run(threads, work);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = std::max(best, units / seconds), spent += seconds;
  }
  return best;
}

}  // namespace

Ceilings measure_ceilings(size_t bytes, int threads) {
  const Kernels& k = level();
  const size_t vectors = std::max(bytes, size_t(1) << 20) / kVector;
  const Memory<> memory = allocate_zeros(vectors * kVector);
  Ceilings c;
  c.bytes_per_second = best_rate(double(vectors * kVector), threads, [&](int worker, int workers) {
    const size_t from = vectors * worker / workers, to = vectors * (worker + 1) / workers;
    k.read(memory.get() + from * kVector, to - from);
  });
  constexpr int rounds = 20000;
  c.macs_per_second = best_rate(double(rounds) * kDots * kVector * threads, threads, [&](int, int) { k.dots(rounds); });
  return c;
}

}  // namespace bitwright
