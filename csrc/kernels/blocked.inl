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
  unpack_fields<P, 1>(unit, 1, out + t.plane);
  for (int f = 0; f < 8; f++, out += kVector) {
    uint64_t mask = P::mask(index, f);
    if constexpr (P::expands) {
      P::store(out, P::expand(mask, at));
      at += __builtin_popcountll(mask);
    } else {
      P::store(out, P::zero());
      for (; mask; mask &= mask - 1) out[__builtin_ctzll(mask)] = *at++;
    }
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
    const int units = runs.of[g].count;
    const uint8_t* unit = t.codes + (size_t(tile) * t.units + runs.of[g].first) * t.unit_bytes;
    if (t.kind == Kind::trellis) unpack_words<P>(t, unit, units, out);
    else if (t.kind == Kind::codebook) unpack_codebook<P>(t, unit, units, out);
    else go(unit, units, out);
    out += units * runs.unit * kLanes;
  }
}

template <class P> void unpack(const MatrixView& m, const Term& t, int tile, int g0, int g1, uint8_t* out, Cursor& at) {
  if (!t.values) return unpack_dense<P>(m, t, tile, g0, g1, out);
  for (int g = g0; g < g1; g++)
    each_unit(m, t, g, at, [&](int, int unit) {
      unpack_bitmap<P>(t, t.codes + (size_t(tile) * t.units + unit) * kVector, out, at);
      out += m.runs[t.runs].unit * kLanes;
    });
}

// Adds groups [g0, g1) of an n:m term, of N tiles, to f [N][kMaxTokens][16]: gathered in place, a token after the other.
template <class P, int N, class Dot>
void gather_groups(const MatrixView& m, const Term& t, const Activations& x, int tile, int g0, int g1, float* f) {
  const Runs& runs = m.runs[t.runs];
  const int8_t* q = x.codes[t.runs] + size_t(runs.of[g0].start) * Dot::columns * x.tokens;
  const float* scale_x = x.scale[t.runs] + g0 * x.tokens;
  F<P> scale[N], min[N];
  for (int i = 0; i < N; i++) Affine(t, tile + i).at<P>(0, 0, scale[i], min[i]);  // one of a row
  for (int g = g0; g < g1; g++, scale_x += x.tokens) {
    const int units = runs.of[g].count;
    const size_t from = (size_t(tile) * t.units + runs.of[g].first) * kVector, apart = size_t(t.units) * kVector;
    for (int j = 0; j < x.tokens; j++)
#pragma GCC unroll 2
      for (int i = 0; i < N; i++) {
        const uint8_t *index = t.codes + from + i * apart, *values = t.values + from + i * apart;
        Dot dot;
        dot.add(index, values, q + j * Dot::columns, size_t(x.tokens) * Dot::columns, units);
        float* to = f + (i * kMaxTokens + j) * kLanes;
        const F<P> part = affine<P>(scale[i], min[i], dot.a, P::to_float(dot.ones));
        P::storef(to, P::sum(P::loadf(to), P::mul(P::all(scale_x[j]), part)));
      }
    q += size_t(units) * Dot::columns * x.tokens;
  }
}

// Of codes in bytes, of N tiles `apart` bytes from each other, with T tokens of a block of `tokens`. Several tiles share the
// loads of the activations, which else, one a product, are what is scarce.
template <class P, int N, int T>
inline void products(const uint8_t* codes, size_t apart, const int8_t* q, int tokens, int quads, bool wide, V<P> (*sum)[T]) {
  if constexpr (N == 1) {
    P::template product<T>(codes, q, quads, wide, sum[0]);
  } else {
#pragma GCC unroll 4
    for (int i = 0; i < N; i++)
#pragma GCC unroll 16
      for (int j = 0; j < T; j++) sum[i][j] = P::zero();
    for (; quads; quads--, codes += kVector, q += 4 * tokens) {
      V<P> c[N];
#pragma GCC unroll 4
      for (int i = 0; i < N; i++) c[i] = P::load_once(codes + i * apart);
#pragma GCC unroll 16
      for (int j = 0; j < T; j++) {
        const V<P> four = P::quad(q + 4 * j);
#pragma GCC unroll 4
        for (int i = 0; i < N; i++) sum[i][j] = P::dot(sum[i][j], c[i], four);
      }
    }
  }
}

