#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace bitwright {

// xoshiro256++, its state filled by splitmix64 from the seed (Blackman and Vigna, prng.di.unimi.it).
Sampler::Sampler(const Sampling& sampling) : sampling_(sampling) {
  uint64_t x = sampling.seed;
  for (uint64_t& s : state_) {
    uint64_t z = x += 0x9E3779B97F4A7C15;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    s = z ^ z >> 31;
  }
}

double Sampler::uniform() {
  const auto rotated = [](uint64_t v, int by) { return v << by | v >> (64 - by); };
  const uint64_t result = rotated(state_[0] + state_[3], 23) + state_[0], t = state_[1] << 17;
  state_[2] ^= state_[0], state_[3] ^= state_[1], state_[1] ^= state_[2], state_[0] ^= state_[3];
  state_[2] ^= t, state_[3] = rotated(state_[3], 45);
  return double(result >> 11) * 0x1p-53;
}

int Sampler::next(float* logits, int count, const std::vector<int>& seen) {
  if (sampling_.repetition_penalty != 1) {
    order_ = seen;
    std::sort(order_.begin(), order_.end());
    order_.erase(std::unique(order_.begin(), order_.end()), order_.end());
    for (int token : order_) {
      float& l = logits[token];
      l = l > 0 ? l / sampling_.repetition_penalty : l * sampling_.repetition_penalty;
    }
  }
  if (sampling_.temperature <= 0) return int(std::max_element(logits, logits + count) - logits);

  // Candidates in falling order; ties by index, so that the choice does not depend on the sorting algorithm.
  const auto before = [&](int a, int b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); };
  const float top = *std::max_element(logits, logits + count);
  order_.resize(count);
  std::iota(order_.begin(), order_.end(), 0);
  if (sampling_.min_p > 0) {
    const float least = top + std::log(sampling_.min_p) * sampling_.temperature;
    order_.erase(std::remove_if(order_.begin(), order_.end(), [&](int i) { return logits[i] < least; }), order_.end());
  }
  size_t kept = sampling_.top_k > 0 ? std::min(order_.size(), size_t(sampling_.top_k)) : order_.size();
  std::partial_sort(order_.begin(), order_.begin() + kept, order_.end(), before);
  weights_.resize(kept);
  double total = 0;
  for (size_t i = 0; i < kept; i++) total += weights_[i] = std::exp((logits[order_[i]] - top) / sampling_.temperature);
  if (sampling_.top_p < 1) {
    double sum = 0;
    size_t i = 0;
    while (i < kept && sum < sampling_.top_p * total) sum += weights_[i++];
    kept = std::max(i, size_t(1)), total = std::max(sum, double(weights_[0]));
  }
  double left = uniform() * total;
  for (size_t i = 0; i + 1 < kept; i++)
    if ((left -= weights_[i]) < 0) return order_[i];
  return order_[kept - 1];
}

}  // namespace bitwright
