// The kernels, written once over a policy P and compiled inside the namespace of each instruction-set level.
//
// P names the types V (64 bytes or 16 int32) and F (16 floats) and has
//   bytes     load load_once store all8 both srl sll merge zero
//   products  quad, dot_wide (codes up to 255; dot: up to 127 at some levels), Dot<bits> and DotBase3 (one unit in place), base3
//             (five quads), product<T>; `tokens` of a block, which go through one of the `tiles` at a time, half of them through
//             two, there by dot
//   tables    table16 look16; `looks_up`, `dots_words` (codebooks too are multiplied in place), `strides`, see trellis.inl
//   sparse    gather; mask; where `expands` is true also expand, and one token of a bitmap needs no unpacking
//   floats    to_float half all mul sum less loadf storef store_some amax round; larger largest digits7 butterflies16 for attention

template <class P> using V = typename P::V;
template <class P> using F = typename P::F;

// Brings what will be read next nearer, in the order of its addresses; little by little, because a core waits for few lines
// at a time.
struct Fetch {
  const uint8_t* at;

  template <int Level = 3> void lines(int count) {
    for (; count > 0; count--, at += kVector) __builtin_prefetch(at, 0, Level);
  }
};

// ---- codes ----

// Column quad I of 32 columns of B-bit codes: planes of width 8, 4, 2, 1, low plane first.
template <class P, int B, int I, int Shift = 0> inline V<P> quad_codes(const V<P>* planes, V<P> low) {
  constexpr int rest = B - Shift;
  if constexpr (rest == 0) {
    return low;
  } else {
    constexpr int width = rest >= 8 ? 8 : rest >= 4 ? 4 : rest >= 2 ? 2 : 1, fields = 8 / width;
    constexpr int move = width * (I % fields) - Shift;
    V<P> v = planes[Shift + I / fields];
    if constexpr (move > 0) v = P::template srl<move>(v);
    if constexpr (move < 0) v = P::template sll<-move>(v);
    if constexpr (width < 8) {
      const V<P> mask = P::all8(((1 << width) - 1) << Shift);
      v = Shift ? P::merge(low, v, mask) : P::both(v, mask);
    }
    return quad_codes<P, B, I, Shift + width>(planes, v);
  }
}

// Calls visit(i, codes of quad i) for the eight column quads of 32 columns.
template <class P, int B, class Visit> inline void each_quad(const uint8_t* unit, Visit visit) {
  const V<P> none = P::zero();
  V<P> v[B];
#pragma GCC unroll 8
  for (int i = 0; i < B; i++) v[i] = P::load_once(unit + i * kVector);
  visit(0, quad_codes<P, B, 0>(v, none)), visit(1, quad_codes<P, B, 1>(v, none));
  visit(2, quad_codes<P, B, 2>(v, none)), visit(3, quad_codes<P, B, 3>(v, none));
  visit(4, quad_codes<P, B, 4>(v, none)), visit(5, quad_codes<P, B, 5>(v, none));
  visit(6, quad_codes<P, B, 6>(v, none)), visit(7, quad_codes<P, B, 7>(v, none));
}

// Where the values of a bitmap term go on, a byte each: those of four bits become bytes a tile at a time.
using Cursor = const uint8_t*;

inline Cursor first_value(const Term& t, int tile, uint8_t* scratch) {
  if (t.kind != Kind::bitmap) return nullptr;
  if (t.bits == 8) return tile < t.tail_tile ? t.values + t.starts[tile] : t.tail + (t.starts[tile] - t.tail_start);
  const int first = t.starts[tile], count = (t.starts[tile + 1] + 1) / 2 - first / 2;
  const uint8_t* from = t.values + first / 2;
  uint8_t* __restrict out = scratch + t.nibbles;
  for (int i = 0; i < count; i++) out[2 * i] = from[i] & 15, out[2 * i + 1] = from[i] >> 4;
  return out + first % 2;
}

// Of eight neighbouring bytes the ones that a mask selects: which value goes to each, 255 where none does.
struct Places {
  uint8_t of[256][8];
  constexpr Places() : of() {
    for (int mask = 0; mask < 256; mask++)
      for (int i = 0, count = 0; i < 8; i++) of[mask][i] = uint8_t(mask >> i & 1 ? count++ : 255);
  }
};
static constexpr Places places{};

// Calls visit(run position, unit) for the units of group g; a bitmap's cursor is put back where groups share a unit.
template <class Visit> inline void each_unit(const MatrixView& m, const Term& t, int g, Cursor& at, Visit visit) {
  const Runs& runs = m.runs[t.runs];
  const int count = runs.of[g].count, first = runs.of[g].first;
  Cursor before = at;
  for (int i = 0; i < count; i++) {
    before = at;
    visit(runs.of[g].start + i, first + i);
  }
  if (g + 1 < m.groups && runs.of[g + 1].first == first + count - 1) at = before;
}

