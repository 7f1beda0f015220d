#include "engine/engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>

#include "codes.h"
#include "dispatch.h"
#include "engine/arena.h"
#include "matrix.h"
#include "rotation.h"
#include "team.h"

namespace bitwright {
namespace {

bool same_input(const MatrixView& a, const MatrixView& b) {
  if (a.columns != b.columns || a.group != b.group || a.run_kinds != b.run_kinds || !a.rotation.factors != !b.rotation.factors)
    return false;
  for (int i = 0; i < a.run_kinds; i++)
    if (!same_order(a.runs[i], b.runs[i])) return false;
  return true;
}

}  // namespace

Engine::Engine(Plan plan, int threads)
    : plan_(std::move(plan)),
      threads_(threads > 0 ? threads : allowed_cores()),
      level_(&level()),
      workers_(threads_) {
  open();
  for (const Layer& l : plan_.layers)
    layers_.push_back({products({&l.q, &l.k, &l.v}, true), products({&l.o}), products({&l.gate, &l.up}), products({&l.down})});
  head_ = products({&plan_.head});
  size_t scratch = 0;
  const auto widest = [&](const Products& p) {
    for (const Linear* l : p.linears)
      if (l->packed) scratch = std::max(scratch, l->packed->scratch);
  };
  for (const LayerProducts& l : layers_) widest(l.qkv), widest(l.o), widest(l.gate_up), widest(l.down);
  widest(head_);
  const size_t tokens = size_t(kMaxBlocks) * kMaxTokens;  // whatever level is chosen later
  const size_t inner = std::max({plan_.hidden, plan_.ffn, plan_.heads * plan_.head_dim});
  for (Worker& w : workers_) {
    w.scratch = allocate(kMaxTiles * scratch + kVector), w.hidden = allocate_zeros<float>(tokens * inner);
    w.queries = allocate<Query>(kQueries), w.mixed = allocate<float>(plan_.heads * plan_.head_dim);
  }
  // One stretch of huge pages: a column of a product is written to as many pages as there are tokens. All in memory from the
  // start: what an engine takes should not depend on how many tokens it has seen.
  const int queries = plan_.heads * plan_.head_dim, keys = plan_.kv_heads * plan_.head_dim;
  const std::pair<float**, int> parts[] = {{&x_, plan_.hidden}, {&out_, plan_.hidden}, {&q_, queries}, {&mixed_, queries},
                                           {&k_, keys},         {&v_, keys},           {&gate_, plan_.ffn}, {&up_, plan_.ffn}};
  size_t floats = 0;
  for (const auto& [at, width] : parts) floats += tokens * width;
  activations_ = allocate_zeros<float>(floats), floats = 0;
  for (const auto& [at, width] : parts) *at = activations_.get() + floats, floats += tokens * width;
}

Engine::Products Engine::products(std::vector<const Linear*> linears, bool joined) {
  Products p{std::move(linears), {}, joined};
  int slots = 0;
  for (size_t i = 0; i < p.linears.size(); i++) {
    int slot = p.linears[i]->packed ? slots : -1;
    for (size_t j = 0; slot >= 0 && j < i; j++)
      if (p.slot[j] >= 0 && same_input(*p.linears[j]->packed, *p.linears[i]->packed)) slot = p.slot[j];
    if (slot == slots) slots++;
    p.slot.push_back(slot);
  }
  return p;
}

int Engine::open() {
  const auto slot = std::find(sequences_.begin(), sequences_.end(), nullptr);
  auto made = std::make_unique<Sequence>(
      Sequence{Cache(int(plan_.layers.size()), plan_.kv_heads, plan_.head_dim, plan_.fine_cache), 0});
  if (slot == sequences_.end()) return sequences_.push_back(std::move(made)), int(sequences_.size()) - 1;
  return *slot = std::move(made), int(slot - sequences_.begin());
}

void Engine::close(int sequence) {
  at(sequence);
  if (sequence == 0) throw std::invalid_argument("sequence 0 always stays");
  sequences_[sequence] = nullptr;
}

Engine::Sequence& Engine::at(int sequence) const {
  if (sequence < 0 || sequence >= int(sequences_.size()) || !sequences_[sequence])
    throw std::invalid_argument("there is no such sequence");
  return *sequences_[sequence];
}

size_t Engine::cache_bytes() const {
  size_t bytes = 0;
  for (const auto& s : sequences_) bytes += s ? s->cache.bytes() : 0;
  return bytes;
}

void Engine::truncate(int position, int sequence) {
  Sequence& s = at(sequence);
  if (position < 0 || position > s.position) throw std::invalid_argument("position lies outside the sequence");
  s.position = position;
}

void Engine::embed(int token, float* out) const {
  if (plan_.packed_embedding) {
    const MatrixView& m = *plan_.packed_embedding;
    decode_row(m, token, out);
    if (m.rotation.factors) mix(*level_, out, nullptr, m.rotation.factors, m.rotation, out);
  } else {
    std::copy_n(plan_.embedding + size_t(token) * plan_.hidden, plan_.hidden, out);
  }
  if (plan_.embedding_scale != 1)
    for (int i = 0; i < plan_.hidden; i++) out[i] *= plan_.embedding_scale;
}

void Engine::rope_tables() {
  cosine_.resize(plan_.frequencies.size()), sine_.resize(plan_.frequencies.size());
  for (size_t kind = 0; kind < plan_.frequencies.size(); kind++) {
    const std::vector<float>& f = plan_.frequencies[kind];
    cosine_[kind].resize(count_ * f.size()), sine_[kind].resize(count_ * f.size());
    for (int t = 0; t < count_; t++)
      for (size_t i = 0; i < f.size(); i++) {
        const float angle = float(rows_of_block_[t].position) * f[i];
        cosine_[kind][t * f.size() + i] = std::cos(angle) * plan_.rope_scale[kind];
        sine_[kind][t * f.size() + i] = std::sin(angle) * plan_.rope_scale[kind];
      }
  }
}

void Engine::check(const int* tokens, int count) const {
  for (int i = 0; i < count; i++)
    if (tokens[i] < 0 || tokens[i] >= plan_.vocabulary) throw std::invalid_argument("a token lies outside the vocabulary");
}

void Engine::forward(int sequence, const int* tokens, int count, bool all, float* logits) {
  Sequence& s = at(sequence);
  if (s.position + count > plan_.positions) throw std::invalid_argument("the sequence is longer than the model's context");
  check(tokens, count);
  level_ = &level();
  const int most = kMaxBlocks * level_->tokens;
  for (int done = 0; done < count; done += most) {
    const int here = std::min(most, count - done);
    const bool last = done + here == count;
    rows_of_block_.clear();
    for (int i = 0; i < here; i++) rows_of_block_.push_back({&s, s.position + i});
    block(tokens + done, all, all ? logits + size_t(done) * plan_.vocabulary : last ? logits : nullptr);
  }
}

void Engine::step(const std::vector<int>& sequences, const int* tokens, float* logits) {
  const int count = int(sequences.size());
  check(tokens, count);
  for (int i = 0; i < count; i++) {
    if (at(sequences[i]).position >= plan_.positions) throw std::invalid_argument("a sequence is longer than the model's context");
    if (std::count(sequences.begin(), sequences.end(), sequences[i]) > 1)
      throw std::invalid_argument("a sequence may take only one token a step");
  }
  level_ = &level();
  const int most = kMaxBlocks * level_->tokens;
  for (int done = 0; done < count; done += most) {
    rows_of_block_.clear();
    for (int i = done; i < std::min(done + most, count); i++)
      rows_of_block_.push_back({&at(sequences[i]), at(sequences[i]).position});
    block(tokens + done, true, logits + size_t(done) * plan_.vocabulary);
  }
}

void Engine::block(const int* tokens, bool all, float* logits) {
  count_ = rows_ = int(rows_of_block_.size()), team_ = &Team::shared();
  // Not before the first block: it reads the weights once, and nobody should wait for a copy before the first token.
  if (blocks_++ == 1) plan_.arena->fill(*team_, threads_);
  for (const Row& row : rows_of_block_) row.sequence->cache.reserve(row.position + 1);
  if (count_ == 1) {
    ranges_ = rows_of_block_[0].position / kRange + 1;
    parts_.resize(size_t(plan_.heads) * ranges_), gathered_.resize(parts_.size() * plan_.head_dim);
    folded_.resize(plan_.heads);
  }
  rope_tables();
  for (int t = 0; t < count_; t++) embed(tokens[t], x_ + size_t(t) * plan_.hidden);
  const bool paced = count_ == 1 && threads_ > 1;
  const auto start = std::chrono::steady_clock::now();
  team_->run(!paced || pace_.together() ? threads_ : 1, [&](int worker, int workers) {
    for (size_t i = 0; i < layers_.size(); i++) layer(int(i), worker, workers);
    if (logits) logits_of(worker, workers, all, logits);
  });
  if (paced) pace_.took(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  for (const Row& row : rows_of_block_) row.sequence->position = row.position + 1;
}

bool Pace::together() {
  const bool better = alone_ == 0 || team_ <= alone_;
  retry_ = ++steps_ % kRetry == 0;
  return together_ = better != retry_;
}

void Pace::took(double seconds) {
  double& average = together_ ? team_ : alone_;
  average = average == 0 || retry_ ? seconds : 0.75 * average + 0.25 * std::min(seconds, 2 * average);
}

void Engine::generate(const std::vector<int>& before, const std::vector<int>& prompt, int limit, const Sampling& sampling,
                      const std::vector<int>& stops, int chunk, const std::function<bool(const std::vector<int>&)>& emit) {
  Sampler sampler(sampling);
  std::vector<int> seen = before, fresh;
  seen.insert(seen.end(), prompt.begin(), prompt.end());
  std::vector<float> logits(plan_.vocabulary);
  forward(0, prompt.data(), int(prompt.size()), false, logits.data());
  limit = std::min(limit, plan_.positions - position());
  for (int i = 0; i < limit; i++) {
    const int token = sampler.next(logits.data(), plan_.vocabulary, seen);
    seen.push_back(token), fresh.push_back(token);
    const bool stop = std::find(stops.begin(), stops.end(), token) != stops.end() || i + 1 == limit;
    if ((stop || int(fresh.size()) == chunk) && (!emit(fresh) || stop)) return;
    if (int(fresh.size()) == chunk) fresh.clear();
    forward(0, &token, 1, false, logits.data());
  }
}

}  // namespace bitwright
