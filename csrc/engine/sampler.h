// The next token from logits.
#pragma once
#include <cstdint>
#include <vector>

namespace bitwright {

struct Sampling {
  float temperature = 0;  // 0: the largest logit
  int top_k = 0;          // 0: all
  float top_p = 1, min_p = 0;
  float repetition_penalty = 1;
  uint64_t seed = 0;
};

class Sampler {
 public:
  explicit Sampler(const Sampling& sampling);

  // `seen`: the tokens so far, for the repetition penalty. Logits are changed.
  int next(float* logits, int count, const std::vector<int>& seen);

 private:
  double uniform();

  Sampling sampling_;
  uint64_t state_[4];
  std::vector<int> order_;
  std::vector<float> weights_;
};

}  // namespace bitwright
