// One token: terms are read in place.
// Part of kernels.inl.

// One tile after the other is one stream, which memory gives faster than two. Trellis codes take so long to decode that two
// tiles at once, which share the broadcasts of the activations, are faster.
template <class Dot> constexpr int kTilesAtOnce = 1;
template <class P, int N> constexpr int kTilesAtOnce<DotTrellis<P, N>> = 2;
constexpr size_t kAhead = 4096;  // bytes from what is read to what is fetched

// part[i] = scale * A + min * Q of group g in N neighbouring tiles.
template <class P, class Dot, int N>
inline void dense_parts(const MatrixView& m, const Term& t, const Activations& x, int tile, int g, F<P>* part) {
  const Runs& runs = m.runs[t.runs];
  const size_t tile_bytes = size_t(t.units) * Dot::bytes;
  const uint8_t* unit = t.codes + tile * tile_bytes + size_t(runs.first[g]) * Dot::bytes;
  const int8_t* q = x.codes[t.runs] + size_t(runs.start[g]) * Dot::columns;
  const size_t ahead = N == 1 ? kAhead : N * tile_bytes;
  constexpr int level = N == 1 ? 3 : 2;  // of cache; what is needed only after this tile would be in the way in the first
  Dot dot[N];
  for (Dot& d : dot) begin(d, t);
  for (int n = runs.start[g + 1] - runs.start[g]; n; n--, unit += Dot::bytes, q += Dot::columns)
#pragma GCC unroll 2
    for (int i = 0; i < N; i++) {
#pragma GCC unroll 8
      for (int line = 0; line < Dot::bytes; line += kVector) __builtin_prefetch(unit + i * tile_bytes + ahead + line, 0, level);
      dot[i].add(unit + i * tile_bytes, q);
    }
#pragma GCC unroll 2
  for (int i = 0; i < N; i++) {
    F<P> scale, min;
    const Affine affine_of(t, tile + i);
    affine_of.prefetch(g + N * t.groups);
    affine_of.at<P>(g, scale, min);
    part[i] = affine<P>(scale, min, dot[i].total(), P::all(x.sum[t.runs][g]));
  }
}

template <class P, class Dot, int N>
void single_dense(const MatrixView& m, const Activations& x, int tile, float* y) {
  F<P> f[N], part[N];
#pragma GCC unroll 2
  for (int i = 0; i < N; i++) f[i] = P::all(0);
  for (int g = 0; g < m.groups; g++) {
    dense_parts<P, Dot, N>(m, m.term[0], x, tile, g, part);
#pragma GCC unroll 2
    for (int i = 0; i < N; i++) f[i] = P::sum(f[i], P::mul(P::all(x.scale[m.term[0].runs][g]), part[i]));
  }
  for (int i = 0; i < N; i++) store_rows<P>(m, tile + i, f[i], y);
}

// A matrix of one dense term.
template <class P, class Dot> void multiply_dense(const MatrixView& m, const Activations& x, int first, int last, float* y) {
  constexpr int n = kTilesAtOnce<Dot>;
  for (; first + n <= last; first += n) single_dense<P, Dot, n>(m, x, first, y);
  if (first < last) single_dense<P, Dot, 1>(m, x, first, y);
}

template <class P, class Dot>
void vector_dense(const MatrixView& m, const Term& t, const Activations& x, int tile, int g0, int g1, float* out) {
  for (int g = g0; g < g1; g++, out += kLanes) {
    F<P> part;
    dense_parts<P, Dot, 1>(m, t, x, tile, g, &part);
    P::storef(out, part);
  }
}

