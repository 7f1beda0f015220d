#include "reference.h"

#include <cmath>
#include <vector>

#include "codes.h"

namespace bitwright {
namespace {

constexpr int kAbsent = -1;

int nm_code(const Term& t, int block, int row, int column) {
  const size_t at = (size_t(row / kLanes) * t.units + column / block) * kVector + row % kLanes * 4;
  for (int i = 0; i < 4; i++)
    if (t.codes[at + i] == column % block) return t.values[at + i];
  return kAbsent;
}

// Codes [row][column] of one term, kAbsent where a sparse term has none.
std::vector<int> term_codes(const MatrixView& m, const Term& t) {
  std::vector<int> codes(size_t(m.rows) * m.columns);
  if (const Runs& runs = m.runs[t.runs]; runs.picked) {
    codes.assign(codes.size(), kAbsent);
    for (int n = 0; n < m.rows; n++)
      for (int place = 0; place < runs.places; place++)
        if (runs.picked[place] < m.columns) codes[size_t(n) * m.columns + runs.picked[place]] = dense_code(t, n, place);
    return codes;
  }
  for (int n = 0; n < m.rows; n++)
    for (int k = 0; k < m.columns; k++)
      codes[size_t(n) * m.columns + k] = !t.values              ? dense_code(t, n, k)
                                         : t.kind == Kind::nm ? nm_code(t, m.runs[t.runs].unit, n, k)
                                                              : kAbsent;
  if (t.kind != Kind::bitmap) return codes;
  size_t position = 0;
  for (int tile = 0; tile < m.tiles; tile++)
    for (int quad = 0; quad < t.units * 8; quad++)
      for (int i = 0; i < kVector; i++) {
        if (!(t.codes[(size_t(tile) * t.units + quad / 8) * kVector + i] >> quad % 8 & 1)) continue;
        const int row = tile * kLanes + i / 4, column = quad * 4 + i % 4;
        const int value = t.bits == 8 ? t.values[position] : t.values[position / 2] >> 4 * (position % 2) & 15;
        if (row < m.rows && column < m.columns) codes[size_t(row) * m.columns + column] = value;
        position++;
      }
  return codes;
}

// x times signs, then sums and differences of columns 1, 2, 4, ... apart in each block, then sums of the blocks.
std::vector<float> rotated(const MatrixView& m, const float* x) {
  std::vector<float> y(x, x + m.columns);
  const Rotation& r = m.rotation;
  if (!r.factors) return y;
  for (int k = 0; k < m.columns; k++) y[k] *= r.factors[k];
  for (int half = 1; half < r.block; half *= 2)
    for (int k = 0; k < m.columns; k++) {
      if (k & half) continue;
      const float a = y[k], b = y[k + half];
      y[k] = a + b, y[k + half] = a - b;
    }
  if (!r.across) return y;
  const std::vector<float> apart = y;
  const int blocks = m.columns / r.block;
  for (int k = 0; k < m.columns; k++) {
    const float* row = r.across + k / r.block * blocks;
    y[k] = row[0] * apart[k % r.block];
    for (int b = 1; b < blocks; b++) y[k] += row[b] * apart[b * r.block + k % r.block];
  }
  return y;
}

}  // namespace

void reference_multiply(const MatrixView& m, const float* x, int count, float* y) {
  std::vector<std::vector<int>> codes;
  for (int i = 0; i < m.terms; i++) codes.push_back(term_codes(m, m.term[i]));
  std::vector<int> q(m.columns);
  std::vector<float> scaled(m.columns);
  for (int token = 0; token < count; token++, x += m.columns, y += m.rows) {
    for (int n = 0; n < m.rows; n++) y[n] = 0;
    const std::vector<float> seen = rotated(m, x);
    for (int i = 0; i < m.terms; i++) {
      const Term& t = m.term[i];
      for (int g = 0; g < m.groups; g++) {
        const int from = g * m.group, to = g + 1 < m.groups ? from + m.group : m.columns;
        const float* inputs = m.runs[t.runs].inputs;
        float top = 0;
        for (int k = from; k < to; k++) {
          scaled[k] = inputs ? seen[k] * inputs[k] : seen[k];
          top = std::fmax(top, std::fabs(scaled[k]));
        }
        const float scale = top / 127.0f, inverse = scale > 0 ? 1.0f / scale : 0.0f;
        for (int k = from; k < to; k++) q[k] = int(std::nearbyint(std::fmax(std::fmin(scaled[k] * inverse, 127.0f), -127.0f)));
        for (int n = 0; n < m.rows; n++) {
          int32_t a = 0, sum = 0;
          for (int k = from; k < to; k++) {
            const int code = codes[i][size_t(n) * m.columns + k];
            if (code == kAbsent) continue;
            a += code * q[k], sum += q[k];
          }
          const size_t at = (size_t(n / kLanes) * t.groups + t.weight_group[g]) * kLanes + n % kLanes;
          const float s = from_half(t.scales[at]), min = t.mins ? from_half(t.mins[at]) : s * t.offset;
          const float product = s * float(a), correction = min * float(sum);
          y[n] += scale * (product + correction);
        }
      }
    }
    if (m.bias)
      for (int n = 0; n < m.rows; n++) y[n] += m.bias[n];
  }
}

}  // namespace bitwright
