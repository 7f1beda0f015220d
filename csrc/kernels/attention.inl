// Attention over one page of keys and values, for queries that share them. Products are sums of int8 in int32 and floats are
// added in a fixed order, so that every level gives the same bits.

// x as (high * 128 + low) * step with |x / step| up to `largest_value`; returns step.
template <class P> float digits(const float* x, int n, int largest_value, int8_t* high, int8_t* low) {
  const float step = P::amax(x, n) / float(largest_value), inverse = step > kTiny ? 1.0f / step : 0.0f;
  for (int i = 0; i < n; i += kLanes) P::template digits7<64>(P::mul(P::loadf(x + i), P::all(inverse)), high + i, low + i);
  return step;
}

// 2^x for x <= 0: 2^k with the integer k next to x, and a polynomial in the rest (relative error 9e-8). 0 from -127 on.
inline float power_of_two(float x) {
  x = x < -127.0f ? -127.0f : x;
  const float shifted = x + 12582912.0f, r = x - (shifted - 12582912.0f);  // k is in the low bits of `shifted`
  float p = 1.32647261e-3f;
  p = p * r + 9.67151299e-3f;
  p = p * r + 5.55073358e-2f;
  p = p * r + 2.40222424e-1f;
  p = p * r + 6.93147004e-1f;
  p = p * r + 1.0f;
  uint32_t bits, k;
  __builtin_memcpy(&bits, &p, 4), __builtin_memcpy(&k, &shifted, 4);
  bits += k << 23;
  __builtin_memcpy(&p, &bits, 4);
  return p;
}

// 2^(x - top) of whole lanes.
inline void powers(float* x, float top, int n) {
  for (int i = 0; i < n; i += kLanes)
    for (int j = i; j < i + kLanes; j++) x[j] = power_of_two(x[j] - top);
}

// Weights of a page as (high * 128 + low) * step; digits are 0 to 127, so they are signed and unsigned bytes alike.
struct Weights {
  alignas(kVector) int8_t high[kPage], low[kPage];
  float step;
};

// Sums with two digits: sum[0] in units of 128, sum[1] in ones. Where the codes have two digits too (Fine) the units are
// 128 times those, and the product of low digits is left out: it is smaller than the rounding.
template <class P, bool Fine> inline F<P> total(const V<P>* sum, float step) {
  const F<P> ones = P::sum(P::mul(P::to_float(sum[0]), P::all(128.0f)), P::to_float(sum[1]));
  return P::mul(ones, P::all(Fine ? step * 128.0f : step));
}