#include "trellis.inl"

// ---- codebooks ----

// 32 columns of 4-bit codes that a table turns into bytes.
template <class P> struct DotCodebook {
  static constexpr int columns = 32, bytes = 4 * kVector;
  V<P> table, a[4] = {P::zero(), P::zero(), P::zero(), P::zero()};

  void begin(const Term& t) { table = P::table16(t.table); }
  void add(const uint8_t* unit, const int8_t* q) {
    each_quad<P, 4>(unit, [&](int i, V<P> codes) { a[i % 4] = P::dot_wide(a[i % 4], P::look16(table, codes), P::quad(q + 4 * i)); });
  }
  V<P> total() const { return P::plus(P::plus(a[0], a[1]), P::plus(a[2], a[3])); }
};

template <class P> inline void begin(DotCodebook<P>& dot, const Term& t) { dot.begin(t); }

// ---- scales ----

struct Affine {
  const uint16_t *scales, *mins;
  float offset;
  const int* weight_group;
  int groups;

  Affine(const Term& t, int tile)
      : scales(t.scales + size_t(tile) * t.groups * kLanes),
        mins(t.mins ? t.mins + size_t(tile) * t.groups * kLanes : nullptr),
        offset(t.offset),
        weight_group(t.weight_group),
        groups(t.groups) {}

  void prefetch(int g) const {
    __builtin_prefetch(scales + size_t(g) * kLanes, 0, 2);
    if (mins) __builtin_prefetch(mins + size_t(g) * kLanes, 0, 2);
  }

  // Of group g in the tile `further` tiles on.
  template <class P> void at(int g, int further, F<P>& scale, F<P>& min) const {
    const int w = (weight_group[g] + further * groups) * kLanes;
    scale = P::half(scales + w);
    min = mins ? P::half(mins + w) : P::mul(scale, P::all(offset));
  }
};

template <class P> inline F<P> affine(F<P> scale, F<P> min, V<P> a, F<P> q) {
  return P::sum(P::mul(scale, P::to_float(a)), P::mul(min, q));
}

template <class P> inline void store_rows(const MatrixView& m, int tile, F<P> f, float* y) {
  if (m.bias) f = P::sum(f, P::loadf(m.bias + tile * kLanes));
  const int rows = m.rows - tile * kLanes;
  if (rows >= kLanes) P::storef(y + tile * kLanes, f);
  else P::store_some(y + tile * kLanes, f, rows);
}

#include "single.inl"
#include "blocked.inl"

template <class P> float quantize(const float* x, int n, int8_t* codes, int32_t* sum) {
  const int whole = n / kLanes * kLanes, rest = n - whole;
  alignas(kVector) float last[kLanes] = {};
  for (int i = 0; i < rest; i++) last[i] = x[whole + i];
  const float a = P::amax(x, whole), b = P::amax(last, kLanes);
  const float scale = (a > b ? a : b) / 127.0f;
  const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
  *sum = P::round(x, inverse, codes, whole);
  if (rest) {
    int8_t out[kLanes];
    *sum += P::round(last, inverse, out, kLanes);
    for (int i = 0; i < rest; i++) codes[whole + i] = out[i];
  }
  return scale;
}

// What it returns only keeps the compiler from leaving the loads out.
template <class P> int32_t read(const uint8_t* at, size_t vectors) {
  V<P> sum[4] = {P::zero(), P::zero(), P::zero(), P::zero()};
  for (size_t i = 0; i + 4 <= vectors; i += 4, at += 4 * kVector)
    for (int j = 0; j < 4; j++) sum[j] = P::plus(sum[j], P::load(at + j * kVector));
  alignas(kVector) int32_t lanes[kLanes];
  P::store(lanes, P::plus(P::plus(sum[0], sum[1]), P::plus(sum[2], sum[3])));
  return lanes[0];
}

template <class P> int32_t dots(int rounds) {
  V<P> sum[kDots], a = P::all8(1), b = P::all8(1);
  for (V<P>& s : sum) s = P::zero();
  for (; rounds; rounds--)
#pragma GCC unroll 12
    for (int i = 0; i < kDots; i++) sum[i] = P::dot(sum[i], a, b);
  alignas(kVector) int32_t lanes[kLanes];
  for (int i = 1; i < kDots; i++) sum[0] = P::plus(sum[0], sum[i]);
  P::store(lanes, sum[0]);
  return lanes[0];
}

template <class P> constexpr Kernels kernels_of(const char* name, Steps steps) {
  return {name, steps, P::tokens, P::strides, quantize<P>, multiply<P>, read<P>, dots<P>, encode_trellis, sizeof(Trellis)};
}
