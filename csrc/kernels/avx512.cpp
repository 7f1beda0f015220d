// AVX-512 with VNNI, VBMI, VBMI2 and GFNI (Ice Lake, Zen 4 and later): one register is one vector of the layout.
#include <immintrin.h>

#include <cstring>

#include "types.h"

namespace bitwright::avx512 {
constexpr int kRowsAtOnce = 16;
#include "viterbi.inl"
#include "kernels.inl"
#include "masked.inl"
#include "steps.inl"

struct Table {
  uint8_t fields[128];  // four base-3 digits as 2-bit fields
  constexpr Table() : fields() {
    for (int v = 0; v < 81; v++) fields[v] = uint8_t(v % 3 | v / 3 % 3 << 2 | v / 9 % 3 << 4 | v / 27 << 6);
  }
};
alignas(kVector) static constexpr Table table{};

struct Policy {
  using V = __m512i;
  using F = __m512;
  static constexpr int tokens = 16, tiles = 2, chains = 8;
  static constexpr bool expands = true, looks_up = true, dots_words = true, strides = false, spreads = true;

  static V load(const void* p) { return _mm512_loadu_si512(p); }
  // A load that stays one: the compiler would fold it into each of its uses, and loads are what is scarce.
  static V load_once(const void* p) {
    V v = load(p);
    asm("" : "+v"(v));
    return v;
  }
  static void store(void* p, V v) { _mm512_storeu_si512(p, v); }
  static V zero() { return _mm512_setzero_si512(); }
  static V all8(int c) { return _mm512_set1_epi8(char(c)); }
  static V both(V a, V b) { return _mm512_and_si512(a, b); }
  template <int N> static V srl(V v) { return _mm512_srli_epi16(v, N); }
  template <int N> static V sll(V v) { return _mm512_slli_epi16(v, N); }
  static V table16(const uint8_t* p) { return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static V look16(V table, V codes) { return _mm512_shuffle_epi8(table, codes); }
  static V merge(V low, V v, V mask) { return _mm512_ternarylogic_epi64(low, v, mask, 0xF8); }  // low | (v & mask)

  using Quad = const int32_t __attribute__((may_alias, aligned(1)));
  static Quad* quad_at(const int8_t* q) { return reinterpret_cast<Quad*>(q); }
  static V quad(const int8_t* q) { return _mm512_set1_epi32(*quad_at(q)); }
  // GCC 12 moves the sums of a loop from register to register, and some to memory, where it sees more than an instruction.
  static V dot(V acc, V codes, V q) {
    asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(codes), "v"(q));
    return acc;
  }
  static V dot_wide(V acc, V codes, V q) { return dot(acc, codes, q); }
  static constexpr int key_offset = -128;
  static V key(V codes) { return codes; }
  static V dot_key(V acc, V codes, V q) { return dot(acc, codes, q); }
  // dot(acc, codes, quad(q)) as one instruction: GCC 12 does not fold the broadcast by itself.
  static V dot_quad(V acc, V codes, const int8_t* q) {
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(codes), "m"(*quad_at(q)));
    return acc;
  }

  // Bit Low of each byte to bit 2 and bit High to bit 6, as a product with a matrix of bits.
  template <int Low, int High> static V spread(V v) {
    return _mm512_gf2p8affine_epi64_epi8(v, _mm512_set1_epi64(int64_t(1) << (40 + Low) | int64_t(1) << (8 + High)), 0);
  }

  template <int B> using Dot = MaskedDot<Policy, B>;
  template <int N> static V sra32(V v) { return _mm512_srai_epi32(v, N); }

  // Splits off the fifth digit; the table turns the other four (0..80) into 2-bit fields.
  static V four_digits(V v, V& fifth) {
    const __mmask64 one = _mm512_cmpge_epu8_mask(v, all8(81)), two = _mm512_cmpge_epu8_mask(v, all8(162));
    v = _mm512_mask_sub_epi8(v, one, v, all8(81));
    v = _mm512_mask_sub_epi8(v, two, v, all8(81));
    fifth = _mm512_maskz_mov_epi8(one, all8(1));
    fifth = _mm512_mask_mov_epi8(fifth, two, all8(2));
    return _mm512_permutex2var_epi8(load(table.fields), v, load(table.fields + kVector));
  }

  struct DotBase3 {
    static constexpr int columns = 20, bytes = kVector;
    V a[4] = {zero(), zero(), zero(), zero()};

    void add(const uint8_t* unit, const int8_t* q) {
      V fifth;
      const V v = four_digits(load(unit), fifth);
      for (int i = 0; i < 4; i++) a[i] = dot_quad(a[i], both(v, all8(3 << 2 * i)), q + 4 * i);
      a[0] = dot_quad(a[0], fifth, q + 16);
    }

    V total() const {
      const V upper = plus(_mm512_srai_epi32(a[2], 4), _mm512_srai_epi32(a[3], 6));
      return plus(plus(a[0], _mm512_srai_epi32(a[1], 2)), upper);
    }
  };

  static void base3(V v, V* q) {
    v = four_digits(v, q[4]);
    q[0] = both(v, all8(3)), q[1] = both(srl<2>(v), all8(3)), q[2] = both(srl<4>(v), all8(3)), q[3] = both(srl<6>(v), all8(3));
  }

  template <int T> static void product(const uint8_t* codes, const int8_t* q, int quads, bool, V* out) {
    V a[T];
    for (int j = 0; j < T; j++) a[j] = zero();
    for (; quads; quads--, codes += kVector, q += 4 * T) {
      const V c = load(codes);
      for (int j = 0; j < T; j++) a[j] = dot_quad(a[j], c, q + 4 * j);
    }
    for (int j = 0; j < T; j++) out[j] = a[j];
  }

