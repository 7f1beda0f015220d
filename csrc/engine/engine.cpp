#include "engine/engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>

#include "codes.h"
#include "dispatch.h"
#include "team.h"

namespace bitwright {
namespace {

bool same_input(const MatrixView& a, const MatrixView& b) {
  if (a.columns != b.columns || a.group != b.group || a.run_kinds != b.run_kinds) return false;
  for (int i = 0; i < a.run_kinds; i++)
    if (a.runs[i].unit != b.runs[i].unit || a.runs[i].inputs != b.runs[i].inputs) return false;
  return true;
}

// The part of n that worker w of many does.
int part(int n, int worker, int workers) { return int(int64_t(n) * worker / workers); }

}  // namespace

Engine::Engine(Plan plan, int threads)
    : plan_(std::move(plan)),
      threads_(threads > 0 ? threads : allowed_cores()),
      level_(&level()),
      cache_(int(plan_.layers.size()), plan_.kv_heads, plan_.head_dim, plan_.fine_cache),
      workers_(threads_) {
  for (const Layer& l : plan_.layers)
    layers_.push_back({products({&l.q, &l.k, &l.v}), products({&l.o}), products({&l.gate, &l.up}), products({&l.down})});
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
  for (Worker& w : workers_) w.scratch = allocate(scratch + kVector), w.hidden.resize(tokens * inner);
  x_.resize(tokens * plan_.hidden), out_.resize(tokens * plan_.hidden);
  q_.resize(tokens * plan_.heads * plan_.head_dim), mixed_.resize(q_.size());
  k_.resize(tokens * plan_.kv_heads * plan_.head_dim), v_.resize(k_.size());
  gate_.resize(tokens * plan_.ffn), up_.resize(gate_.size());
}

Engine::Products Engine::products(std::vector<const Linear*> linears) {
  Products p{std::move(linears), {}};
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

void Engine::truncate(int position) {
  if (position < 0 || position > position_) throw std::invalid_argument("position lies outside the sequence");
  position_ = position;
}

void Engine::embed(int token, float* out) const {
  if (plan_.packed_embedding) decode_row(*plan_.packed_embedding, token, out);
  else std::copy_n(plan_.embedding + size_t(token) * plan_.hidden, plan_.hidden, out);
  if (plan_.embedding_scale != 1)
    for (int i = 0; i < plan_.hidden; i++) out[i] *= plan_.embedding_scale;
}

void Engine::rope_tables(int count) {
  cosine_.resize(plan_.frequencies.size()), sine_.resize(plan_.frequencies.size());
  for (size_t kind = 0; kind < plan_.frequencies.size(); kind++) {
    const std::vector<float>& f = plan_.frequencies[kind];
    cosine_[kind].resize(count * f.size()), sine_[kind].resize(count * f.size());
    for (int t = 0; t < count; t++)
      for (size_t i = 0; i < f.size(); i++) {
        const float angle = float(position_ + t) * f[i];
        cosine_[kind][t * f.size() + i] = std::cos(angle) * plan_.rope_scale[kind];
        sine_[kind][t * f.size() + i] = std::sin(angle) * plan_.rope_scale[kind];
      }
  }
}

void Engine::forward(const int* tokens, int count, bool all, float* logits) {
  if (position_ + count > plan_.positions) throw std::invalid_argument("the sequence is longer than the model's context");
  for (int i = 0; i < count; i++)
    if (tokens[i] < 0 || tokens[i] >= plan_.vocabulary) throw std::invalid_argument("a token lies outside the vocabulary");
  level_ = &level();
  const int most = kMaxBlocks * level_->tokens;
  for (int done = 0; done < count; done += most) {
    const int here = std::min(most, count - done);
    const bool last = done + here == count;
    block(tokens + done, here, all, all ? logits + size_t(done) * plan_.vocabulary : last ? logits : nullptr);
  }
}

void Engine::block(const int* tokens, int count, bool all, float* logits) {
  count_ = rows_ = count, team_ = &Team::shared();
  cache_.reserve(position_ + count);
  rope_tables(count);
  for (int t = 0; t < count; t++) embed(tokens[t], x_.data() + size_t(t) * plan_.hidden);
  const bool paced = count == 1 && threads_ > 1;
  const auto start = std::chrono::steady_clock::now();
  team_->run(!paced || pace_.together() ? threads_ : 1, [&](int worker, int workers) {
    for (size_t i = 0; i < layers_.size(); i++) layer(int(i), worker, workers);
    if (logits) logits_of(worker, workers, all, logits);
  });
  if (paced) pace_.took(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  position_ += count;
}

bool Pace::together() {
  const bool better = alone_ == 0 || team_ <= alone_;
  return together_ = (++steps_ % kRetry == 0 ? !better : better);
}

void Pace::took(double seconds) {
  double& average = together_ ? team_ : alone_;
  average = average == 0 ? seconds : 0.75 * average + 0.25 * seconds;
}

void Engine::barrier(int workers) const { team_->barrier(workers); }

void Engine::norm_rows(const float* x, Norm norm, float* y, int count) const {
  const int n = plan_.hidden;
  for (int t = 0; t < count; t++, x += n, y += n) {
    const float mean = level_->steps.sum_squares(x, n) / float(n);
    level_->steps.scale_by(x, 1.0f / std::sqrt(mean + plan_.eps), norm.weight, y, n);
  }
}

void Engine::prepare(const Products& p, const float* x, size_t stride, Norm norm, int worker, int workers) {
  const bool alone = rows_ == 1;
  Worker& w = workers_[alone ? worker : 0];
  const int blocks = (rows_ + level_->tokens - 1) / level_->tokens;
  if (!alone && worker == 0)
    for (size_t i = 0; i < p.linears.size(); i++)
      if (p.slot[i] >= 0) w.blocks[p.slot[i]].resize(*level_, *p.linears[i]->packed, rows_);
  if (!alone) barrier(workers);
  const float* source = norm ? w.hidden.data() : x;
  const size_t step = norm ? plan_.hidden : stride;
  for (int b = alone ? 0 : worker; b < blocks; b += alone ? 1 : workers) {
    const int first = b * level_->tokens, count = std::min(level_->tokens, rows_ - first);
    if (norm) norm_rows(x + first * stride, norm, w.hidden.data() + first * step, count);
    int done = 0;
    for (size_t i = 0; i < p.linears.size(); i++) {
      if (p.slot[i] < done) continue;
      const MatrixView& m = *p.linears[i]->packed;
      if (alone) w.blocks[done].resize(*level_, m, 1);
      w.blocks[done++].fill(*level_, m, source, step, b);
    }
    if (!norm && p.slot[0] < 0) std::copy_n(x + first * stride, size_t(count) * stride, w.hidden.data() + first * stride);
  }
  if (!alone) barrier(workers);
}

void Engine::multiply(const Products& p, int linear, int first, int last, float* y, int worker) {
  const Linear& l = *p.linears[linear];
  Worker& inputs = workers_[rows_ == 1 ? worker : 0];
  if (first >= last) return;
  if (l.packed) {
    const ActivationBlocks& blocks = inputs.blocks[p.slot[linear]];
    level_->multiply(*l.packed, blocks.blocks(), blocks.size(), first, last, y, l.rows, workers_[worker].scratch.get());
    return;
  }
  for (int tile = first; tile < last; tile++)
    for (int t = 0; t < rows_; t++) {
      float rows[kLanes];
      level_->steps.float_tile(l.tiles + size_t(tile) * l.columns * kLanes, inputs.hidden.data() + size_t(t) * l.columns, l.columns,
                               rows);
      for (int i = 0; i < std::min(kLanes, l.rows - tile * kLanes); i++)
        y[size_t(t) * l.rows + tile * kLanes + i] = rows[i] + (l.bias ? l.bias[tile * kLanes + i] : 0.0f);
    }
}

void Engine::layer(int index, int worker, int workers) {
  const Layer& l = plan_.layers[index];
  const LayerProducts& p = layers_[index];
  const int n = plan_.hidden;
  prepare(p.qkv, x_.data(), n, l.before_attention, worker, workers);
  int tiles = 0;
  for (const Linear* linear : p.qkv.linears) tiles += linear->tile_count();
  const int first = part(tiles, worker, workers), last = part(tiles, worker + 1, workers);
  float* outputs[] = {q_.data(), k_.data(), v_.data()};
  int before = 0;
  for (int i = 0; i < 3; i++) {
    const int here = p.qkv.linears[i]->tile_count();
    multiply(p.qkv, i, std::clamp(first - before, 0, here), std::clamp(last - before, 0, here), outputs[i], worker);
    before += here;
  }
  barrier(workers);
  cache_and_rotate(index, worker, workers);
  barrier(workers);
  attention(index, worker, workers);
  barrier(workers);
  prepare(p.o, mixed_.data(), size_t(plan_.heads) * plan_.head_dim, {}, worker, workers);
  add_output(p.o, l.after_attention, worker, workers);

  prepare(p.gate_up, x_.data(), n, l.before_ffn, worker, workers);
  const int ffn_tiles = l.gate.tile_count();
  const int a = part(ffn_tiles, worker, workers), b = part(ffn_tiles, worker + 1, workers);
  multiply(p.gate_up, 0, a, b, gate_.data(), worker);
  multiply(p.gate_up, 1, a, b, up_.data(), worker);
  const int from = a * kLanes, count = std::min(b * kLanes, plan_.ffn) - from;
  const auto activate = plan_.gelu ? level_->steps.gelu : level_->steps.silu;
  for (int t = 0; t < count_ && count > 0; t++) {
    const size_t at = size_t(t) * plan_.ffn + from;
    activate(gate_.data() + at, up_.data() + at, count);
  }
  barrier(workers);
  prepare(p.down, up_.data(), plan_.ffn, {}, worker, workers);
  add_output(p.down, l.after_ffn, worker, workers);
}

// x += W h, normalized before it is added where the model says so.
void Engine::add_output(const Products& p, Norm norm, int worker, int workers) {
  const int n = plan_.hidden, tiles = p.linears[0]->tile_count();
  const int a = part(tiles, worker, workers), b = part(tiles, worker + 1, workers);
  multiply(p, 0, a, b, out_.data(), worker);
  if (norm) {
    barrier(workers);
    for (int t = worker; t < count_; t += workers) {
      float* row = out_.data() + size_t(t) * n;
      norm_rows(row, norm, row, 1);
      level_->steps.add(row, x_.data() + size_t(t) * n, n);
    }
  } else {
    const int from = a * kLanes, count = std::min(b * kLanes, n) - from;
    for (int t = 0; t < count_ && count > 0; t++) {
      const size_t at = size_t(t) * n + from;
      level_->steps.add(out_.data() + at, x_.data() + at, count);
    }
  }
  barrier(workers);
}

void Engine::cache_and_rotate(int index, int worker, int workers) {
  const Layer& l = plan_.layers[index];
  const Steps& steps = level_->steps;
  const int dim = plan_.head_dim, half = int(plan_.frequencies[l.rope].size()), per_token = plan_.heads + plan_.kv_heads;
  const auto finish = [&](float* x, Norm norm, int t) {
    if (norm) steps.scale_by(x, 1.0f / std::sqrt(steps.sum_squares(x, dim) / float(dim) + plan_.eps), norm.weight, x, dim);
    steps.rotate(x, cosine_[l.rope].data() + t * half, sine_[l.rope].data() + t * half, half);
  };
  for (int i = worker; i < count_ * per_token; i += workers) {
    const int t = i / per_token, head = i % per_token;
    if (head < plan_.heads) {
      finish(q_.data() + size_t(t * plan_.heads + head) * dim, l.q_norm, t);
      continue;
    }
    const int kv = head - plan_.heads;
    float* key = k_.data() + size_t(t * plan_.kv_heads + kv) * dim;
    finish(key, l.k_norm, t);
    cache_.write(steps, position_ + t, index, kv, key, v_.data() + size_t(t * plan_.kv_heads + kv) * dim);
  }
}

// Queries in the order of their kv heads: every worker has an even share of them, and few kv heads to read.
void Engine::attention(int index, int worker, int workers) {
  const Layer& l = plan_.layers[index];
  const int dim = plan_.head_dim, share = plan_.heads / plan_.kv_heads, per_head = count_ * share;
  const int end = part(count_ * plan_.heads, worker + 1, workers);
  for (int i = part(count_ * plan_.heads, worker, workers); i < end;) {
    const int kv = i / per_head, stop = std::min({end, (kv + 1) * per_head, i + kQueries});
    Query queries[kQueries];
    int count = 0;
    for (; i < stop; i++) {
      const int token = i % per_head / share, last = position_ + token;
      const size_t at = (size_t(token) * plan_.heads + kv * share + i % share) * dim;
      queries[count++] = {q_.data() + at, mixed_.data() + at, l.window > 0 ? std::max(0, last + 1 - l.window) : 0, last};
    }
    cache_.attend(level_->steps, index, kv, queries, count, plan_.attention_scale, plan_.attention_cap,
                  workers_[worker].attention);
  }
}

void Engine::logits_of(int worker, int workers, bool all, float* logits) {
  if (worker == 0) rows_ = all ? count_ : 1;
  barrier(workers);
  const float* x = x_.data() + (all ? 0 : size_t(count_ - 1) * plan_.hidden);
  prepare(head_, x, plan_.hidden, plan_.last, worker, workers);
  const int tiles = plan_.head.tile_count();
  const int a = part(tiles, worker, workers), b = part(tiles, worker + 1, workers);
  multiply(head_, 0, a, b, logits, worker);
  const int from = a * kLanes, count = std::min(b * kLanes, plan_.vocabulary) - from;
  if (plan_.logit_cap > 0)
    for (int t = 0; t < rows_ && count > 0; t++)
      level_->steps.soft_cap(logits + size_t(t) * plan_.vocabulary + from, plan_.logit_cap, count);
}

void Engine::generate(const std::vector<int>& before, const std::vector<int>& prompt, int limit, const Sampling& sampling,
                      const std::vector<int>& stops, int chunk, const std::function<bool(const std::vector<int>&)>& emit) {
  Sampler sampler(sampling);
  std::vector<int> seen = before, fresh;
  seen.insert(seen.end(), prompt.begin(), prompt.end());
  std::vector<float> logits(plan_.vocabulary);
  forward(prompt.data(), int(prompt.size()), false, logits.data());
  limit = std::min(limit, plan_.positions - position_);
  for (int i = 0; i < limit; i++) {
    const int token = sampler.next(logits.data(), plan_.vocabulary, seen);
    seen.push_back(token), fresh.push_back(token);
    const bool stop = std::find(stops.begin(), stops.end(), token) != stops.end() || i + 1 == limit;
    if ((stop || int(fresh.size()) == chunk) && (!emit(fresh) || stop)) return;
    if (int(fresh.size()) == chunk) fresh.clear();
    forward(&token, 1, false, logits.data());
  }
}

}  // namespace bitwright
