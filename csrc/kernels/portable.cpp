// Plain C++: what runs where no other level does.
#include <cmath>
#include <cstring>

#include "types.h"

namespace bitwright::portable {
constexpr int kRowsAtOnce = 4;
#include "viterbi.inl"
#include "kernels.inl"
#include "steps.inl"

struct Policy {
  struct V {
    alignas(16) uint8_t b[kVector];
  };
  struct F {
    alignas(16) float f[kLanes];
  };
  static constexpr int tokens = 4, tiles = 1;
  static constexpr bool expands = false, looks_up = false, dots_words = false, strides = false;

  template <class Each> static V bytes(Each each) {
    V v;
    for (int i = 0; i < kVector; i++) v.b[i] = uint8_t(each(i));
    return v;
  }
  template <class Each> static F floats(Each each) {
    F f;
    for (int i = 0; i < kLanes; i++) f.f[i] = each(i);
    return f;
  }
  static V load(const void* p) {
    V v;
    std::memcpy(v.b, p, kVector);
    return v;
  }
  static V load_once(const void* p) { return load(p); }
  static void store(void* p, V v) { std::memcpy(p, v.b, kVector); }
  static V zero() { return all8(0); }
  static V all8(int c) { return bytes([=](int) { return c; }); }
  static V both(V a, V b) { return bytes([&](int i) { return a.b[i] & b.b[i]; }); }
  template <int N> static V srl(V v) { return bytes([&](int i) { return v.b[i] >> N; }); }
  template <int N> static V sll(V v) { return bytes([&](int i) { return v.b[i] << N; }); }
  static V table16(const uint8_t* p) { return bytes([=](int i) { return p[i % 16]; }); }
  static V look16(const V& table, const V& codes) { return bytes([&](int i) { return table.b[codes.b[i]]; }); }
  static V merge(V low, V v, V mask) { return bytes([&](int i) { return low.b[i] | (v.b[i] & mask.b[i]); }); }

  static V quad(const int8_t* q) { return bytes([=](int i) { return q[i % 4]; }); }
  static V dot(V acc, const V& codes, const V& q) {
    int32_t a[kLanes];
    std::memcpy(a, acc.b, kVector);
    for (int r = 0; r < kLanes; r++)
      for (int p = 4 * r; p < 4 * r + 4; p++) a[r] += codes.b[p] * int8_t(q.b[p]);
    return load(a);
  }

  static V dot_wide(const V& acc, const V& codes, const V& q) { return dot(acc, codes, q); }
  template <int Block> static V gather(const V& index, const int8_t* q) {
    return bytes([&](int i) { return index.b[i] < Block ? q[index.b[i]] : 0; });
  }

  static constexpr int key_offset = -128;
  static const V& key(const V& codes) { return codes; }
  static V dot_key(const V& acc, const V& codes, const V& q) { return dot(acc, codes, q); }

  template <int B> struct Dot {
    static constexpr int columns = 32, bytes = kVector * B;
    V a = zero();
    void add(const uint8_t* unit, const int8_t* q) {
      each_quad<Policy, B>(unit, [&](int i, const V& codes) { a = dot(a, codes, quad(q + 4 * i)); });
    }
    V total() const { return a; }
  };

  struct DotBase3 {
    static constexpr int columns = 20, bytes = kVector;
    V a = zero();
    void add(const uint8_t* unit, const int8_t* q) {
      V c[5];
      base3(load(unit), c);
      for (int i = 0; i < 5; i++) a = dot(a, c[i], quad(q + 4 * i));
    }
    V total() const { return a; }
  };

  static void base3(V v, V* q) {
    int power = 1;
    for (int d = 0; d < 5; d++, power *= 3) q[d] = bytes([&](int i) { return v.b[i] / power % 3; });
  }

