#include "codes.h"

#include <cmath>

namespace bitwright {
namespace {

int field_code(const Term& t, int row, int column) {
  const uint8_t* unit = t.codes + (size_t(row / kLanes) * t.units + column / 32) * t.unit_bytes;
  int code = 0;
  for (int width = 8, shift = 0; width; width /= 2) {
    if (shift + width > t.bits) continue;
    const int fields = 8 / width, k = column % 32 % (4 * fields);
    const uint8_t byte = unit[(shift + column % 32 / (4 * fields)) * kVector + row % kLanes * 4 + k % 4];
    code |= (byte >> width * (k / 4) & ((1 << width) - 1)) << shift;
    shift += width;
  }
  return code;
}

int word_code(const Term& t, int row, int column) {
  const uint8_t* unit = t.codes + (size_t(row / kLanes) * t.units + column / t.per_word) * t.unit_bytes;
  const uint8_t* word = unit + row % kLanes * kWordBytes;
  const int start = window_start(t.per_word, column % t.per_word), byte = start / 8;
  return t.table[(word[byte] | word[(byte + 1) % kWordBytes] << 8) >> start % 8 & (kStates - 1)];
}

int base3_code(const Term& t, int row, int column) {
  const uint8_t* unit = t.codes + (size_t(row / kLanes) * t.units + column / 20) * kVector;
  int v = unit[row % kLanes * 4 + column % 4];
  for (int i = column % 20 / 4; i; i--) v /= 3;
  return v % 3;
}

}  // namespace

float from_half(uint16_t h) {
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  const float sign = h & 0x8000 ? -1.0f : 1.0f;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(float(1024 + mantissa), exponent - 25) : std::ldexp(float(mantissa), -24));
}

int dense_code(const Term& t, int row, int column) {
  switch (t.kind) {
    case Kind::base3: return base3_code(t, row, column);
    case Kind::trellis: return word_code(t, row, column);
    case Kind::codebook: return t.table[field_code(t, row, column)];
    default: return field_code(t, row, column);
  }
}

void decode_row(const MatrixView& m, int row, float* out) {
  for (int k = 0; k < m.columns; k++) out[k] = 0;
  for (int i = 0; i < m.terms; i++) {
    const Term& t = m.term[i];
    for (int g = 0; g < m.groups; g++) {
      const size_t at = (size_t(row / kLanes) * t.groups + t.weight_group[g]) * kLanes + row % kLanes;
      const float scale = from_half(t.scales[at]), min = t.mins ? from_half(t.mins[at]) : scale * t.offset;
      for (int k = g * m.group; k < (g + 1) * m.group && k < m.columns; k++) out[k] += scale * float(dense_code(t, row, k)) + min;
    }
  }
}

}  // namespace bitwright