  // Windows are multishifts of a word, which are circular; a look-up uses their low seven bits.
  template <int N> struct Lookup {
    V low, high;
    explicit Lookup(const uint8_t* table) : low(load(table)), high(load(table + kVector)) {}
    V codes(V words, int i) const {
      const V windows = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(starts<N>[i]), words);
      return _mm512_permutex2var_epi8(low, windows, high);
    }
  };
  static V eight(const int8_t* q) {
    int64_t both;  // on multiples of 4 only, where words have 12, 20 or 28 columns
    __builtin_memcpy(&both, q, sizeof both);
    return _mm512_set1_epi64(both);
  }
  static V four(const int8_t* q) { return _mm512_maskz_mov_epi32(0x5555, quad(q)); }
  static void quads(V& first, V& second) {
    const V low = first;
    first = _mm512_permutex2var_epi32(low, even(), second);
    second = _mm512_permutex2var_epi32(low, plus(even(), _mm512_set1_epi32(1)), second);
  }
  static V pairs(V low, V high) {
    quads(low, high);
    return plus(low, high);
  }

  static uint64_t mask(V index, int field) { return _cvtmask64_u64(_mm512_test_epi8_mask(index, all8(1 << field))); }
  static V expand(uint64_t mask, const uint8_t* values) {
    // The memory form of the expand is several times slower.
    return _mm512_maskz_expand_epi8(_cvtu64_mask64(mask), load_once(values));
  }
  template <int Block> static V gather(V index, const int8_t* q) {
    const __mmask64 used = _mm512_cmplt_epu8_mask(index, all8(Block));
    if (Block == 64) return _mm512_maskz_permutexvar_epi8(used, index, load(q));
    return _mm512_maskz_permutex2var_epi8(used, load(q), index, load(q + 64));
  }

  static F to_float(V v) { return _mm512_cvtepi32_ps(v); }
  static F half(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static F all(float c) { return _mm512_set1_ps(c); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F sum(F a, F b) { return _mm512_add_ps(a, b); }
  static F less(F a, F b) { return _mm512_sub_ps(a, b); }
  static F loadf(const float* p) { return _mm512_loadu_ps(p); }
  static void storef(float* p, F f) { _mm512_storeu_ps(p, f); }
  static void store_some(float* p, F f, int n) { _mm512_mask_storeu_ps(p, __mmask16((1 << n) - 1), f); }

  static F larger(F a, F b) { return _mm512_max_ps(a, b); }
  static float largest(F f) { return _mm512_reduce_max_ps(f); }
  // Integers up to 2^14 from floats, in two digits of 7 bits; the lower one begins at -Least.
  template <int Least> static void digits7(F f, int8_t* high, int8_t* low) {
    const V v = plus(_mm512_cvtps_epi32(f), all32(Least)), rest = plus(both(v, all32(127)), all32(-Least));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(high), _mm512_cvtepi32_epi8(_mm512_srai_epi32(v, 7)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(low), _mm512_cvtepi32_epi8(rest));
  }
  static float amax(const float* x, int n) {
    F top = all(0);
    for (int i = 0; i < n; i += kLanes) top = larger(top, _mm512_abs_ps(loadf(x + i)));
    return largest(top);
  }
  // Sums and differences of lanes 1, 2, 4 and 8 apart.
  static F butterflies16(F f) {
    f = butterfly(_mm512_permute_ps(f, 0xB1), f, 0xAAAA);
    f = butterfly(_mm512_permute_ps(f, 0x4E), f, 0xCCCC);
    f = butterfly(_mm512_shuffle_f32x4(f, f, 0xB1), f, 0xF0F0);
    return butterfly(_mm512_shuffle_f32x4(f, f, 0x4E), f, 0xFF00);
  }
  static int32_t round(const float* x, float inverse, int8_t* codes, int n) {
    V total = zero();
    for (int i = 0; i < n; i += kLanes) {
      const F f = _mm512_max_ps(_mm512_min_ps(mul(loadf(x + i), all(inverse)), all(127)), all(-127));
      const V v = _mm512_cvtps_epi32(f);
      total = plus(total, v);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), _mm512_cvtepi32_epi8(v));
    }
    return _mm512_reduce_add_epi32(total);
  }

  static V plus(V a, V b) { return _mm512_add_epi32(a, b); }
  static V all32(int32_t c) { return _mm512_set1_epi32(c); }

 private:
  // other + f, other - f in upper lanes; a product with 1 or -1 is exact.
  static F butterfly(F other, F f, __mmask16 upper) {
    return _mm512_fmadd_ps(f, _mm512_mask_blend_ps(upper, all(1), all(-1)), other);
  }
  // The starts of columns 8 i .. 8 i + 7 of a word, a byte each.
  template <int N> struct Starts {
    int64_t of[kEights<N>];
    constexpr Starts() : of() {
      for (int i = 0; i < N; i++) of[i / 8] |= int64_t(uint64_t(window_start(N, i)) << i % 8 * 8);
    }
    constexpr int64_t operator[](int i) const { return of[i]; }
  };
  template <int N> static constexpr Starts<N> starts{};
  static V even() { return _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30); }
};

extern const Kernels kernels;
const Kernels kernels = kernels_of<Policy>("avx512-vnni", steps_of<Policy>());

}  // namespace bitwright::avx512
