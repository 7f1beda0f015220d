// One token: terms are read in place.
// Part of kernels.inl.

// One tile after the other is one stream, which memory gives faster than two. Trellis codes take so long to decode that two
// tiles at once, which share the broadcasts of the activations, are faster where there are registers for them.
template <class Dot> constexpr int kTilesAtOnce = 1;
template <class P, int N> constexpr int kTilesAtOnce<DotTrellis<P, N>> = P::tiles;

// What an n:m term reads some tiles on, its codes and then its values: a line for every unit of the dense term before it,
// because a core waits for few lines at a time and the n:m term would ask for many at once.
struct Spread {
  const uint8_t *at = nullptr, *then = nullptr;
  int units = 0, left = 0;

  Spread() = default;
  Spread(const Term& t, int tile) : units(t.units), left(t.units) {
    const size_t offset = size_t(tile) * t.units * kVector + kAheadSparse;
    at = t.codes + offset, then = t.values + offset;
  }
  void line() {
    if (!left && then) at = then, left = units, then = nullptr;
    if (left) __builtin_prefetch(at, 0, 3), at += kVector, left--;
  }
};

struct Nothing {
  void line() {}
};

// f[i] of N neighbouring tiles gets all groups of a term added.
template <class P, class Dot, int N, class More = Nothing>
inline void add_dense(const MatrixView& m, const Term& t, const Activations& x, int tile, F<P>* f, More more = {}) {
  const Run* run = m.runs[t.runs].of;
  const float *scale_x = x.scale[t.runs], *sum_x = x.sum[t.runs];
  const size_t tile_bytes = size_t(t.units) * Dot::bytes;
  const uint8_t* codes = t.codes + tile * tile_bytes;
  const int8_t* q = x.codes[t.runs];
  const size_t ahead = N == 1 ? kAhead : N * tile_bytes;
  const int tiles_ahead = tile_bytes > kAhead ? N : int(ahead / tile_bytes);
  constexpr int level = N == 1 ? 3 : 2;  // of cache; what is needed only after this tile would be in the way in the first
  const Affine affine_of(t, tile);
  for (int g = 0; g < m.groups; g++) {
    const uint8_t* unit = codes + size_t(run[g].first) * Dot::bytes;
    Dot dot[N];
    for (Dot& d : dot) begin(d, t);
    for (int n = run[g].count; n; n--, unit += Dot::bytes, q += Dot::columns)
#pragma GCC unroll 2
      for (int i = 0; i < N; i++) {
#pragma GCC unroll 8
        for (int line = 0; line < Dot::bytes; line += kVector) __builtin_prefetch(unit + i * tile_bytes + ahead + line, 0, level);
        more.line();
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

  void add(const uint8_t* index, const int8_t* q, Cursor& at) {
    const V<P> v = P::load(index);
#pragma GCC unroll 8
    for (int f = 0; f < 8; f++) {
      const uint64_t mask = P::mask(v, f);
      a[f % 4] = P::dot_wide(a[f % 4], P::expand(mask, at), P::quad(q + 4 * f));
      at += __builtin_popcountll(mask);
    }
    selected.add(index, q);
  }
  V<P> total() const { return P::plus(P::plus(a[0], a[1]), P::plus(a[2], a[3])); }
  V<P> sum() const { return selected.total(); }
};

// Of an n:m plane: activations go where their values are. A group has one unit (One) or several.
template <class P, int Block, bool One> struct DotBlocks {
  static constexpr int columns = Block;
  V<P> a = P::zero(), ones = P::zero();

  // `apart`: bytes from the activations of a unit to those of the next.
  void add(const uint8_t* index, const uint8_t* values, const int8_t* q, size_t apart, int units) {
    if constexpr (One) return add_unit(index, values, q);
    for (; units; units--, index += kVector, values += kVector, q += apart) add_unit(index, values, q);
  }

 private:
  void add_unit(const uint8_t* index, const uint8_t* values, const int8_t* q) {
    const V<P> picked = P::template gather<Block>(P::load(index), q);
    a = P::dot_wide(a, P::load(values), picked);
    ones = P::dot(ones, P::all8(1), picked);
  }
};

// Calls go with the dot product of an n:m term.
template <class P, class Go> inline void with_blocks(const MatrixView& m, const Term& t, Go go) {
  const Runs& runs = m.runs[t.runs];
  const bool one = runs.of[m.groups].start == m.groups;
  if (runs.unit == 64) return one ? go(DotBlocks<P, 64, true>{}) : go(DotBlocks<P, 64, false>{});
  return one ? go(DotBlocks<P, 128, true>{}) : go(DotBlocks<P, 128, false>{});
}

// `at` is put back where groups share a unit.
template <class P>
inline void add_bitmap(const MatrixView& m, const Term& t, const Activations& x, int tile, Cursor at, F<P>* f) {
  const Run* run = m.runs[t.runs].of;
  const float* scale_x = x.scale[t.runs];
  const uint8_t* codes = t.codes + size_t(tile) * t.units * kVector;
  const int8_t* q = x.codes[t.runs];
  F<P> scale, min;
  Affine(t, tile).at<P>(0, 0, scale, min);  // one of a row
  for (int g = 0; g < m.groups; g++) {
    DotBitmap<P> dot;
    Cursor before = at;
    int unit = run[g].first;
    for (int n = run[g].count; n; n--, unit++, q += dot.columns) {
      before = at;
      dot.add(codes + size_t(unit) * kVector, q, at);
    }
    if (g + 1 < m.groups && run[g + 1].first < unit) at = before;
    const F<P> part = affine<P>(scale, min, dot.total(), P::to_float(dot.sum()));
    *f = P::sum(*f, P::mul(P::all(scale_x[g]), part));
  }
}

template <class P, class Dot>
inline void add_blocks(const MatrixView& m, const Term& t, const Activations& x, int tile, F<P>* f) {
  const Run* run = m.runs[t.runs].of;
  const float* scale_x = x.scale[t.runs];
  const uint8_t* codes = t.codes + size_t(tile) * t.units * kVector;
  const uint8_t* values = t.values + size_t(tile) * t.units * kVector;
  const int8_t* q = x.codes[t.runs];
  F<P> scale, min;
  Affine(t, tile).at<P>(0, 0, scale, min);  // one of a row
#pragma GCC unroll 4
  for (int g = 0; g < m.groups; g++) {
    const size_t unit = size_t(run[g].first) * kVector;
    Dot dot;
    dot.add(codes + unit, values + unit, q + run[g].start * Dot::columns, Dot::columns, run[g].count);
    const F<P> part = affine<P>(scale, min, dot.a, P::to_float(dot.ones));
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

template <class P> inline void add_term(const MatrixView& m, int i, const Activations& x, int tile, uint8_t* scratch, F<P>* f) {
  const Term& t = m.term[i];
  if constexpr (P::expands)
    if (t.kind == Kind::bitmap) return add_bitmap<P>(m, t, x, tile, first_value(t, tile, scratch), f);
  if (t.kind == Kind::nm)
    return with_blocks<P>(m, t, [&](auto dot) { add_blocks<P, decltype(dot)>(m, t, x, tile, f); });
  const Spread next = i + 1 < m.terms && m.term[i + 1].kind == Kind::nm ? Spread(m.term[i + 1], tile) : Spread();
  with_dot<P>(t, [&](auto dot) { add_dense<P, decltype(dot), 1>(m, t, x, tile, f, next); });
}

template <class P>
void multiply_vector(const MatrixView& m, const Activations& x, int first, int last, float* y, uint8_t* scratch) {
  if (m.terms == 1 && !m.term[0].values)
    return with_dot<P>(m.term[0], [&](auto dot) { multiply_dense<P, decltype(dot)>(m, x, first, last, y); });
  for (int tile = first; tile < last; tile++) {
    F<P> f = P::all(0);
    for (int i = 0; i < m.terms; i++) add_term<P>(m, i, x, tile, scratch, &f);
    store_rows<P>(m, tile, f, y);
  }
}