  template <int T> static void product(const uint8_t* codes, const int8_t* q, int quads, bool, V* out) {
    for (int j = 0; j < T; j++) out[j] = zero();
    for (; quads; quads--, codes += kVector, q += 4 * T)
      for (int j = 0; j < T; j++) out[j] = dot(out[j], load(codes), quad(q + 4 * j));
  }

  static uint64_t mask(V index, int field) {
    uint64_t m = 0;
    for (int i = 0; i < kVector; i++) m |= uint64_t(index.b[i] >> field & 1) << i;
    return m;
  }

  static V plus(const V& x, const V& y) {
    uint32_t a[kLanes], b[kLanes];
    std::memcpy(a, x.b, kVector), std::memcpy(b, y.b, kVector);
    for (int i = 0; i < kLanes; i++) a[i] += b[i];
    return load(a);
  }
  static V all32(int32_t c) {
    int32_t a[kLanes];
    for (int32_t& lane : a) lane = c;
    return load(a);
  }

  static F to_float(V v) {
    int32_t a[kLanes];
    std::memcpy(a, v.b, kVector);
    return floats([&](int i) { return float(a[i]); });
  }
  static F half(const uint16_t* p) {
    return floats([=](int i) {
      const uint32_t sign = uint32_t(p[i] & 0x8000) << 16, rest = p[i] & 0x7FFF;
      if (rest < 0x0400) return std::ldexp(sign ? -float(rest) : float(rest), -24);
      const uint32_t word = sign | (rest < 0x7C00 ? (rest << 13) + (112u << 23) : (rest << 13) | (0xFFu << 23));
      float f;
      std::memcpy(&f, &word, 4);
      return f;
    });
  }
  static F all(float c) { return floats([=](int) { return c; }); }
  static F mul(const F& a, const F& b) { return floats([&](int i) { return a.f[i] * b.f[i]; }); }
  static F sum(const F& a, const F& b) { return floats([&](int i) { return a.f[i] + b.f[i]; }); }
  static F less(const F& a, const F& b) { return floats([&](int i) { return a.f[i] - b.f[i]; }); }
  static F loadf(const float* p) { return floats([=](int i) { return p[i]; }); }
  static void storef(float* p, const F& f) { store_some(p, f, kLanes); }
  static void store_some(float* p, const F& f, int n) { std::memcpy(p, f.f, size_t(n) * sizeof(float)); }

  static F larger(const F& a, const F& b) { return floats([&](int i) { return a.f[i] > b.f[i] ? a.f[i] : b.f[i]; }); }
  static float largest(const F& f) {
    float top = f.f[0];
    for (float lane : f.f) top = lane > top ? lane : top;
    return top;
  }
  // Integers up to 2^14 from floats, in two digits of 7 bits; the lower one begins at -Least.
  template <int Least> static void digits7(const F& f, int8_t* high, int8_t* low) {
    for (int i = 0; i < kLanes; i++) {
      const int v = int(rounded(f.f[i])) + Least;
      high[i] = int8_t(v >> 7), low[i] = int8_t((v & 127) - Least);
    }
  }
  static float amax(const float* x, int n) {
    float top = 0;
    for (int i = 0; i < n; i++) top = std::fabs(x[i]) > top ? std::fabs(x[i]) : top;
    return top;
  }
  // Sums and differences of lanes 1, 2, 4 and 8 apart.
  static F butterflies16(F f) {
    butterflies<1>(f.f, kLanes, kLanes);
    return f;
  }
  static int32_t round(const float* x, float inverse, int8_t* codes, int n) {
    int32_t total = 0;
    for (int i = 0; i < n; i++) {
      float f = x[i] * inverse;
      f = f < 127.0f ? f : 127.0f;
      f = f > -127.0f ? f : -127.0f;
      codes[i] = int8_t(std::nearbyint(f));
      total += codes[i];
    }
    return total;
  }
};

extern const Kernels kernels;
const Kernels kernels = kernels_of<Policy>("portable", steps_of<Policy>());

}  // namespace bitwright::portable