// Scores [Q][kPage] of positions 16 tile .. 16 (tile + N).
template <class P, int Q, int N, bool Fine> void score_tiles(const Page& page, int tile, const Query* x, float* scores, Fetch& fetch) {
  const int quads = page.dims / 4;
  const size_t stride = size_t(quads) * kVector, lower = size_t(kPage) * page.dims;
  const uint8_t* codes = page.keys + tile * stride;
  V<P> sum[N][Q][2];
#pragma GCC unroll 4
  for (int j = 0; j < Q; j++) {
    const int32_t high = x[j].high_sum, low = Fine ? x[j].low_sum + high : x[j].low_sum;
#pragma GCC unroll 4
    for (int i = 0; i < N; i++) sum[i][j][0] = P::all32(P::key_offset * high), sum[i][j][1] = P::all32(P::key_offset * low);
  }
  for (int k = 0; k < quads; k++, codes += kVector) {
    V<P> c[N], fine[N];
#pragma GCC unroll 4
    for (int i = 0; i < N; i++) {
      c[i] = P::key(P::load_once(codes + i * stride));
      if constexpr (Fine) fine[i] = P::key(P::load_once(codes + i * stride + lower));
      fetch.lines(Fine ? 2 : 1);
    }
#pragma GCC unroll 4
    for (int j = 0; j < Q; j++) {
      const V<P> high = P::quad(x[j].high + 4 * k), low = P::quad(x[j].low + 4 * k);
#pragma GCC unroll 4
      for (int i = 0; i < N; i++) {
        sum[i][j][0] = P::dot_key(sum[i][j][0], c[i], high);
        sum[i][j][1] = P::dot_key(sum[i][j][1], c[i], low);
        if constexpr (Fine) sum[i][j][1] = P::dot_key(sum[i][j][1], fine[i], high);
      }
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < Q; j++)
#pragma GCC unroll 4
    for (int i = 0; i < N; i++) {
      const int at = (tile + i) * kLanes;
      P::storef(scores + j * kPage + at, P::mul(total<P, Fine>(sum[i][j], x[j].step), P::loadf(page.key_scale + at)));
    }
}

// Adds the weighted values of dims 16 tile .. 16 (tile + N).
template <class P, int Q, int N, bool Fine>
void value_tiles(const Page& page, int tile, int quads, const Weights* w, Query* x, Fetch& fetch) {
  constexpr size_t stride = kPage / 4 * kVector;
  const size_t lower = size_t(kPage) * page.dims;
  const uint8_t* codes = page.values + tile * stride;
  V<P> sum[N][Q][2];
#pragma GCC unroll 4
  for (int i = 0; i < N; i++)
#pragma GCC unroll 4
    for (int j = 0; j < Q; j++) sum[i][j][0] = sum[i][j][1] = P::zero();
  for (int k = 0; k < quads; k++, codes += kVector) {
    V<P> c[N], fine[N];
#pragma GCC unroll 4
    for (int i = 0; i < N; i++) {
      c[i] = P::load_once(codes + i * stride);
      if constexpr (Fine) fine[i] = P::load_once(codes + i * stride + lower);
      fetch.lines(Fine ? 2 : 1);
    }
#pragma GCC unroll 4
    for (int j = 0; j < Q; j++) {
      const V<P> high = P::quad(w[j].high + 4 * k), low = P::quad(w[j].low + 4 * k);
#pragma GCC unroll 4
      for (int i = 0; i < N; i++) {
        sum[i][j][0] = P::dot(sum[i][j][0], high, c[i]);
        sum[i][j][1] = P::dot(sum[i][j][1], low, c[i]);
        if constexpr (Fine) sum[i][j][1] = P::dot(sum[i][j][1], high, fine[i]);
      }
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < Q; j++)
#pragma GCC unroll 4
    for (int i = 0; i < N; i++) {
      float* mixed = x[j].mixed + (tile + i) * kLanes;
      P::storef(mixed, P::sum(P::loadf(mixed), total<P, Fine>(sum[i][j], w[j].step)));
    }
}

// Scores [Q][kPage] of n positions, in powers of two, become weights relative to the largest score so far; what was gathered
// under a smaller one is scaled down. Step by step for all queries: each step alone would wait for its own latency.
template <class P, int Q> void weigh(const Page& page, float* scores, int n, Query* x, Weights* w) {
  float most[Q];
#pragma GCC unroll 4
  for (int j = 0; j < Q; j++) most[j] = top_of<P>(scores + j * kPage, n);
  for (int j = 0; j < Q; j++)
    if (most[j] > x[j].top) {
      const F<P> factor = P::all(power_of_two(x[j].top - most[j]));
      P::storef(x[j].sum, P::mul(P::loadf(x[j].sum), factor));
      for (int i = 0; i < page.dims; i += kLanes) P::storef(x[j].mixed + i, P::mul(P::loadf(x[j].mixed + i), factor));
      x[j].top = most[j];
    }
  for (int j = 0; j < Q; j++) powers(scores + j * kPage, x[j].top, n);
#pragma GCC unroll 4
  for (int j = 0; j < Q; j++) {
    F<P> sum = P::loadf(x[j].sum), top = P::all(0);
    for (int i = 0; i < n; i += kLanes) {
      float* at = scores + j * kPage + i;
      const F<P> e = P::loadf(at), weighted = P::mul(e, P::loadf(page.value_scale + i));
      sum = P::sum(sum, e), top = P::larger(top, weighted);
      P::storef(at, weighted);
    }
    P::storef(x[j].sum, sum);
    most[j] = P::largest(top);
  }
#pragma GCC unroll 4
  for (int j = 0; j < Q; j++) {
    w[j].step = most[j] * (1.0f / float(kLargestWeight));
    const F<P> inverse = P::all(most[j] > kTiny ? float(kLargestWeight) / most[j] : 0.0f);
    for (int i = 0; i < n; i += kLanes) P::template digits7<0>(P::mul(P::loadf(scores + j * kPage + i), inverse), w[j].high + i, w[j].low + i);
  }
}

template <class P, int Q, bool Fine> void attend_some(const Page& page, Query* x, float cap) {
  constexpr int most = 2;
  alignas(kVector) float scores[Q * kPage];
  Weights weights[Q];
  const int tiles = (page.used + kLanes - 1) / kLanes, n = tiles * kLanes;
  Fetch fetch{page.next};
  fetch.lines(2 * kPage * sizeof(float) / kVector);  // as many as there are scales
  int tile = 0;
  for (; tile + most <= tiles; tile += most) score_tiles<P, Q, most, Fine>(page, tile, x, scores, fetch);
  for (; tile < tiles; tile++) score_tiles<P, Q, 1, Fine>(page, tile, x, scores, fetch);
  for (int j = 0; j < Q; j++) {
    float* row = scores + j * kPage;
    const int from = x[j].first - page.start, to = x[j].last + 1 - page.start;
    if (cap > 0) {
      soft_cap(row, cap, n);
      for (int i = 0; i < n; i++) row[i] *= kLog2E;
    }
    for (int i = 0; i < from && i < n; i++) row[i] = -1.0f / 0.0f;
    for (int i = to > 0 ? to : 0; i < n; i++) row[i] = -1.0f / 0.0f;
  }
  weigh<P, Q>(page, scores, n, x, weights);
  const int dims = page.dims / kLanes;
  for (tile = 0; tile + most <= dims; tile += most) value_tiles<P, Q, most, Fine>(page, tile, n / 4, weights, x, fetch);
  for (; tile < dims; tile++) value_tiles<P, Q, 1, Fine>(page, tile, n / 4, weights, x, fetch);
}

template <class P, bool Fine> void attend_page(Page page, Query* x, int count, float cap) {
  for (; count; page.next = page.keys) {  // only the first queries fetch what follows
    const int here = count < 4 ? count : 4;
    if (here == 4) attend_some<P, 4, Fine>(page, x, cap);
    if (here == 3) attend_some<P, 3, Fine>(page, x, cap);
    if (here == 2) attend_some<P, 2, Fine>(page, x, cap);
    if (here == 1) attend_some<P, 1, Fine>(page, x, cap);
    count -= here, x += here;
  }
}

static void fold(const Part& part, int dims, Part& whole) {
  const float* __restrict from = part.mixed;
  float* __restrict to = whole.mixed;
  if (whole.top == kNoScore) {
    for (int i = 0; i < dims; i++) to[i] = from[i];
    whole.total = part.total, whole.top = part.top;
    return;
  }
  const float top = part.top > whole.top ? part.top : whole.top;
  const float before = power_of_two(whole.top - top), now = power_of_two(part.top - top);
  for (int i = 0; i < dims; i++) to[i] = to[i] * before + from[i] * now;
  whole.total = whole.total * before + part.total * now, whole.top = top;
}

template <class P> void attend(const Page& page, Query* queries, int count, float cap) {
  if (page.fine) attend_page<P, true>(page, queries, count, cap);
  else attend_page<P, false>(page, queries, count, cap);
}
