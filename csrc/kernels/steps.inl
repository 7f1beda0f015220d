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

// Half to even for |x| below 2^22; vectorizes everywhere, which calls of the library's rounding do not.
inline float rounded(float x) { return (x + 12582912.0f) - 12582912.0f; }

static float largest(const float* x, int n, bool magnitude) {
  float lanes[kLanes];
  for (int j = 0; j < kLanes; j++) lanes[j] = magnitude ? 0.0f : x[0];
  int i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int j = 0; j < kLanes; j++) {
      const float v = magnitude ? __builtin_fabsf(x[i + j]) : x[i + j];
      lanes[j] = v > lanes[j] ? v : lanes[j];
    }
  for (int j = 0; i < n; i++, j++) {
    const float v = magnitude ? __builtin_fabsf(x[i]) : x[i];
    lanes[j] = v > lanes[j] ? v : lanes[j];
  }
  float top = lanes[0];
  for (int j = 1; j < kLanes; j++) top = lanes[j] > top ? lanes[j] : top;
  return top;
}

static float digits(const float* x, int n, int largest_value, int8_t* high, int8_t* low) {
  const float step = largest(x, n, true) / float(largest_value), inverse = step > 0 ? 1.0f / step : 0.0f;
  for (int i = 0; i < n; i++) {
    const int v = int(rounded(x[i] * inverse)), h = (v + 64) >> 7;
    high[i] = int8_t(h), low[i] = int8_t(v - h * 128);
  }
  return step;
}

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

static float softmax(float* x, int n) {
  const float top = largest(x, n, false);
  for (int i = 0; i < n; i++) x[i] = exponential(x[i] - top);
  float lanes[kLanes] = {};
  int i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int j = 0; j < kLanes; j++) lanes[j] += x[i + j];
  for (int j = 0; i < n; i++, j++) lanes[j] += x[i];
  return lane_sum(lanes);
}

static void rotate(float* x, const float* cosine, const float* sine, int half) {
  for (int i = 0; i < half; i++) {
    const float a = x[i], b = x[half + i];
    x[i] = a * cosine[i] - b * sine[i];
    x[half + i] = b * cosine[i] + a * sine[i];
  }
}

static void float_tile(const float* tile, const float* x, int columns, float* y) {
  float lanes[kLanes] = {};
  for (int k = 0; k < columns; k++)
    for (int j = 0; j < kLanes; j++) lanes[j] += x[k] * tile[k * kLanes + j];
  for (int j = 0; j < kLanes; j++) y[j] = lanes[j];
}

// Sums of (code - 128) * x in N tiles that lie `stride` bytes apart; x is digits.
template <class P, int N>
void tile_sums(const uint8_t* codes, size_t stride, const Digits& x, int quads, float* out) {
  V<P> sum[N][2];
  if constexpr (P::expands) {
#pragma GCC unroll 4
    for (int i = 0; i < N; i++) sum[i][0] = sum[i][1] = P::zero();
    const int8_t* q = x.quads;
    for (int k = 0; k < quads; k++, codes += kVector, q += 8)
#pragma GCC unroll 4
      for (int i = 0; i < N; i++) {
        const V<P> c = P::load_once(codes + i * stride);
        sum[i][0] = P::dot(sum[i][0], c, P::quad(q)), sum[i][1] = P::dot(sum[i][1], c, P::quad(q + 4));
      }
  } else {
    for (int i = 0; i < N; i++) P::template product<2>(codes + i * stride, x.quads, quads, true, sum[i]);
  }
  for (int i = 0; i < N; i++, out += kLanes) {
    alignas(kVector) int32_t high[kLanes], low[kLanes];
    P::store(high, sum[i][0]), P::store(low, sum[i][1]);
    for (int j = 0; j < kLanes; j++) out[j] = float((high[j] - 128 * x.high_sum) * 128 + (low[j] - 128 * x.low_sum));
  }
}

template <class P> void sums(const uint8_t* codes, size_t stride, const Digits& x, int quads, int tiles, float* out) {
  for (; tiles >= 4; tiles -= 4, codes += 4 * stride, out += 4 * kLanes) tile_sums<P, 4>(codes, stride, x, quads, out);
  for (; tiles; tiles--, codes += stride, out += kLanes) tile_sums<P, 1>(codes, stride, x, quads, out);
}

static void split(const float* x, int n, Digits& d) {
  int8_t high[kMostDims], low[kMostDims];
  d.step = digits(x, n, kLargestDigits, high, low);
  d.high_sum = d.low_sum = 0;
  for (int i = 0; i < n; i++) d.high_sum += high[i], d.low_sum += low[i];
  for (int i = n; i % 4; i++) high[i] = low[i] = 0;
  for (int i = 0; i < n; i += 4) {
    __builtin_memcpy(d.quads + 2 * i, high + i, 4);
    __builtin_memcpy(d.quads + 2 * i + 4, low + i, 4);
  }
}

template <class P> constexpr Steps steps_of() {
  return {sum_squares, scale_by, add, silu, gelu, soft_cap, softmax, rotate, float_tile, digits, split, sums<P>};
}
