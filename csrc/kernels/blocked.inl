// Several tokens: codes of a stretch of groups are unpacked to bytes once, then multiplied with every block.
// Part of kernels.inl.

template <class P, int B> void unpack_fields(const uint8_t* unit, int units, uint8_t* out) {
  for (; units; units--, unit += B * kVector, out += 8 * kVector)
    each_quad<P, B>(unit, [&](int i, V<P> codes) { P::store(out + i * kVector, codes); });
}

template <class P> void unpack_codebook(const Term& t, const uint8_t* unit, int units, uint8_t* out) {
  const V<P> table = P::table16(t.table);
  for (; units; units--, unit += 4 * kVector, out += 8 * kVector)
    each_quad<P, 4>(unit, [&](int i, V<P> codes) { P::store(out + i * kVector, P::look16(table, codes)); });
}

template <class P> void unpack_base3(const uint8_t* unit, int units, uint8_t* out) {
  for (; units; units--, unit += kVector, out += 5 * kVector) {
    V<P> q[5];
    P::base3(P::load(unit), q);
    for (int i = 0; i < 5; i++) P::store(out + i * kVector, q[i]);
  }
}

// Codes of the selected columns, zero elsewhere, and behind them a plane of ones where a column is selected.
template <class P> void unpack_bitmap(const Term& t, const uint8_t* unit, uint8_t* out, Cursor& at) {
  const V<P> index = P::load(unit);
  for (int f = 0; f < 8; f++, out += kVector) {
    uint64_t mask = P::mask(index, f);
    if constexpr (P::expands) {
      P::store(out, P::expand(mask, at));
      P::store(out + t.plane, P::select(mask));
      at += __builtin_popcountll(mask);
    } else {
      P::store(out, P::zero()), P::store(out + t.plane, P::zero());
      for (; mask; mask &= mask - 1) {
        const int i = __builtin_ctzll(mask);
        out[i] = *at++;
        out[t.plane + i] = 1;
      }
    }
  }
}

template <class P> void unpack_nm(const Term& t, const uint8_t* index, const uint8_t* values, int block, uint8_t* out) {
  for (int i = 0; i < block / 4; i++) P::store(out + i * kVector, P::zero()), P::store(out + t.plane + i * kVector, P::zero());
  for (int i = 0; i < kVector; i++) {
    if (index[i] >= block) continue;
    const size_t place = index[i] / 4 * kVector + i / 4 * 4 + index[i] % 4;
    out[place] = values[i];
    out[t.plane + place] = 1;
  }
}

template <class P> void unpack_dense(const MatrixView& m, const Term& t, int tile, int g0, int g1, uint8_t* out) {
  using Unpack = void (*)(const uint8_t*, int, uint8_t*);
  static constexpr Unpack fields[] = {nullptr,
                                      unpack_fields<P, 1>,
                                      unpack_fields<P, 2>,
                                      unpack_fields<P, 3>,
                                      unpack_fields<P, 4>,
                                      unpack_fields<P, 5>,
                                      unpack_fields<P, 6>,
                                      unpack_fields<P, 7>,
                                      unpack_fields<P, 8>};
  const Runs& runs = m.runs[t.runs];
  const Unpack go = t.kind == Kind::base3 ? unpack_base3<P> : fields[t.bits];
  for (int g = g0; g < g1; g++) {
    const int units = runs.start[g + 1] - runs.start[g];
    const uint8_t* unit = t.codes + (size_t(tile) * t.units + runs.first[g]) * t.unit_bytes;
    if (t.kind == Kind::trellis) unpack_words<P>(t, unit, units, out);
    else if (t.kind == Kind::codebook) unpack_codebook<P>(t, unit, units, out);
    else go(unit, units, out);
    out += units * runs.unit * kLanes;
  }
}

template <class P> void unpack(const MatrixView& m, const Term& t, int tile, int g0, int g1, uint8_t* out, Cursor& at) {
  if (!t.values) return unpack_dense<P>(m, t, tile, g0, g1, out);
  const int columns = m.runs[t.runs].unit;
  for (int g = g0; g < g1; g++)
    each_unit(m, t, g, at, [&](int, int unit) {
      const size_t from = (size_t(tile) * t.units + unit) * kVector;
      if (t.kind == Kind::bitmap) unpack_bitmap<P>(t, t.codes + from, out, at);
      else unpack_nm<P>(t, t.codes + from, t.values + from, columns, out);
      out += columns * kLanes;
    });
}