template <class P>
void vector_sparse(const MatrixView& m, const Term& t, const Activations& x, int tile, int g0, int g1, float* out, Cursor& at) {
  const uint8_t* tile_codes = t.codes + size_t(tile) * t.units * kVector;
  const uint8_t* tile_values = t.values + size_t(tile) * t.units * kVector;
  const int8_t* codes = x.codes[t.runs];
  const int columns = m.runs[t.runs].unit;
  const V<P> one = P::all8(1);
  const Affine scales(t, tile);
  for (int g = g0; g < g1; g++, out += kLanes) {
    V<P> a = P::zero(), sum = P::zero();
    each_unit(m, t, g, at, [&](int run, int unit) {
      const V<P> index = P::load(tile_codes + size_t(unit) * kVector);
      const int8_t* q = codes + size_t(run) * columns;
      if (t.kind == Kind::nm) {
        const V<P> picked = P::gather(index, q, columns);
        a = P::dot(a, P::load(tile_values + size_t(unit) * kVector), picked);
        sum = P::dot(sum, one, picked);
        return;
      }
      for (int f = 0; f < 8; f++) {
        const uint64_t mask = P::mask(index, f);
        const V<P> four = P::quad(q + 4 * f);
        a = P::dot(a, P::expand(mask, at.values, at.position, t.bits), four);
        sum = P::dot(sum, P::select(mask), four);
        at.position += __builtin_popcountll(mask);
      }
    });
    F<P> scale, min;
    scales.at<P>(g, scale, min);
    P::storef(out, affine<P>(scale, min, a, P::to_float(sum)));
  }
}

// Calls go with a default value of the dot product of a dense term.
template <class P, class Go> inline void with_dot(const Term& t, Go go) {
  if constexpr (P::dots_words) {
    if (t.kind == Kind::trellis)
      return with_word(t.per_word, [&](auto word) { go(DotTrellis<P, decltype(word)::value>{}); });
    if (t.kind == Kind::codebook) return go(DotCodebook<P>{});
  }
  if (t.kind == Kind::base3) return go(typename P::DotBase3{});
  switch (t.bits) {
    case 1: return go(typename P::template Dot<1>{});
    case 2: return go(typename P::template Dot<2>{});
    case 3: return go(typename P::template Dot<3>{});
    case 4: return go(typename P::template Dot<4>{});
    case 5: return go(typename P::template Dot<5>{});
    case 6: return go(typename P::template Dot<6>{});
    case 7: return go(typename P::template Dot<7>{});
    default: return go(typename P::template Dot<8>{});
  }
}

// Terms after each other write their parts of a stretch of groups, which are then added in the order of the groups.
template <class P> void multiply_terms(const MatrixView& m, const Activations& x, int first, int last, float* y) {
  constexpr int stretch = 32;
  alignas(kVector) float part[kMaxTerms][stretch * kLanes];
  for (int tile = first; tile < last; tile++) {
    Cursor at[kMaxTerms];
    for (int i = 0; i < m.terms; i++) at[i] = Cursor(m.term[i], tile);
    F<P> f = P::all(0);
    for (int g0 = 0; g0 < m.groups; g0 += stretch) {
      const int g1 = g0 + stretch < m.groups ? g0 + stretch : m.groups;
      for (int i = 0; i < m.terms; i++) {
        const Term& t = m.term[i];
        if constexpr (P::expands)
          if (t.values) vector_sparse<P>(m, t, x, tile, g0, g1, part[i], at[i]);
        if (!t.values) with_dot<P>(t, [&](auto dot) { vector_dense<P, decltype(dot)>(m, t, x, tile, g0, g1, part[i]); });
      }
      for (int g = g0; g < g1; g++)
        for (int i = 0; i < m.terms; i++)
          f = P::sum(f, P::mul(P::all(x.scale[m.term[i].runs][g]), P::loadf(part[i] + (g - g0) * kLanes)));
    }
    store_rows<P>(m, tile, f, y);
  }
}

template <class P> void multiply_vector(const MatrixView& m, const Activations& x, int first, int last, float* y) {
  if (m.terms > 1 || m.term[0].values) return multiply_terms<P>(m, x, first, last, y);
  with_dot<P>(m.term[0], [&](auto dot) { multiply_dense<P, decltype(dot)>(m, x, first, last, y); });
}
