#include "activations.h"

#include <algorithm>
#include <vector>

#include "rotation.h"
#include "team.h"

namespace bitwright {
namespace {

constexpr size_t kWidestUnit = 128;  // columns of any run kind's units

constexpr size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

size_t run_bytes(const MatrixView& m, int kind, int tokens) {
  const size_t unit = m.runs[kind].order == Order::words ? round_up(m.runs[kind].unit, 8) : m.runs[kind].unit;
  return round_up(size_t(m.runs[kind].of[m.groups].start) * unit * tokens, kVector) + kVector;
}

// Whether two run kinds share codes, scales and sums: activations are multiplied by the same vector, and all count.
bool alike(const Runs& a, const Runs& b) { return a.inputs == b.inputs && a.picked == b.picked; }

int first_alike(const MatrixView& m, int kind) {
  int first = 0;
  while (!alike(m.runs[first], m.runs[kind])) first++;
  return first;
}

// Codes of a gathered run kind: a unit that two groups share is in both, with zeros for the columns of the other.
void beside(const MatrixView& m, const Runs& runs, const int8_t* rows, size_t row, int tokens, int8_t* out) {
  for (int g = 0; g < m.groups; g++) {
    const int from = g * m.group, to = g + 1 < m.groups ? from + m.group : int(row);
    for (int unit = runs.of[g].first, n = runs.of[g].count; n; n--, unit++) {
      const int first = unit * runs.unit, begin = std::max(first, from), end = std::min(first + runs.unit, to);
      for (int t = 0; t < tokens; t++, out += runs.unit) {
        std::memset(out, 0, size_t(runs.unit));
        std::memcpy(out + begin - first, rows + t * row + begin, size_t(end - begin));
      }
    }
  }
}

// Codes of picked columns from rows whose bytes past the last column are zero, and their sums [groups][tokens].
void pick(const MatrixView& m, const Runs& runs, const int8_t* rows, size_t row, int tokens, int8_t* out, float* sums) {
  const int* column = runs.picked;
  for (int g = 0; g < m.groups; g++, sums += tokens) {
    int32_t total[kMaxTokens] = {};
    for (int quads = runs.of[g].count * runs.unit / 4; quads; quads--, column += 4)
      for (int t = 0; t < tokens; t++)
        for (int i = 0; i < 4; i++) total[t] += *out++ = rows[t * row + column[i]];
    std::copy(total, total + tokens, sums);
  }
}

// `strided_column` of words of 4, 8, ... columns.
struct Orders {
  int column[kWord / 4 + 1][kWord];
  constexpr Orders() : column() {
    for (int quads = 1; quads <= kWord / 4; quads++)
      for (int i = 0; i < kWord; i++) column[quads][i] = strided_column(4 * quads, i);
  }
};
constexpr Orders kOrders;

// One token's codes in the order of `strided_column`.
void order_strided(const MatrixView& m, const Runs& runs, const int8_t* row, size_t bytes, int8_t* out) {
  const int places = int(round_up(runs.unit, 8)), *order = kOrders.column[runs.unit / 4];
  for (int g = 0; g < m.groups; g++) {
    const int from = g * m.group, to = g + 1 < m.groups ? from + m.group : int(bytes);
    for (int unit = runs.of[g].first, n = runs.of[g].count; n; n--, unit++, out += places) {
      const int first = unit * runs.unit;
      const bool whole = first >= from && first + runs.unit <= to;
      for (int i = 0; i < places; i++) {
        const int column = first + order[i];
        out[i] = order[i] >= 0 && (whole || (column >= from && column < to)) ? row[column] : int8_t(0);
      }
    }
  }
}

// Codes of one run kind from rows [tokens][row], whose bytes past the last column are zero.
void interleave(const MatrixView& m, const Runs& runs, const int8_t* rows, size_t row, int tokens, int8_t* out) {
  if (tokens == 1 && m.group % runs.unit == 0) {
    std::memcpy(out, rows, size_t(runs.of[m.groups].start) * runs.unit);
    return;
  }
  if (runs.order == Order::gathered) return beside(m, runs, rows, row, tokens, out);
  for (int g = 0; g < m.groups; g++) {
    const int from = g * m.group, to = g + 1 < m.groups ? from + m.group : int(row);
    const int units = runs.of[g].count;
    for (int c = runs.of[g].first * runs.unit; c < (runs.of[g].first + units) * runs.unit; c += 4, out += 4 * tokens) {
      if (c >= from && c + 4 <= to) {
        const int8_t* in = rows + c;
        for (int t = 0; t < tokens; t++, in += row) std::memcpy(out + 4 * t, in, 4);
      } else {
        for (int i = 0; i < 4 * tokens; i++) {
          const int column = c + i % 4;
          out[i] = column >= from && column < to ? rows[i / 4 * row + column] : int8_t(0);
        }
      }
    }
  }
}

}  // namespace

void ActivationBlocks::resize(const Kernels& level, const MatrixView& m, int count) {
  size_ = 0;
  for (int done = 0; done < count; size_++) {
    int tokens = level.tokens;
    while (tokens > 1 && tokens / 2 >= count - done) tokens /= 2;
    const size_t floats = round_up(size_t(m.groups) * tokens * sizeof(float), kVector);
    size_t bytes = 2 * floats * m.run_kinds;
    for (int i = 0; i < m.run_kinds; i++) bytes += run_bytes(m, i, tokens);
    if (capacity_[size_] < bytes) buffer_[size_] = allocate_zeros(capacity_[size_] = bytes);
    uint8_t* at = buffer_[size_].get();
    Activations& block = blocks_[size_];
    block.tokens = tokens, block.used = std::min(tokens, count - done);
    for (int i = 0; i < m.run_kinds; i++, at += 2 * floats) {
      const bool own = first_alike(m, i) == i;
      block.scale[i] = own ? reinterpret_cast<float*>(at) : block.scale[first_alike(m, i)];
      block.sum[i] = own ? reinterpret_cast<float*>(at + floats) : block.sum[first_alike(m, i)];
    }
    for (int i = 0; i < m.run_kinds; at += run_bytes(m, i++, tokens)) block.codes[i] = reinterpret_cast<int8_t*>(at);
    done += block.used;
  }
}

void ActivationBlocks::fill(const Kernels& level, const MatrixView& m, const float* x, size_t stride, int b) {
  static thread_local Memory<int8_t> rows;
  static thread_local size_t capacity = 0;
  const Activations& block = blocks_[b];
  const int tokens = block.tokens;
  const size_t row = round_up(size_t(m.columns), kVector) + kWidestUnit;
  if (capacity < row * tokens) rows = allocate<int8_t>(capacity = row * tokens);
  static thread_local std::vector<float> scaled, rotated;
  scaled.resize(m.columns);
  if (m.rotation.factors) {
    rotated.resize(size_t(m.columns) * block.used);
    for (int t = 0; t < block.used; t++) {
      const float* from = x + size_t(b * level.tokens + t) * stride;
      mix(level, from, m.rotation.factors, nullptr, m.rotation, rotated.data() + size_t(t) * m.columns);
    }
  }
  for (int kind = 0; kind < m.run_kinds; kind++) {
    if (first_alike(m, kind) != kind) continue;
    const float* inputs = m.runs[kind].inputs;
    for (int t = 0; t < tokens; t++) {
      std::memset(rows.get() + t * row + m.columns, 0, row - m.columns);
      if (t >= block.used) std::memset(rows.get() + t * row, 0, m.columns);
      const float* source = m.rotation.factors ? rotated.data() + size_t(t) * m.columns : x + size_t(b * level.tokens + t) * stride;
      if (inputs && t < block.used) {
        for (int k = 0; k < m.columns; k++) scaled[k] = source[k] * inputs[k];
        source = scaled.data();
      }
      for (int g = 0; g < m.groups; g++) {
        const int from = g * m.group;
        float scale = 0;
        int32_t sum = 0;
        if (t < block.used)
          scale = level.quantize(source + from, std::min(m.group, m.columns - from), rows.get() + t * row + from, &sum);
        block.scale[kind][g * tokens + t] = scale, block.sum[kind][g * tokens + t] = float(sum);
      }
    }
    const bool alone = size_ == 1 && tokens == 1;  // then words are multiplied in place
    for (int i = kind; i < m.run_kinds; i++) {
      if (!alike(m.runs[i], m.runs[kind])) continue;
      if (m.runs[i].picked) pick(m, m.runs[i], rows.get(), row, tokens, block.codes[i], block.sum[i]);
      else if (alone && m.runs[i].order == Order::words && level.strides) order_strided(m, m.runs[i], rows.get(), row, block.codes[i]);
      else interleave(m, m.runs[i], rows.get(), row, tokens, block.codes[i]);
    }
  }
}

void ActivationBlocks::fill_all(const Kernels& level, const MatrixView& m, const float* x, size_t stride, int count) {
  resize(level, m, count);
  for (int b = 0; b < size_; b++) fill(level, m, x, stride, b);
}

namespace {

struct Workspace {
  ActivationBlocks activations;
  Memory<> scratch;
  size_t capacity = 0;
};

void multiply_part(const Kernels& level, const MatrixView& m, const float* x, size_t stride_x, int count, int first, int last,
                   float* y, size_t stride_y) {
  static thread_local Workspace space;
  const size_t bytes = kMaxTiles * m.scratch;
  if (space.capacity < bytes) space.scratch = allocate(space.capacity = bytes);
  const int most = kMaxBlocks * level.tokens;
  for (int t = 0; t < count; t += most) {
    space.activations.fill_all(level, m, x + t * stride_x, stride_x, std::min(most, count - t));
    level.multiply(m, space.activations.blocks(), space.activations.size(), first, last, y + t * stride_y, stride_y,
                   space.scratch.get());
  }
}

}  // namespace

// Many tokens are split by token, few by row: there every thread quantizes for itself, which is cheaper than a barrier.
void multiply(const Kernels& level, const MatrixView& m, const float* x, size_t stride_x, int count, float* y, size_t stride_y,
              int threads) {
  const double work = double(m.rows) * m.columns * count;
  if (work < 2e5) threads = 1;
  Team::shared().run(threads, [&](int worker, int workers) {
    const bool by_token = count >= 2 * level.tokens * workers;
    const int chunk = by_token ? (count + workers - 1) / workers + level.tokens - 1 : 0;
    const int share = chunk / level.tokens * level.tokens;
    const int t0 = by_token ? std::min(worker * share, count) : 0, t1 = by_token ? std::min(t0 + share, count) : count;
    const int first = by_token ? 0 : m.tiles * worker / workers, last = by_token ? m.tiles : m.tiles * (worker + 1) / workers;
    if (t0 < t1) multiply_part(level, m, x + t0 * stride_x, stride_x, t1 - t0, first, last, y + t0 * stride_y, stride_y);
  });
}

}  // namespace bitwright
