// Runs a plan: tokens in, logits out. Each sequence has a cache of its own; sequence 0 is always there.
#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "activations.h"
#include "engine/cache.h"
#include "engine/plan.h"
#include "engine/sampler.h"

namespace bitwright {

class Team;

// The part of n that worker w of many does.
inline int part(int n, int worker, int workers) { return int(int64_t(n) * worker / workers); }

// Whether one token goes faster with the whole team or with one thread: where other processes want the cores, barriers wait
// for threads that are not running. The slower way is tried again from time to time, and then judged by that try alone; one
// step that was held up does not change the way.
class Pace {
 public:
  bool together();
  void took(double seconds);

 private:
  static constexpr int kRetry = 64;
  bool together_ = true, retry_ = false;
  int steps_ = 0;
  double alone_ = 0, team_ = 0;  // moving averages; 0: not tried
};

class Engine {
 public:
  Engine(Plan plan, int threads);
  Engine(const Engine&) = delete;

  const Plan& plan() const { return plan_; }
  size_t cache_bytes() const;

  // A new sequence without tokens; its number is free again once it is closed.
  int open();
  void close(int sequence);
  int position(int sequence = 0) const { return at(sequence).position; }
  // Forgets everything after `position`.
  void truncate(int position, int sequence = 0);

  // Appends tokens to a sequence; logits of the last one, or of all of them: [count or 1][vocabulary].
  void forward(int sequence, const int* tokens, int count, bool all, float* logits);
  // Appends one token to each of several sequences; logits [sequences][vocabulary]. The results of a sequence do not depend on
  // its company, to the bit.
  void step(const std::vector<int>& sequences, const int* tokens, float* logits);

  // Appends the prompt to sequence 0 (after `before`, which the cache holds already) and up to `limit` new tokens. Every
  // `chunk` tokens and at the end the new ones go to `emit`, which returns false to stop. Ends after a token of `stops`,
  // which is emitted too.
  void generate(const std::vector<int>& before, const std::vector<int>& prompt, int limit, const Sampling& sampling,
                const std::vector<int>& stops, int chunk, const std::function<bool(const std::vector<int>&)>& emit);

 private:
  struct Sequence {
    Cache cache;
    int position;
  };
  // One token of a block.
  struct Row {
    Sequence* sequence;
    int position;
  };
  // Query heads of one kv head that gather some ranges.
  struct Gathering {
    int kv_head, first, count, range, last;

    bool continues(const Gathering& g) const { return kv_head == g.kv_head && first == g.first && count == g.count; }
  };
  struct Worker {
    ActivationBlocks blocks[3];
    Memory<float> hidden, mixed;
    Memory<> scratch;
    Memory<Query> queries;  // [kQueries]
    std::vector<Gathering> gatherings;
  };

  // Linears that share an input; those with the same activation groups share its codes too.
  struct Products {
    std::vector<const Linear*> linears;
    std::vector<int> slot;  // of each linear; -1: float
    bool joined;            // tiles of all linears are shared out as if they were one matrix

    // The tiles [first, second) of a linear that a worker multiplies.
    std::pair<int, int> share(int linear, int worker, int workers) const;
  };
  struct LayerProducts {
    Products qkv, o, gate_up, down;
  };

  static Products products(std::vector<const Linear*> linears, bool joined = false);
  void embed(int token, float* out) const;
  Sequence& at(int sequence) const;
  void check(const int* tokens, int count) const;
  void rope_tables();
  void block(const int* tokens, bool all, float* logits);
  void layer(int index, int worker, int workers);
  // Normalizes and quantizes the input of p; with one token every worker does so for itself, which saves a barrier.
  void prepare(const Products& p, const float* x, size_t stride, Norm norm, int worker, int workers);
  // The rows of one linear that are this worker's share.
  void multiply(const Products& p, int linear, float* y, int worker, int workers);
  void norm_rows(const float* x, Norm norm, float* y, int count) const;
  void add_output(const Products& p, Norm norm, int worker, int workers);
  void cache_and_rotate(int index, int worker, int workers);
  void attention(int index, int worker, int workers);
  // Of one token: every worker gathers its share of the ranges, and after a barrier folds all of them for itself.
  void share_ranges(int index, int worker, int workers);
  void gather(int index, int worker);
  void fold_ranges(int index, int worker);
  Request request(const Layer& l, int token, int head) const;
  float score_scale() const { return plan_.attention_scale / float(plan_.head_dim & -plan_.head_dim); }  // see `hadamard`
  void logits_of(int worker, int workers, bool all, float* logits);
  void barrier(int workers) const;

  Plan plan_;
  int threads_;
  const Kernels* level_;
  Team* team_ = nullptr;
  std::vector<std::unique_ptr<Sequence>> sequences_;
  std::vector<Row> rows_of_block_;
  Pace pace_;
  std::vector<LayerProducts> layers_;
  Products head_;
  std::vector<Worker> workers_;
  int64_t blocks_ = 0;        // since the engine was made
  int count_ = 0, rows_ = 0;  // tokens of the block, and how many of them go through the current product
  // [tokens][...] of one block, inside `activations_`
  float *x_, *q_, *k_, *v_, *mixed_, *out_, *gate_, *up_;
  Memory<float> activations_;
  // Where the block is one token: [heads][ranges], and what they have mixed [head_dim].
  int ranges_ = 0;
  std::vector<Part> parts_;
  std::vector<float> gathered_;
  std::vector<char> folded_;  // [heads]: whether one worker had all ranges and the first part is the whole
  std::vector<std::vector<float>> cosine_, sine_;
};

}  // namespace bitwright
