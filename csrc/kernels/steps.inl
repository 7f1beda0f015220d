// Float steps of the engine as plain loops, which the compiler vectorizes for each level.

inline float lane_sum(const float* lanes) {
  float sum = 0;
  for (int i = 0; i < kLanes; i++) sum += lanes[i];
  return sum;
}

static float sum_squares(const float* x, int n) {
  float lanes[kLanes] = {};
  int i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int j = 0; j < kLanes; j++) lanes[j] += x[i + j] * x[i + j];
  for (int j = 0; i < n; i++, j++) lanes[j] += x[i] * x[i];
  return lane_sum(lanes);
}

static void scale_by(const float* x, float factor, const float* weight, float* y, int n) {
  for (int i = 0; i < n; i++) y[i] = x[i] * factor * weight[i];
}

template <class P> inline float top_of(const float* x, int n) {
  F<P> top = P::loadf(x);
  for (int i = kLanes; i < n; i += kLanes) top = P::larger(top, P::loadf(x + i));
  return P::largest(top);
}

// Half to even for |x| below 2^22; vectorizes everywhere, which calls of the library's rounding do not.
inline float rounded(float x) { return (x + 12582912.0f) - 12582912.0f; }

static void add(const float* x, float* y, int n) {
  for (int i = 0; i < n; i++) y[i] += x[i];
}

// e^x to about 1 ulp: x = k ln 2 + r, a polynomial of degree 6 in r, and k into the exponent. Below -87 it is 0.
inline float exponential(float x) {
  const float clamped = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  const float k = rounded(clamped * 1.44269504f);
  const float r = (clamped - k * 0.693359375f) - k * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t bits = (int32_t(k) + 127) << 23;
  float power;
  __builtin_memcpy(&power, &bits, 4);
  return x < -87.0f ? 0.0f : p * power;
}

inline float tanh_of(float x) {
  const float e = exponential(-2.0f * (x < 0 ? -x : x));
  const float t = (1.0f - e) / (1.0f + e);
  return x < 0 ? -t : t;
}

static void silu(const float* gate, float* y, int n) {
  for (int i = 0; i < n; i++) y[i] *= gate[i] / (1.0f + exponential(-gate[i]));
}

static void gelu(const float* gate, float* y, int n) {
  for (int i = 0; i < n; i++) {
    const float g = gate[i];
    y[i] *= 0.5f * g * (1.0f + tanh_of(0.797884561f * (g + 0.044715f * g * g * g)));
  }
}

static void soft_cap(float* x, float cap, int n) {
  for (int i = 0; i < n; i++) x[i] = cap * tanh_of(x[i] / cap);
}

static void rotate(float* x, const float* cosine, const float* sine, int half) {
  for (int i = 0; i < half; i++) {
    const float a = x[i], b = x[half + i];
    x[i] = a * cosine[i] - b * sine[i];
    x[half + i] = b * cosine[i] + a * sine[i];
  }
}

// Butterflies of distance Half in blocks of `block`, then those of twice the distance.
template <int Half> void butterflies(float* x, int n, int block) {
  if (Half >= block) return;
  for (int i = 0; i < n; i += 2 * Half)
    for (int j = 0; j < Half; j++) {
      const float a = x[i + j], b = x[i + Half + j];
      x[i + j] = a + b, x[i + Half + j] = a - b;
    }
  if constexpr (Half < kMostDims / 2) butterflies<2 * Half>(x, n, block);
}

// Of N vectors, in registers.
template <class P, int N> void butterflies_of(float* x) {
  F<P> f[N];
#pragma GCC unroll 8
  for (int i = 0; i < N; i++) f[i] = P::butterflies16(P::loadf(x + i * kLanes));
#pragma GCC unroll 8
  for (int half = 1; half < N; half *= 2)
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) {
      if (i & half) continue;
      const F<P> a = f[i], b = f[i + half];
      f[i] = P::sum(a, b), f[i + half] = P::less(a, b);
    }
#pragma GCC unroll 8
  for (int i = 0; i < N; i++) P::storef(x + i * kLanes, f[i]);
}

template <class P> void hadamard(float* x, int n) {
  constexpr int few = 4 * kLanes;
  const int block = n & -n;
  if (block < kLanes) return butterflies<1>(x, n, block);
  if (block < few) {
    for (int i = 0; i < n; i += kLanes) butterflies_of<P, 1>(x + i);
    return butterflies<kLanes>(x, n, block);
  }
  for (int i = 0; i < n; i += few) butterflies_of<P, 4>(x + i);
  butterflies<few>(x, n, block);
}

template <class P> void across(const float* matrix, const float* x, int blocks, int block, float* y) {
  for (int b = 0; b < blocks; b++, matrix += blocks, y += block) {
    int i = 0;
    for (; i + kLanes <= block; i += kLanes) {
      F<P> sum = P::mul(P::all(matrix[0]), P::loadf(x + i));
      for (int k = 1; k < blocks; k++) sum = P::sum(sum, P::mul(P::all(matrix[k]), P::loadf(x + k * block + i)));
      P::storef(y + i, sum);
    }
    for (; i < block; i++) {
      y[i] = matrix[0] * x[i];
      for (int k = 1; k < blocks; k++) y[i] += matrix[k] * x[k * block + i];
    }
  }
}

template <class P, int T> void float_rows(const float* tile, const float* x, size_t stride, int columns, float* y) {
  F<P> sum[T];
#pragma GCC unroll 4
  for (int t = 0; t < T; t++) sum[t] = P::all(0);
  for (int k = 0; k < columns; k++) {
    const F<P> w = P::loadf(tile + k * kLanes);
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) sum[t] = P::sum(sum[t], P::mul(P::all(x[t * stride + k]), w));
  }
#pragma GCC unroll 4
  for (int t = 0; t < T; t++) P::storef(y + t * kLanes, sum[t]);
}

template <class P> void float_tile(const float* tile, const float* x, size_t stride, int tokens, int columns, float* y) {
  for (; tokens >= 4; tokens -= 4, x += 4 * stride, y += 4 * kLanes) float_rows<P, 4>(tile, x, stride, columns, y);
  for (; tokens; tokens--, x += stride, y += kLanes) float_rows<P, 1>(tile, x, stride, columns, y);
}

#include "attention.inl"
#include "scores.inl"

template <class P> constexpr Steps steps_of() {
  return {sum_squares, scale_by, add, silu, gelu, soft_cap, rotate, hadamard<P>, across<P>, float_tile<P>, digits<P>, attend<P>, fold,
          row_sums<P>, log_probabilities<P>, follow<P>};
}
