// Who gathers what from the cache: with several tokens queries are shared out, with one the ranges of positions are.
#include <algorithm>
#include <climits>

#include "engine/engine.h"

namespace bitwright {
namespace {

Part part_of(Query& q) {
  float total = 0;
  for (float lane : q.sum) total += lane;
  return {q.top, total, q.mixed};
}

// What was mixed, divided by the sum of its weights.
void finish(const Part& whole, int dims) {
  const float inverse = 1.0f / whole.total;
  float* mixed = whole.mixed;
  for (int i = 0; i < dims; i++) mixed[i] *= inverse;
}

}  // namespace

Request Engine::request(const Layer& l, int token, int head) const {
  const int last = rows_of_block_[token].position;
  return {q_ + (size_t(token) * plan_.heads + head) * plan_.head_dim, l.window > 0 ? std::max(0, last + 1 - l.window) : 0, last};
}

// Queries in the order of their kv heads: every worker has an even share of them, and few kv heads to read.
void Engine::attention(int index, int worker, int workers) {
  const Layer& l = plan_.layers[index];
  const Steps& steps = level_->steps;
  const int dim = plan_.head_dim, share = plan_.heads / plan_.kv_heads, per_head = count_ * share;
  const int end = part(count_ * plan_.heads, worker + 1, workers);
  Query* queries = workers_[worker].queries.get();
  for (int i = part(count_ * plan_.heads, worker, workers); i < end;) {
    const int kv = i / per_head, stop = std::min({end, (kv + 1) * per_head, i + kQueries});
    const Sequence* sequence = rows_of_block_[i % per_head / share].sequence;
    Request requests[kQueries];
    Part whole[kQueries];
    int count = 0, first = INT_MAX, last = 0;
    for (; i < stop && rows_of_block_[i % per_head / share].sequence == sequence; i++, count++) {
      const int token = i % per_head / share, head = kv * share + i % share;
      const Request& r = requests[count] = request(l, token, head);
      first = std::min(first, r.first), last = std::max(last, r.last);
      sequence->cache.begin(steps, r, score_scale(), plan_.attention_cap, queries[count]);
      whole[count] = {kNoScore, 0, mixed_ + (size_t(token) * plan_.heads + head) * dim};
    }
    const Cache::Place neighbour = {std::min(kv + 1, plan_.kv_heads - 1), first};
    for (int range = first / kRange; range <= last / kRange; range++) {
      const Cache::Place next = range < last / kRange ? Cache::Place{kv, (range + 1) * kRange} : neighbour;
      sequence->cache.gather(steps, index, kv, range, queries, count, plan_.attention_cap, next);
      for (int j = 0; j < count; j++)
        if (requests[j].sees(range)) steps.fold(part_of(queries[j]), dim, whole[j]);
    }
    for (int j = 0; j < count; j++) finish(whole[j], dim);
  }
}

// Shares of the pages that all query heads read: a border falls between heads, so that a range may have two workers.
void Engine::share_ranges(int index, int worker, int workers) {
  const Row& row = rows_of_block_[0];
  const Request r = request(plan_.layers[index], 0, 0);
  const int share = plan_.heads / plan_.kv_heads, from = r.first / kPage, end = r.last / kPage + 1, pages = end - from;
  const int all = plan_.kv_heads * share * pages, low = part(all, worker, workers), high = part(all, worker + 1, workers);
  std::vector<Gathering>& mine = workers_[worker].gatherings;
  mine.clear();
  int at = 0;  // pages that queries before these read
  for (int kv = 0; kv < plan_.kv_heads; kv++)
    for (int range = r.first / kRange; range <= r.last / kRange; range++) {
      constexpr int most = kRange / kPage;
      const int here = std::min((range + 1) * most, end) - std::max(range * most, from);
      const auto queries_before = [&](int border) { return std::min(std::max(border - at + here / 2, 0) / here, share); };
      for (int first = queries_before(low), stop = queries_before(high); first < stop; first += kQueries) {
        const Gathering g = {kv, first, std::min(stop - first, kQueries), range, range};
        if (share <= kQueries && !mine.empty() && mine.back().continues(g)) mine.back().last = range;
        else mine.push_back(g);
      }
      at += here * share;
    }
  if (!mine.empty()) row.sequence->cache.fetch(index, {mine[0].kv_head, std::max(r.first, mine[0].range * kRange)}, r.last);
}

void Engine::gather(int index, int worker) {
  Worker& w = workers_[worker];
  const Layer& l = plan_.layers[index];
  const Request seen = request(l, 0, 0);
  const Cache& cache = rows_of_block_[0].sequence->cache;
  const int dim = plan_.head_dim, share = plan_.heads / plan_.kv_heads;
  for (size_t i = 0; i < w.gatherings.size(); i++) {
    const Gathering &g = w.gatherings[i], &after = w.gatherings[std::min(i + 1, w.gatherings.size() - 1)];
    const bool all = g.range == seen.first / kRange && g.last == seen.last / kRange;
    const int head = g.kv_head * share + g.first;
    for (int j = 0; j < g.count; j++) {
      cache.begin(level_->steps, request(l, 0, head + j), score_scale(), plan_.attention_cap, w.queries[j]);
      folded_[head + j] = all;
    }
    for (int range = g.range; range <= g.last; range++) {
      const Cache::Place next = range < g.last ? Cache::Place{g.kv_head, (range + 1) * kRange}
                                               : Cache::Place{after.kv_head, std::max(seen.first, after.range * kRange)};
      cache.gather(level_->steps, index, g.kv_head, range, w.queries.get(), g.count, plan_.attention_cap, next);
      for (int j = 0; j < g.count; j++) {
        const size_t row = size_t(head + j) * ranges_ + (all ? g.range : range);
        if (!all || range == g.range) parts_[row] = {kNoScore, 0, gathered_.data() + row * dim};
        level_->steps.fold(part_of(w.queries[j]), dim, parts_[row]);
      }
    }
  }
}

void Engine::fold_ranges(int index, int worker) {
  const Request r = request(plan_.layers[index], 0, 0);
  for (int head = 0; head < plan_.heads; head++) {
    const int dim = plan_.head_dim;
    Part whole = {kNoScore, 0, workers_[worker].mixed.get() + size_t(head) * dim};
    const int from = r.first / kRange, last = folded_[head] ? from : r.last / kRange;
    for (int range = from; range <= last; range++)
      level_->steps.fold(parts_[size_t(head) * ranges_ + range], dim, whole);
    finish(whole, dim);
  }
}

}  // namespace bitwright