// Adds groups [g0, g1) of a term, of N tiles, to f [N][kMaxTokens][16]; T tokens at a time.
template <class P, int N, int T>
void product_groups(const MatrixView& m, const Term& t, const Activations& x, int tile, int g0, int g1, const uint8_t* codes,
                    float* f, Fetch* next, int lines) {
  const Runs& runs = m.runs[t.runs];
  const Affine scales(t, tile);
  const int tokens = N == 1 ? T : x.tokens;
  const int8_t* q = x.codes[t.runs] + size_t(runs.of[g0].start) * runs.unit * tokens;
  const float *scale_x = x.scale[t.runs] + g0 * tokens, *sum_x = x.sum[t.runs] + g0 * tokens;
  const bool wide = t.bits > 4 || t.kind == Kind::codebook;
  for (int g = g0; g < g1; g++, scale_x += tokens, sum_x += tokens) {
    const int quads = runs.of[g].count * (runs.unit / 4);
    F<P> scale[N], min[N];
#pragma GCC unroll 4
    for (int i = 0; i < N; i++) {
      scales.at<P>(g, i, scale[i], min[i]);
      next[i].lines<2>(lines);
    }
    for (int from = 0; from < tokens; from += T) {
      float* rows = f + from * kLanes;
      const float *factor = scale_x + from, *total = sum_x + from;
      V<P> sum[N][T];
      // `all`: the sums of the activations that the codes stand for.
      const auto add = [&](const auto& all) {
        products<P, N, T>(codes, m.scratch, q + 4 * from, tokens, quads, wide, sum);
#pragma GCC unroll 16
        for (int j = 0; j < T; j++)
#pragma GCC unroll 4
          for (int i = 0; i < N; i++) {
            float* to = rows + (i * kMaxTokens + j) * kLanes;
            const F<P> part = affine<P>(scale[i], min[i], sum[i][j], all(i, j));
            P::storef(to, P::sum(P::loadf(to), P::mul(P::all(factor[j]), part)));
          }
      };
      if (t.values) {
        products<P, N, T>(codes + t.plane, m.scratch, q + 4 * from, tokens, quads, false, sum);
        F<P> selected[N][T];
#pragma GCC unroll 4
        for (int i = 0; i < N; i++)
#pragma GCC unroll 16
          for (int j = 0; j < T; j++) selected[i][j] = P::to_float(sum[i][j]);
        add([&](int i, int j) { return selected[i][j]; });
      } else {
        add([&](int, int j) { return P::all(total[j]); });
      }
    }
    codes += quads * kVector, q += quads * 4 * tokens;
  }
}

// N tiles; terms after each other, each group after group.
template <class P, int N>
void multiply_tiles(const MatrixView& m, const Activations* x, int blocks, int tile, float* y, size_t stride, uint8_t* scratch) {
  using Product = void (*)(const MatrixView&, const Term&, const Activations&, int, int, int, const uint8_t*, float*, Fetch*,
                           int);
  constexpr int most = N == 1 ? P::tokens : P::tokens / 2;  // at a time: their sums fill the registers
  alignas(kVector) float f[kMaxBlocks][N][kMaxTokens * kLanes];
  for (int i = 0; i < m.terms; i++) {
    const Term& t = m.term[i];
    Cursor at[N];
    for (int n = 0; n < N; n++) at[n] = first_value(t, tile + n, scratch + n * m.scratch);
    for (int g0 = 0; g0 < m.groups; g0 += m.stretch) {
      const int g1 = g0 + m.stretch < m.groups ? g0 + m.stretch : m.groups;
      Fetch next[N];  // of the tiles that are unpacked after these
      const Runs& runs = m.runs[t.runs];
      for (int n = 0; n < N; n++) {
        if (t.kind != Kind::nm) unpack<P>(m, t, tile + n, g0, g1, scratch + n * m.scratch, at[n]);
        next[n].at = t.codes + (size_t(tile + N + n) * t.units + runs.of[g0].first) * t.unit_bytes;
      }
      const int bytes = (runs.of[g1].start - runs.of[g0].start) * t.unit_bytes, lines = bytes / kVector / (blocks * (g1 - g0)) + 1;
      float* out = y;
      for (int b = 0; b < blocks; out += x[b].used * stride, b++) {
        const int tokens = x[b].tokens < most ? x[b].tokens : most;
        Product product = tokens == 1 ? product_groups<P, N, 1> : tokens == 2 ? product_groups<P, N, 2> : product_groups<P, N, 4>;
        if constexpr (most >= 8)
          if (tokens == 8) product = product_groups<P, N, 8>;
        if constexpr (most >= 16)
          if (tokens == 16) product = product_groups<P, N, 16>;
        // A block's rows begin and are stored where they are in the first cache.
        if (i == 0 && g0 == 0)
          for (auto& rows : f[b])
            for (int j = 0; j < x[b].tokens; j++) P::storef(rows + j * kLanes, P::all(0));
        if (t.kind == Kind::nm)
          with_blocks<P>(m, t, [&](auto dot) { gather_groups<P, N, decltype(dot)>(m, t, x[b], tile, g0, g1, f[b][0]); });
        else product(m, t, x[b], tile, g0, g1, scratch, f[b][0], next, lines);
        if (i + 1 == m.terms && g1 == m.groups)
          for (int j = 0; j < x[b].used; j++)
            for (int n = 0; n < N; n++) store_rows<P>(m, tile + n, P::loadf(f[b][n] + j * kLanes), out + j * stride);
      }
    }
  }
}

template <class P>
void multiply_matrix(const MatrixView& m, const Activations* x, int blocks, int first, int last, float* y, size_t stride,
                     uint8_t* scratch) {
  for (; first + P::tiles <= last; first += P::tiles) multiply_tiles<P, P::tiles>(m, x, blocks, first, y, stride, scratch);
  for (; first < last; first++) multiply_tiles<P, 1>(m, x, blocks, first, y, stride, scratch);
}

template <class P>
void multiply(const MatrixView& m, const Activations* x, int blocks, int first, int last, float* y, size_t stride,
              uint8_t* scratch) {
  static_assert(!P::strides || (P::expands && P::dots_words), "all is multiplied in place where activations lie for that");
  bool in_place = blocks == 1 && x->tokens == 1;
  for (int i = 0; i < m.terms; i++) {
    const Kind kind = m.term[i].kind;
    in_place &= kind == Kind::trellis || kind == Kind::codebook ? P::dots_words : kind != Kind::bitmap || P::expands;
  }
  if (in_place) multiply_vector<P>(m, *x, first, last, y, scratch);
  else multiply_matrix<P>(m, x, blocks, first, last, y, stride, scratch);
}
