// One token: terms are read in place.
// Part of kernels.inl.

// One tile after the other is one stream, which memory gives faster than two. Trellis codes take so long to decode that two
// tiles at once, which share the broadcasts of the activations, are faster.
template <class Dot> constexpr int kTilesAtOnce = 1;
template <class P, int N> constexpr int kTilesAtOnce<DotTrellis<P, N>> = 2;

// f[i] of N neighbouring tiles gets all groups of a term added.
template <class P, class Dot, int N>
inline void add_dense(const MatrixView& m, const Term& t, const Activations& x, int tile, F<P>* f) {
  const int *first = m.runs[t.runs].first, *start = m.runs[t.runs].start;
  const float *scale_x = x.scale[t.runs], *sum_x = x.sum[t.runs];
  const size_t tile_bytes = size_t(t.units) * Dot::bytes;
  const uint8_t* codes = t.codes + tile * tile_bytes;
  const int8_t* q = x.codes[t.runs];
  const size_t ahead = N == 1 ? kAhead : N * tile_bytes;
  const int tiles_ahead = tile_bytes > kAhead ? N : int(ahead / tile_bytes);
  constexpr int level = N == 1 ? 3 : 2;  // of cache; what is needed only after this tile would be in the way in the first
  const Affine affine_of(t, tile);
  for (int g = 0; g < m.groups; g++) {
    const uint8_t* unit = codes + size_t(first[g]) * Dot::bytes;
    Dot dot[N];
    for (Dot& d : dot) begin(d, t);
    for (int n = start[g + 1] - start[g]; n; n--, unit += Dot::bytes, q += Dot::columns)
#pragma GCC unroll 2
      for (int i = 0; i < N; i++) {
#pragma GCC unroll 8
        for (int line = 0; line < Dot::bytes; line += kVector) __builtin_prefetch(unit + i * tile_bytes + ahead + line, 0, level);
        dot[i].add(unit + i * tile_bytes, q);
      }
#pragma GCC unroll 2
    for (int i = 0; i < N; i++) {
      F<P> scale, min;
      affine_of.prefetch(g + (tiles_ahead + i) * t.groups);
      affine_of.at<P>(g, i, scale, min);
      const F<P> part = affine<P>(scale, min, dot[i].total(), P::all(sum_x[g]));
      f[i] = P::sum(f[i], P::mul(P::all(scale_x[g]), part));
    }
  }
}

template <class P, class Dot, int N> void single_dense(const MatrixView& m, const Activations& x, int tile, float* y) {
  F<P> f[N];
  for (int i = 0; i < N; i++) f[i] = P::all(0);
  add_dense<P, Dot, N>(m, m.term[0], x, tile, f);
  for (int i = 0; i < N; i++) store_rows<P>(m, tile + i, f[i], y);
}

// A matrix of one dense term.
template <class P, class Dot> void multiply_dense(const MatrixView& m, const Activations& x, int first, int last, float* y) {
  constexpr int n = kTilesAtOnce<Dot>;
  for (; first + n <= last; first += n) single_dense<P, Dot, n>(m, x, first, y);
  if (first < last) single_dense<P, Dot, 1>(m, x, first, y);
}

// Of a bitmap. Its index is a plane of one bit, whose product is the sum of the selected activations.
template <class P> struct DotBitmap {
  static constexpr int columns = 32;
  V<P> a[4] = {P::zero(), P::zero(), P::zero(), P::zero()};
  typename P::template Dot<1> selected;

  void add(const uint8_t* index, const uint8_t*, const int8_t* q, Cursor& at) {
    const V<P> v = P::load(index);
#pragma GCC unroll 8
    for (int f = 0; f < 8; f++) {
      const uint64_t mask = P::mask(v, f);
      a[f % 4] = P::dot_quad(a[f % 4], P::expand(mask, at), q + 4 * f);
      at += __builtin_popcountll(mask);
    }
    selected.add(index, q);
  }
  V<P> total() const { return P::plus(P::plus(a[0], a[1]), P::plus(a[2], a[3])); }
  V<P> sum() const { return selected.total(); }
};

template <class P, int Block> struct DotBlocks {
  static constexpr int columns = Block;
  V<P> a = P::zero(), ones = P::zero();

  void add(const uint8_t* index, const uint8_t* values, const int8_t* q, Cursor&) {
    const V<P> picked = P::template gather<Block>(P::load(index), q);
    a = P::dot(a, P::load(values), picked);
    ones = P::dot(ones, P::all8(1), picked);
  }
  V<P> total() const { return a; }
  V<P> sum() const { return ones; }
};

// `at` is put back where groups share a unit.
template <class P, class Dot>
inline void add_sparse(const MatrixView& m, const Term& t, const Activations& x, int tile, Cursor at, F<P>* f) {
  const int *first = m.runs[t.runs].first, *start = m.runs[t.runs].start;
  const float* scale_x = x.scale[t.runs];
  const uint8_t* codes = t.codes + size_t(tile) * t.units * kVector;
  const uint8_t* values = t.values + size_t(tile) * t.units * kVector;
  const int8_t* q = x.codes[t.runs];
  F<P> scale, min;
  Affine(t, tile).at<P>(0, 0, scale, min);  // one of a row
  for (int g = 0; g < m.groups; g++) {
    Dot dot;
    Cursor before = at;
    size_t unit = size_t(first[g]) * kVector;
    for (int n = start[g + 1] - start[g]; n; n--, unit += kVector, q += Dot::columns) {
      before = at;
      dot.add(codes + unit, values + unit, q, at);
    }
    if (g + 1 < m.groups && size_t(first[g + 1]) * kVector < unit) at = before;
    const F<P> part = affine<P>(scale, min, dot.total(), P::to_float(dot.sum()));
    *f = P::sum(*f, P::mul(P::all(scale_x[g]), part));
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

template <class P> inline void add_term(const MatrixView& m, const Term& t, const Activations& x, int tile, uint8_t* scratch, F<P>* f) {
  if constexpr (P::expands) {
    const Cursor at = first_value(t, tile, scratch);
    if (t.kind == Kind::bitmap) return add_sparse<P, DotBitmap<P>>(m, t, x, tile, at, f);
    if (t.kind == Kind::nm)
      return m.runs[t.runs].unit == 64 ? add_sparse<P, DotBlocks<P, 64>>(m, t, x, tile, at, f)
                                       : add_sparse<P, DotBlocks<P, 128>>(m, t, x, tile, at, f);
  }
  with_dot<P>(t, [&](auto dot) { add_dense<P, decltype(dot), 1>(m, t, x, tile, f); });
}

template <class P>
void multiply_vector(const MatrixView& m, const Activations& x, int first, int last, float* y, uint8_t* scratch) {
  if (m.terms == 1 && !m.term[0].values)
    return with_dot<P>(m.term[0], [&](auto dot) { multiply_dense<P, decltype(dot)>(m, x, first, last, y); });
  for (int tile = first; tile < last; tile++) {
    F<P> f = P::all(0);
    for (int i = 0; i < m.terms; i++) add_term<P>(m, m.term[i], x, tile, scratch, &f);
    store_rows<P>(m, tile, f, y);
  }
}