// Adds groups [g0, g1) of a term to f [T][16].
template <class P, int T>
void product_groups(const MatrixView& m, const Term& t, const Activations& x, int tile, int g0, int g1, const uint8_t* codes,
                    float* f) {
  const Runs& runs = m.runs[t.runs];
  const Affine scales(t, tile);
  const int8_t* q = x.codes[t.runs] + size_t(runs.start[g0]) * runs.unit * T;
  const float *scale_x = x.scale[t.runs] + g0 * T, *sum_x = x.sum[t.runs] + g0 * T;
  const bool wide = t.bits > 4 || t.kind == Kind::codebook;
  for (int g = g0; g < g1; g++, scale_x += T, sum_x += T) {
    const int quads = (runs.start[g + 1] - runs.start[g]) * (runs.unit / 4);
    F<P> scale, min, sums[T];
    scales.at<P>(g, 0, scale, min);
    if (t.values) {
      V<P> sum[T];
      P::template product<T>(codes + t.plane, q, quads, false, sum);
#pragma GCC unroll 16
      for (int j = 0; j < T; j++) sums[j] = P::to_float(sum[j]);
    } else {
#pragma GCC unroll 16
      for (int j = 0; j < T; j++) sums[j] = P::all(sum_x[j]);
    }
    V<P> a[T];
    P::template product<T>(codes, q, quads, wide, a);
#pragma GCC unroll 16
    for (int j = 0; j < T; j++) {
      const F<P> part = P::mul(P::all(scale_x[j]), affine<P>(scale, min, a[j], sums[j]));
      P::storef(f + j * kLanes, P::sum(P::loadf(f + j * kLanes), part));
    }
    codes += quads * kVector, q += quads * 4 * T;
  }
}

// Terms after each other, each group after group.
template <class P>
void multiply_matrix(const MatrixView& m, const Activations* x, int blocks, int first, int last, float* y, size_t stride,
                     uint8_t* scratch) {
  using Product = void (*)(const MatrixView&, const Term&, const Activations&, int, int, int, const uint8_t*, float*);
  alignas(kVector) float f[kMaxBlocks][kMaxTokens * kLanes];
  for (int tile = first; tile < last; tile++) {
    for (int b = 0; b < blocks; b++)
      for (int i = 0; i < x[b].tokens; i++) P::storef(f[b] + i * kLanes, P::all(0));
    for (int i = 0; i < m.terms; i++) {
      const Term& t = m.term[i];
      Cursor at = first_value(t, tile, scratch);
      for (int g0 = 0; g0 < m.groups; g0 += m.stretch) {
        const int g1 = g0 + m.stretch < m.groups ? g0 + m.stretch : m.groups;
        unpack<P>(m, t, tile, g0, g1, scratch, at);
        for (int b = 0; b < blocks; b++) {
          const int tokens = x[b].tokens;
          Product product = tokens == 1 ? product_groups<P, 1> : tokens == 2 ? product_groups<P, 2> : product_groups<P, 4>;
          if constexpr (P::tokens >= 8)
            if (tokens == 8) product = product_groups<P, 8>;
          if constexpr (P::tokens >= 16)
            if (tokens == 16) product = product_groups<P, 16>;
          product(m, t, x[b], tile, g0, g1, scratch, f[b]);
        }
      }
    }
    float* out = y;
    for (int b = 0; b < blocks; b++)
      for (int i = 0; i < x[b].used; i++, out += stride) store_rows<P>(m, tile, P::loadf(f[b] + i * kLanes), out);
  }
}

template <class P>
void multiply(const MatrixView& m, const Activations* x, int blocks, int first, int last, float* y, size_t stride,
              uint8_t* scratch) {
  bool in_place = blocks == 1 && x->tokens == 1;
  for (int i = 0; i < m.terms; i++) {
    const Kind kind = m.term[i].kind;
    in_place &= kind == Kind::trellis || kind == Kind::codebook ? P::dots_words : P::expands || !m.term[i].values;
  }
  if (in_place) multiply_vector<P>(m, *x, first, last, y, scratch);
  else multiply_matrix<P>(m, x, blocks, first, last, y, stride, scratch);
}
