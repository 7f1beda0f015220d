// AVX2 (Haswell, Zen and later). Products of codes up to 15 are summed in 16 bits over at most eight column quads
// (8 * 2 * 15 * 127 < 32768), then widened; wider codes are two nibbles.
#include <immintrin.h>

#include <cstring>

#include "types.h"

namespace bitwright::avx2 {
constexpr int kRowsAtOnce = 8;
#include "viterbi.inl"
#include "kernels.inl"
#include "steps.inl"
#include "ymm.inl"

struct Policy : Ymm {
  // Exact where all codes are at most 127.
  static V dot(V acc, V codes, V q) { return widen(acc, byte_pairs(codes, q)); }
  static V dot_wide(V acc, V codes, V q) {
    return {wide<true>(wide<false>(acc.low, codes.low, q.low), codes.low, q.low),
            wide<true>(wide<false>(acc.high, codes.high, q.high), codes.high, q.high)};
  }
  // Keys become signed and give their sign to the other factor.
  static constexpr int key_offset = 0;
  static V key(V codes) {
    const __m256i flip = _mm256_set1_epi8(-128);
    return {_mm256_xor_si256(codes.low, flip), _mm256_xor_si256(codes.high, flip)};
  }
  static V dot_key(V acc, V codes, V q) {
    const V size = {_mm256_abs_epi8(codes.low), _mm256_abs_epi8(codes.high)};
    return dot(acc, size, {_mm256_sign_epi8(q.low, codes.low), _mm256_sign_epi8(q.high, codes.high)});
  }

  template <int B> struct Dot {
    static constexpr int columns = 32, bytes = kVector * B;
    V a = zero();

    void add(const uint8_t* unit, const int8_t* q) {
      V s = zero();
      each_quad<Policy, B>(unit, [&](int i, V codes) { s = plus16(s, byte_pairs(codes, quad(q + 4 * i))); });
      a = widen(a, s);
    }
    V total() const { return a; }
  };

  // The stacks [4, 1], [4, 2] and [4, 2, 1] are a 4-bit plane followed by the stack of the bits above it.
  template <int High> struct DotStack {
    static constexpr int columns = 32, bytes = kVector * (4 + High);
    Dot<4> low;
    Dot<High> high;

    void add(const uint8_t* unit, const int8_t* q) { low.add(unit, q), high.add(unit + 4 * kVector, q); }
    V total() const { return above(low.a, high.a); }
  };

  struct DotBytes {
    static constexpr int columns = 32, bytes = kVector * 8;
    V low = zero(), high = zero();

    void add(const uint8_t* unit, const int8_t* q) {
      const V mask = all8(0x0F);
      V s = zero(), t = zero();
      for (int i = 0; i < 8; i++) {
        const V v = load(unit + i * kVector), four = quad(q + 4 * i);
        s = plus16(s, byte_pairs(both(v, mask), four));
        t = plus16(t, byte_pairs(both(srl<4>(v), mask), four));
      }
      low = widen(low, s), high = widen(high, t);
    }
    V total() const { return above(low, high); }
  };

  struct DotBase3 {
    static constexpr int columns = 20, bytes = kVector;
    V a = zero();

    void add(const uint8_t* unit, const int8_t* q) {
      V c[5];
      base3(load(unit), c);
      V s = byte_pairs(c[0], quad(q));
      for (int i = 1; i < 5; i++) s = plus16(s, byte_pairs(c[i], quad(q + 4 * i)));
      a = widen(a, s);
    }
    V total() const { return a; }
  };

  template <int T> static void product(const uint8_t* codes, const int8_t* q, int quads, bool wide, V* out) {
    nibbles<T, 0>(codes, q, quads, out);
    if (!wide) return;
    V high[T];
    nibbles<T, 4>(codes, q, quads, high);
    for (int j = 0; j < T; j++) out[j] = above(out[j], high[j]);
  }

 private:
  static V plus16(V a, V b) { return {_mm256_add_epi16(a.low, b.low), _mm256_add_epi16(a.high, b.high)}; }
  static V byte_pairs(V codes, V q) { return {_mm256_maddubs_epi16(codes.low, q.low), _mm256_maddubs_epi16(codes.high, q.high)}; }
  static V widen(V acc, V s) {
    const __m256i one = _mm256_set1_epi16(1);
    return plus(acc, {_mm256_madd_epi16(s.low, one), _mm256_madd_epi16(s.high, one)});
  }
  // Products of the even or the odd bytes in 16 bits.
  template <bool Odd> static __m256i wide(__m256i acc, __m256i codes, __m256i q) {
    codes = Odd ? _mm256_srli_epi16(codes, 8) : _mm256_and_si256(codes, _mm256_set1_epi16(255));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(codes, _mm256_srai_epi16(Odd ? q : _mm256_slli_epi16(q, 8), 8)));
  }
  static V above(V low, V high) { return plus(low, {_mm256_slli_epi32(high.low, 4), _mm256_slli_epi32(high.high, 4)}); }

  // Products with the nibble of the codes that starts at bit Shift.
  template <int T, int Shift> static void nibbles(const uint8_t* codes, const int8_t* q, int quads, V* out) {
    const V mask = all8(0x0F);
    for (int j = 0; j < T; j++) out[j] = zero();
    while (quads) {
      const int n = quads < 8 ? quads : 8;
      V s[T];
      for (int j = 0; j < T; j++) s[j] = zero();
      for (int i = 0; i < n; i++, codes += kVector, q += 4 * T) {
        V c = load(codes);
        if constexpr (Shift > 0) c = srl<Shift>(c);
        c = both(c, mask);
        for (int j = 0; j < T; j++) s[j] = plus16(s[j], byte_pairs(c, quad(q + 4 * j)));
      }
      for (int j = 0; j < T; j++) out[j] = widen(out[j], s[j]);
      quads -= n;
    }
  }
};

template <> struct Policy::Dot<5> : Policy::DotStack<1> {};
template <> struct Policy::Dot<6> : Policy::DotStack<2> {};
template <> struct Policy::Dot<7> : Policy::DotStack<3> {};
template <> struct Policy::Dot<8> : Policy::DotBytes {};

extern const Kernels kernels;
const Kernels kernels = kernels_of<Policy>("avx2", steps_of<Policy>());

}  // namespace bitwright::avx2
