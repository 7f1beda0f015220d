// What the workers do: products, norms and attention of one block of rows.
#include <algorithm>
#include <cmath>

#include "engine/engine.h"
#include "team.h"

namespace bitwright {
namespace {

// Asks for the beginning of what a product reads, so that it comes while the input is prepared: as much as the product then
// fetches ahead.
void fetch(const MatrixView& m, int tile) {
  for (int i = 0; i < m.terms; i++) {
    const Term& t = m.term[i];
    const size_t ahead = t.kind == Kind::nm ? kAheadSparse : kAhead;
    const size_t codes = size_t(t.units) * t.unit_bytes, tiles = std::max(ahead / codes, size_t(1));
    const auto lines = [&](const void* stream, size_t tile_bytes) {
      const char* at = static_cast<const char*>(stream) + tile * tile_bytes;
      for (size_t byte = 0; byte < std::min(tiles * tile_bytes, ahead); byte += kVector) __builtin_prefetch(at + byte);
    };
    lines(t.codes, codes);
    if (t.kind == Kind::nm) lines(t.values, codes);
    lines(t.scales, size_t(t.groups) * kLanes * sizeof(uint16_t));
    if (t.mins) lines(t.mins, size_t(t.groups) * kLanes * sizeof(uint16_t));
  }
}

}  // namespace

std::pair<int, int> Engine::Products::share(int linear, int worker, int workers) const {
  const int here = linears[linear]->tile_count();
  if (!joined) return {part(here, worker, workers), part(here, worker + 1, workers)};
  int before = 0, all = 0;
  for (int i = 0; i < int(linears.size()); i++) before += i < linear ? linears[i]->tile_count() : 0, all += linears[i]->tile_count();
  const auto inside = [&](int tile) { return std::clamp(tile - before, 0, here); };
  return {inside(part(all, worker, workers)), inside(part(all, worker + 1, workers))};
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
  for (int i = 0; alone && i < int(p.linears.size()); i++)
    if (p.linears[i]->packed) fetch(*p.linears[i]->packed, p.share(i, worker, workers).first);
  Worker& w = workers_[alone ? worker : 0];
  const int blocks = (rows_ + level_->tokens - 1) / level_->tokens;
  if (!alone && worker == 0)
    for (size_t i = 0; i < p.linears.size(); i++)
      if (p.slot[i] >= 0) w.blocks[p.slot[i]].resize(*level_, *p.linears[i]->packed, rows_);
  if (!alone) barrier(workers);
  const float* source = norm ? w.hidden.get() : x;
  const size_t step = norm ? plan_.hidden : stride;
  for (int b = alone ? 0 : worker; b < blocks; b += alone ? 1 : workers) {
    const int first = b * level_->tokens, count = std::min(level_->tokens, rows_ - first);
    if (norm) norm_rows(x + first * stride, norm, w.hidden.get() + first * step, count);
    int done = 0;
    for (size_t i = 0; i < p.linears.size(); i++) {
      if (p.slot[i] < done) continue;
      const MatrixView& m = *p.linears[i]->packed;
      if (alone) w.blocks[done].resize(*level_, m, 1);
      w.blocks[done++].fill(*level_, m, source, step, b);
    }
    if (!norm && p.slot[0] < 0) std::copy_n(x + first * stride, size_t(count) * stride, w.hidden.get() + first * stride);
  }
  if (!alone) barrier(workers);
}

void Engine::multiply(const Products& p, int linear, float* y, int worker, int workers) {
  const Linear& l = *p.linears[linear];
  const auto [first, last] = p.share(linear, worker, workers);
  Worker& inputs = workers_[rows_ == 1 ? worker : 0];
  if (first >= last) return;
  if (l.packed) {
    const ActivationBlocks& blocks = inputs.blocks[p.slot[linear]];
    level_->multiply(*l.packed, blocks.blocks(), blocks.size(), first, last, y, l.rows, workers_[worker].scratch.get());
    return;
  }
  alignas(kVector) float rows[kMaxBlocks * kMaxTokens * kLanes];
  for (int tile = first; tile < last; tile++) {
    level_->steps.float_tile(l.tiles + size_t(tile) * l.columns * kLanes, inputs.hidden.get(), l.columns, rows_, l.columns, rows);
    for (int t = 0; t < rows_; t++)
      for (int i = 0; i < std::min(kLanes, l.rows - tile * kLanes); i++)
        y[size_t(t) * l.rows + tile * kLanes + i] = rows[t * kLanes + i] + (l.bias ? l.bias[tile * kLanes + i] : 0.0f);
  }
}

void Engine::layer(int index, int worker, int workers) {
  const Layer& l = plan_.layers[index];
  const LayerProducts& p = layers_[index];
  const int n = plan_.hidden;
  if (count_ == 1) share_ranges(index, worker, workers);
  prepare(p.qkv, x_, n, l.before_attention, worker, workers);
  float* outputs[] = {q_, k_, v_};
  for (int i = 0; i < 3; i++) multiply(p.qkv, i, outputs[i], worker, workers);
  barrier(workers);
  cache_and_rotate(index, worker, workers);
  barrier(workers);
  count_ == 1 ? gather(index, worker) : attention(index, worker, workers);
  barrier(workers);
  if (count_ == 1) fold_ranges(index, worker);
  prepare(p.o, count_ == 1 ? workers_[worker].mixed.get() : mixed_, size_t(plan_.heads) * plan_.head_dim, {}, worker, workers);
  add_output(p.o, l.after_attention, worker, workers);

  prepare(p.gate_up, x_, n, l.before_ffn, worker, workers);
  multiply(p.gate_up, 0, gate_, worker, workers);
  multiply(p.gate_up, 1, up_, worker, workers);
  const auto [a, b] = p.gate_up.share(0, worker, workers);
  const int from = a * kLanes, count = std::min(b * kLanes, plan_.ffn) - from;
  const auto activate = plan_.gelu ? level_->steps.gelu : level_->steps.silu;
  for (int t = 0; t < count_ && count > 0; t++) {
    const size_t at = size_t(t) * plan_.ffn + from;
    activate(gate_ + at, up_ + at, count);
  }
  barrier(workers);
  prepare(p.down, up_, plan_.ffn, {}, worker, workers);
  add_output(p.down, l.after_ffn, worker, workers);
}

// x += W h, normalized before it is added where the model says so.
void Engine::add_output(const Products& p, Norm norm, int worker, int workers) {
  const int n = plan_.hidden;
  const auto [a, b] = p.share(0, worker, workers);
  multiply(p, 0, out_, worker, workers);
  if (norm) {
    barrier(workers);
    for (int t = worker; t < count_; t += workers) {
      float* row = out_ + size_t(t) * n;
      norm_rows(row, norm, row, 1);
      level_->steps.add(row, x_ + size_t(t) * n, n);
    }
  } else {
    const int from = a * kLanes, count = std::min(b * kLanes, n) - from;
    for (int t = 0; t < count_ && count > 0; t++) {
      const size_t at = size_t(t) * n + from;
      level_->steps.add(out_ + at, x_ + at, count);
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
    steps.hadamard(x, dim);  // of query and key: their product stays, and large dims are spread before they are rounded
  };
  // Tokens that are neighbours share lines of the cache; heads of one token are dealt out, because those of keys take longer.
  const bool alone = count_ == 1;
  const int all = count_ * per_token, first = alone ? worker : part(all, worker, workers);
  for (int i = first, end = alone ? all : part(all, worker + 1, workers); i < end; i += alone ? workers : 1) {
    const int t = i / per_token, head = i % per_token;
    if (head < plan_.heads) {
      finish(q_ + size_t(t * plan_.heads + head) * dim, l.q_norm, t);
      continue;
    }
    const int kv = head - plan_.heads;
    float* key = k_ + size_t(t * plan_.kv_heads + kv) * dim;
    finish(key, l.k_norm, t);
    const Row& row = rows_of_block_[t];
    row.sequence->cache.write(steps, row.position, index, kv, key, v_ + size_t(t * plan_.kv_heads + kv) * dim);
  }
}

void Engine::logits_of(int worker, int workers, bool all, float* logits) {
  if (worker == 0) rows_ = all ? count_ : 1;
  barrier(workers);
  const float* x = x_ + (all ? 0 : size_t(count_ - 1) * plan_.hidden);
  prepare(head_, x, plan_.hidden, plan_.last, worker, workers);
  const auto [a, b] = head_.share(0, worker, workers);
  multiply(head_, 0, logits, worker, workers);
  const int from = a * kLanes, count = std::min(b * kLanes, plan_.vocabulary) - from;
  if (plan_.logit_cap > 0)
    for (int t = 0; t < rows_ && count > 0; t++)
      level_->steps.soft_cap(logits + size_t(t) * plan_.vocabulary + from, plan_.logit_cap, count);
}

}  // namespace bitwright
