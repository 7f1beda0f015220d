// AVX-VNNI (Alder Lake, Zen 5 and later): vpdpbusd on 256-bit registers.
#include <immintrin.h>

#include <cstring>

#include "types.h"

namespace bitwright::avxvnni {
constexpr int kRowsAtOnce = 8;
#include "viterbi.inl"
#include "kernels.inl"
#include "masked.inl"
#include "steps.inl"
#include "ymm.inl"

struct Policy : Ymm {
  static constexpr int chains = 4;
  static constexpr bool spreads = false;

  // GCC 12 moves the sums of a loop from register to register, and some to memory, where it sees more than an instruction.
  static V dot(V acc, V codes, V q) {
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc.low) : "x"(codes.low), "x"(q.low));
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc.high) : "x"(codes.high), "x"(q.high));
    return acc;
  }
  static V dot_wide(V acc, V codes, V q) { return dot(acc, codes, q); }
  static V dot_quad(V acc, V codes, const int8_t* q) { return dot(acc, codes, quad(q)); }
  template <int N> static V sra32(V v) { return {_mm256_srai_epi32(v.low, N), _mm256_srai_epi32(v.high, N)}; }
  static constexpr int key_offset = -128;
  static V key(V codes) { return codes; }
  static V dot_key(V acc, V codes, V q) { return dot(acc, codes, q); }

  template <int B> using Dot = MaskedDot<Policy, B>;
  using DotBase3 = SplitDotBase3<Policy>;

  template <int T> static void product(const uint8_t* codes, const int8_t* q, int quads, bool, V* out) {
    split_product<Policy, T>(codes, q, quads, out);
  }
};

extern const Kernels kernels;
const Kernels kernels = kernels_of<Policy>("avx-vnni", steps_of<Policy>());

}  // namespace bitwright::avxvnni
