// Softmax statistics of one row of logits. Sums run over 16 lanes within a stretch, in double between stretches.

constexpr int kScored = 1024;  // logits at a time

// The row's values [at, at + count) padded to whole lanes with something whose exponential is 0; returns the padded count.
inline int stretch_of(const float* x, int count, float* out) {
  const int padded = (count + kLanes - 1) / kLanes * kLanes;
  for (int i = 0; i < count; i++) out[i] = x[i];
  for (int i = count; i < padded; i++) out[i] = -1e30f;
  return padded;
}

template <class P> inline double total_of(F<P> sum) {
  float lanes[kLanes];
  P::storef(lanes, sum);
  double total = 0;
  for (float lane : lanes) total += double(lane);
  return total;
}

template <class P> RowSums row_sums(const float* x, int n) {
  alignas(kVector) float d[kScored], e[kScored];
  RowSums r{x[0], 0, 0, 0, 0};
  for (int at = 0; at < n; at += kScored) {
    const int here = n - at < kScored ? n - at : kScored;
    const float top = top_of<P>(d, stretch_of(x + at, here, d));
    if (!(top > r.top)) continue;
    r.top = top;
    for (r.index = at; r.index < at + here - 1 && x[r.index] != top; r.index++) {}
  }
  for (int at = 0; at < n; at += kScored) {
    const int padded = stretch_of(x + at, n - at < kScored ? n - at : kScored, d);
    for (int i = 0; i < padded; i++) d[i] -= r.top;
    for (int i = 0; i < padded; i++) e[i] = exponential(d[i]);
    F<P> sum = P::all(0), weighted = sum, squared = sum;
    for (int i = 0; i < padded; i += kLanes) {
      const F<P> v = P::loadf(e + i);
      sum = P::sum(sum, v), weighted = P::sum(weighted, P::mul(v, P::loadf(d + i))), squared = P::sum(squared, P::mul(v, v));
    }
    r.sum += total_of<P>(sum), r.weighted += total_of<P>(weighted), r.squared += total_of<P>(squared);
  }
  return r;
}

// The parent's probabilities times differences of logarithms: two close models would lose their digits in a difference of
// two sums.
template <class P> double log_probabilities(float* x, int n, float top, float log_sum, const float* parent) {
  for (int i = 0; i < n; i++) x[i] = (x[i] - top) - log_sum;
  if (!parent) return 0;
  alignas(kVector) float a[kScored], b[kScored], e[kScored];
  double divergence = 0;
  for (int at = 0; at < n; at += kScored) {
    const int here = n - at < kScored ? n - at : kScored, padded = stretch_of(parent + at, here, a);
    stretch_of(x + at, here, b);
    for (int i = 0; i < padded; i++) e[i] = exponential(a[i]);
    for (int i = 0; i < padded; i++) a[i] -= b[i];
    F<P> sum = P::all(0);
    for (int i = 0; i < padded; i += kLanes) sum = P::sum(sum, P::mul(P::loadf(e + i), P::loadf(a + i)));
    divergence += total_of<P>(sum);
  }
  return divergence;
}

// Both rows x as x - shift are log-probabilities; the parent's row becomes factor * (probability - its own). Returns the
// divergence from the parent.
template <class P> double follow(const float* x, float shift, float* parent, float parent_shift, int n, float factor) {
  alignas(kVector) float a[kScored], b[kScored], e[kScored];
  double divergence = 0;
  for (int at = 0; at < n; at += kScored) {
    const int here = n - at < kScored ? n - at : kScored, padded = stretch_of(parent + at, here, a);
    stretch_of(x + at, here, b);
    for (int i = 0; i < padded; i++) a[i] -= parent_shift, b[i] -= shift;
    for (int i = 0; i < padded; i++) e[i] = exponential(a[i]);
    for (int i = 0; i < padded; i++) a[i] = e[i] * (a[i] - b[i]);
    for (int i = 0; i < padded; i++) b[i] = factor * (exponential(b[i]) - e[i]);
    for (int i = 0; i < here; i++) parent[at + i] = b[i];
    F<P> sum = P::all(0);
    for (int i = 0; i < padded; i += kLanes) sum = P::sum(sum, P::loadf(a + i));
    divergence += total_of<P>(sum);
  }
  return divergence;
}
