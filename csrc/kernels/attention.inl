// Products of attention: rows of int8 codes with a few vectors of two digits, in int32 sums that every level computes alike.

// x as (high * 128 + low) * step with |x / step| up to `largest_value`; returns step.
template <class P> float digits(const float* x, int n, int largest_value, int8_t* high, int8_t* low) {
  const float step = P::amax(x, n) / float(largest_value), inverse = step > 0 ? 1.0f / step : 0.0f;
  for (int i = 0; i < n; i++) {
    const int v = int(rounded(x[i] * inverse)), h = (v + 64) >> 7;
    high[i] = int8_t(h), low[i] = int8_t(v - h * 128);
  }
  return step;
}

template <class P> void split(const float* x, int n, Digits& d) {
  const float step = P::amax(x, n) / float(kLargestDigits), inverse = step > 0 ? 1.0f / step : 0.0f;
  d.step = step;
  if constexpr (P::expands) {
    P::split(x, n, inverse, d.quads, d.high_sum, d.low_sum);
  } else {
    d.high_sum = d.low_sum = 0;
    for (int i = 0; i < n; i++) {
      const int v = int(rounded(x[i] * inverse)), h = (v + 64) >> 7;
      int8_t* quad = d.quads + i / 4 * 8 + i % 4;
      quad[0] = int8_t(h), quad[4] = int8_t(v - h * 128);
      d.high_sum += h, d.low_sum += v - h * 128;
    }
  }
}

// Sums of N tiles with Q vectors: sum[.][.][0] in units of 128, sum[.][.][1] in ones (times 128 where rows have two digits,
// whose product of low digits is left out: it is smaller than the rounding).
template <class P, int Q, int N, bool Fine> inline void tile_sums(const CodeRows& rows, const uint8_t* codes, const Digits* x,
                                                                 V<P> (*sum)[Q][2]) {
  if constexpr (P::expands) {
#pragma GCC unroll 4
    for (int i = 0; i < N; i++)
#pragma GCC unroll 4
      for (int j = 0; j < Q; j++) sum[i][j][0] = sum[i][j][1] = P::zero();
    for (int k = 0; k < rows.quads; k++, codes += kVector) {
      V<P> c[N], fine[N];
#pragma GCC unroll 4
      for (int i = 0; i < N; i++) {
        c[i] = P::load_once(codes + i * rows.stride);
        if constexpr (Fine) fine[i] = P::load_once(codes + i * rows.stride + rows.lower);
      }
#pragma GCC unroll 4
      for (int j = 0; j < Q; j++) {
        const V<P> high = P::quad(x[j].quads + 8 * k), low = P::quad(x[j].quads + 8 * k + 4);
#pragma GCC unroll 4
        for (int i = 0; i < N; i++) {
          sum[i][j][0] = P::dot(sum[i][j][0], c[i], high);
          sum[i][j][1] = P::dot(sum[i][j][1], c[i], low);
          if constexpr (Fine) sum[i][j][1] = P::dot(sum[i][j][1], fine[i], high);
        }
      }
    }
  } else {
    for (int i = 0; i < N; i++)
      for (int j = 0; j < Q; j++) {
        P::template product<2>(codes + i * rows.stride, x[j].quads, rows.quads, true, sum[i][j]);
        if constexpr (Fine) {
          V<P> lower[2];
          P::template product<2>(codes + i * rows.stride + rows.lower, x[j].quads, rows.quads, true, lower);
          sum[i][j][1] = P::plus(sum[i][j][1], lower[0]);
        }
      }
  }
}

// Codes are stored + 128, so 128 times the sum of x is taken off again.
template <class P, int Q, int N, bool Fine>
void tile_products(const CodeRows& rows, int tile, const Digits* x, float* out, size_t stride) {
  V<P> sum[N][Q][2];
  tile_sums<P, Q, N, Fine>(rows, rows.codes + tile * rows.stride, x, sum);
#pragma GCC unroll 4
  for (int j = 0; j < Q; j++, out += stride) {
    const V<P> high = P::all32(-128 * x[j].high_sum), low = P::all32(-128 * (x[j].low_sum + (Fine ? x[j].high_sum : 0)));
    const F<P> step = P::all(Fine ? x[j].step * 128.0f : x[j].step), hundred = P::all(128.0f);
#pragma GCC unroll 4
    for (int i = 0; i < N; i++) {
      const F<P> a = P::to_float(P::plus(sum[i][j][0], high)), b = P::to_float(P::plus(sum[i][j][1], low));
      const F<P> total = P::sum(P::mul(a, hundred), b);
      const int at = (tile + i) * kLanes;
      if (rows.scale) P::storef(out + at, P::mul(total, P::mul(step, P::loadf(rows.scale + at))));
      else P::storef(out + at, P::sum(P::loadf(out + at), P::mul(total, step)));
    }
  }
}

template <class P, int Q, bool Fine> void row_products(const CodeRows& rows, const Digits* x, float* out, size_t stride) {
  constexpr int most = Q <= 2 ? 4 : 2;
  int tile = 0;
  for (; tile + most <= rows.tiles; tile += most) tile_products<P, Q, most, Fine>(rows, tile, x, out, stride);
  for (; tile < rows.tiles; tile++) tile_products<P, Q, 1, Fine>(rows, tile, x, out, stride);
}

template <class P, bool Fine> void some_products(const CodeRows& rows, const Digits* x, int count, float* out, size_t stride) {
  for (; count >= 4; count -= 4, x += 4, out += 4 * stride) row_products<P, 4, Fine>(rows, x, out, stride);
  if (count == 3) row_products<P, 3, Fine>(rows, x, out, stride);
  if (count == 2) row_products<P, 2, Fine>(rows, x, out, stride);
  if (count == 1) row_products<P, 1, Fine>(rows, x, out, stride);
}

template <class P> void products(const CodeRows& rows, const Digits* x, int count, float* out, size_t stride) {
  if (rows.lower) some_products<P, true>(rows, x, count, out, stride);
  else some_products<P, false>(rows, x, count, out, stride);
}
