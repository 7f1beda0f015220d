// Two 256-bit registers as one vector of the layout, rows 0-7 and 8-15: what AVX2 and AVX-VNNI share.

struct Ymm {
  struct V {
    __m256i low, high;
  };
  struct F {
    __m256 low, high;
  };
  static constexpr int tokens = 4, tiles = 1;
  static constexpr bool expands = true, looks_up = true, dots_words = true, strides = true;

  static V load(const void* p) {
    const auto* v = static_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(v), _mm256_loadu_si256(v + 1)};
  }
  static V load_once(const void* p) { return load(p); }
  static void store(void* p, V v) {
    auto* to = static_cast<__m256i*>(p);
    _mm256_storeu_si256(to, v.low), _mm256_storeu_si256(to + 1, v.high);
  }
  static V zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static V all8(int c) { return {_mm256_set1_epi8(char(c)), _mm256_set1_epi8(char(c))}; }
  static V both(V a, V b) { return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)}; }
  template <int N> static V srl(V v) { return {_mm256_srli_epi16(v.low, N), _mm256_srli_epi16(v.high, N)}; }
  template <int N> static V sll(V v) { return {_mm256_slli_epi16(v.low, N), _mm256_slli_epi16(v.high, N)}; }
  static V table16(const uint8_t* p) {
    const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {table, table};
  }
  static V look16(V table, V codes) { return {_mm256_shuffle_epi8(table.low, codes.low), _mm256_shuffle_epi8(table.high, codes.high)}; }
  static V merge(V low, V v, V mask) {
    v = both(v, mask);
    return {_mm256_or_si256(low.low, v.low), _mm256_or_si256(low.high, v.high)};
  }

  static V quad(const int8_t* q) {
    const __m256i v = _mm256_set1_epi32(*reinterpret_cast<const __attribute__((may_alias, aligned(1))) int32_t*>(q));
    return {v, v};
  }

  static void base3(V v, V* q) {
    __m256i low[5], high[5];
    digits(v.low, low), digits(v.high, high);
    for (int i = 0; i < 5; i++) q[i] = {low[i], high[i]};
  }

  // Of the first half of a trellis table four tables of 16 bytes have each what it differs in from the one before. All up to
  // that of the window's upper bits are added up, because a shuffle gives zero where bit 7 is set: a blend would be several
  // instructions on some processors. The last bit of the window turns the sign.
  template <int N> struct Lookup {
    __m256i table[4];
    explicit Lookup(const uint8_t* from) {
      for (int i = 0; i < 4; i++) table[i] = table16(from + 16 * i).low;
      for (int i = 3; i; i--) table[i] = _mm256_xor_si256(table[i], table[i - 1]);
    }
    V codes(V words, int i) const { return {look_up(cut(words.low, i)), look_up(cut(words.high, i))}; }
    V strided(V words, int i) const { return {look_up(turned(words.low, i)), look_up(turned(words.high, i))}; }

   private:
    // A window lies in two neighbouring bytes: they are brought together as 16 bits and shifted by a product.
    static __m256i cut(__m256i words, int i) {
      const Cut& c = cuts<N>.of[i];
      const auto window = [&](const uint8_t* bytes) {
        const __m256i both = _mm256_shuffle_epi8(words, _mm256_load_si256(reinterpret_cast<const __m256i*>(bytes)));
        const __m256i factor = _mm256_load_si256(reinterpret_cast<const __m256i*>(c.factor));
        return _mm256_srli_epi16(_mm256_mullo_epi16(both, factor), 8);
      };
      return _mm256_packus_epi16(window(c.first), window(c.second));
    }
    static __m256i turned(__m256i words, int i) {
      const auto start = [](int place) { return window_start(N, strided_column(N, place)); };
      const __m256i even = rotate(words, start(8 * i));
      if (N % 8 == 0 || strided_column(N, 8 * i + 1) < 0) return even;
      const int further = start(8 * i + 1) - 8 - start(8 * i);  // one bit more does not reach around the word
      const __m256i odd = further == 1 ? _mm256_srli_epi64(even, 1) : rotate(even, (further + kWord) % kWord);
      return _mm256_blendv_epi8(even, odd, _mm256_set1_epi16(short(0xFF00)));
    }
    static __m256i rotate(__m256i words, int bits) {
      return bits ? _mm256_or_si256(_mm256_srli_epi64(words, bits), _mm256_slli_epi64(words, kWord - bits)) : words;
    }
    // Bit 7 of a window does not count.
    __m256i look_up(__m256i w) const {
      const __m256i bit6 = _mm256_set1_epi8(64), sign = _mm256_add_epi8(_mm256_and_si256(w, bit6), bit6);
      w = _mm256_and_si256(w, _mm256_set1_epi8(63));
      __m256i code = _mm256_shuffle_epi8(table[0], w);
      for (int i = 1; i < 4; i++) {
        w = _mm256_sub_epi8(w, _mm256_set1_epi8(16));
        code = _mm256_xor_si256(code, _mm256_shuffle_epi8(table[i], w));
      }
      return _mm256_sign_epi8(code, sign);
    }
  };
  static V eight(const int8_t* q) {
    int64_t both;
    std::memcpy(&both, q, sizeof both);
    return {_mm256_set1_epi64x(both), _mm256_set1_epi64x(both)};
  }
  static V pairs(V low, V high) { return {two_to_one(low), two_to_one(high)}; }
  static void quads(V& first, V& second) {
    const V a = first, b = second;
    first = {every_other<0x88>(a), every_other<0x88>(b)};
    second = {every_other<0xDD>(a), every_other<0xDD>(b)};
  }

  // A shuffle looks among 16 bytes and gives zero where bit 7 is set, which is where an index lies outside of them.
  template <int Block> static V gather(V index, const int8_t* q) {
    V found = zero();
    for (int i = 0; i < Block / 16; i++) {
      const V table = table16(reinterpret_cast<const uint8_t*>(q) + 16 * i), start = all8(16 * i);
      const auto pick = [&](__m256i v, __m256i from, __m256i bytes) {
        return _mm256_shuffle_epi8(bytes, _mm256_adds_epu8(_mm256_sub_epi8(v, from), _mm256_set1_epi8(0x70)));
      };
      found.low = _mm256_or_si256(found.low, pick(index.low, start.low, table.low));
      found.high = _mm256_or_si256(found.high, pick(index.high, start.high, table.high));
    }
    return found;
  }

  static uint64_t mask(V index, int field) {
    const __m256i bit = _mm256_set1_epi8(char(1 << field));
    const auto half = [&](__m256i v) { return uint32_t(_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_and_si256(v, bit), bit))); };
    return half(index.low) | uint64_t(half(index.high)) << 32;
  }

  // Values go where the mask is set, eight bytes at a time.
  static V expand(uint64_t mask, const uint8_t* values) {
    __m128i eight[8];
    for (int i = 0; i < 8; i++, mask >>= 8) {
      const auto at = [](const uint8_t* p) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)); };
      eight[i] = _mm_shuffle_epi8(at(values), at(places.of[mask & 255]));
      values += __builtin_popcountll(mask & 255);
    }
    const auto half = [&](int i) {
      return _mm256_set_m128i(_mm_unpacklo_epi64(eight[i + 2], eight[i + 3]), _mm_unpacklo_epi64(eight[i], eight[i + 1]));
    };
    return {half(0), half(4)};
  }

  static V plus(V a, V b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
  static V all32(int32_t c) { return {_mm256_set1_epi32(c), _mm256_set1_epi32(c)}; }

  static F to_float(V v) { return {_mm256_cvtepi32_ps(v.low), _mm256_cvtepi32_ps(v.high)}; }
  static F half(const uint16_t* p) {
    const auto* v = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(v)), _mm256_cvtph_ps(_mm_loadu_si128(v + 1))};
  }
  static F all(float c) { return {_mm256_set1_ps(c), _mm256_set1_ps(c)}; }
  static F mul(F a, F b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
  static F sum(F a, F b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
  static F less(F a, F b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
  static F loadf(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static void storef(float* p, F f) { _mm256_storeu_ps(p, f.low), _mm256_storeu_ps(p + 8, f.high); }
  static void store_some(float* p, F f, int n) {
    alignas(kVector) float rows[kLanes];
    storef(rows, f);
    for (int i = 0; i < n; i++) p[i] = rows[i];
  }

  static F larger(F a, F b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
  static float largest(F f) {
    const __m256 half = _mm256_max_ps(f.low, f.high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
  static float amax(const float* x, int n) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    F top = all(0);
    for (int i = 0; i < n; i += kLanes) {
      const F f = loadf(x + i);
      top = larger(top, {_mm256_andnot_ps(sign, f.low), _mm256_andnot_ps(sign, f.high)});
    }
    return largest(top);
  }
  // Integers up to 2^14 from floats, in two digits of 7 bits; the lower one begins at -Least.
  template <int Least> static void digits7(F f, int8_t* high, int8_t* low) {
    const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(f.low), _mm256_cvtps_epi32(f.high));
    const __m256i least = _mm256_set1_epi16(Least), v = _mm256_add_epi16(words, least);
    store_bytes(_mm256_srai_epi16(v, 7), high);
    store_bytes(_mm256_sub_epi16(_mm256_and_si256(v, _mm256_set1_epi16(127)), least), low);
  }
  // Sums and differences of lanes 1, 2, 4 and 8 apart.
  static F butterflies16(F f) {
    const auto eight = [](__m256 half) {
      half = butterfly<0xAA>(_mm256_permute_ps(half, 0xB1), half);
      half = butterfly<0xCC>(_mm256_permute_ps(half, 0x4E), half);
      return butterfly<0xF0>(_mm256_permute2f128_ps(half, half, 1), half);
    };
    const __m256 low = eight(f.low), high = eight(f.high);
    return {_mm256_add_ps(low, high), _mm256_sub_ps(low, high)};
  }
  static int32_t round(const float* x, float inverse, int8_t* codes, int n) {
    int32_t total = 0;
    const auto clamp = [](__m256 f) {
      return _mm256_cvtps_epi32(_mm256_max_ps(_mm256_min_ps(f, _mm256_set1_ps(127)), _mm256_set1_ps(-127)));
    };
    for (int i = 0; i < n; i += kLanes) {
      const F f = mul(loadf(x + i), all(inverse));
      const __m256i words = _mm256_packs_epi32(clamp(f.low), clamp(f.high));
      store_bytes(words, codes + i);
      const __m256i sums = _mm256_madd_epi16(words, _mm256_set1_epi16(1));
      __m128i s = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
      s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
      total += _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1)));
    }
    return total;
  }

 private:
  template <int Upper> static __m256 butterfly(__m256 other, __m256 f) {
    return _mm256_blend_ps(_mm256_add_ps(f, other), _mm256_sub_ps(other, f), Upper);
  }
  // 16-bit words that a pack of 32-bit ones left in the order of 128-bit halves.
  static void store_bytes(__m256i words, int8_t* to) {
    words = _mm256_permute4x64_epi64(words, 0xD8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
  }

  // Of columns 8 i .. 8 i + 7 of a word: the two bytes of every window, of the first and the second word of 128 bits, and
  // 2^(8 - shift).
  struct Cut {
    alignas(32) uint8_t first[32], second[32];
    alignas(32) uint16_t factor[16];
  };
  template <int N> struct Cuts {
    Cut of[kEights<N>];
    constexpr Cuts() : of() {
      for (int i = 0; i < kEights<N> * 8; i++)  // columns beyond the word too: gcc wants every byte set
        for (int half = 0; half < 2; half++) {
          Cut& cut = of[i / 8];
          const int start = window_start(N, i % N), at = half * 8 + i % 8;
          for (int k = 0; k < 2; k++) {
            cut.first[2 * at + k] = uint8_t((start / 8 + k) % kWordBytes);
            cut.second[2 * at + k] = uint8_t(cut.first[2 * at + k] + kWordBytes);
          }
          cut.factor[at] = uint16_t(1 << (8 - start % 8));
        }
    }
  };
  template <int N> static constexpr Cuts<N> cuts{};
  static __m256i two_to_one(V v) { return _mm256_permute4x64_epi64(_mm256_hadd_epi32(v.low, v.high), 0xD8); }
  // The even (0x88) or odd (0xDD) dwords of eight rows.
  template <int Which> static __m256i every_other(V v) {
    const __m256 both = _mm256_shuffle_ps(_mm256_castsi256_ps(v.low), _mm256_castsi256_ps(v.high), Which);
    return _mm256_permute4x64_epi64(_mm256_castps_si256(both), 0xD8);
  }
  // Digits of base-3 bytes, largest first: each is how often its power can be taken away.
  static void digits(__m256i v, __m256i* d) {
    int power = 81;
    for (int i = 4; i; i--, power /= 3) {
      const __m256i one = _mm256_set1_epi8(char(power)), two = _mm256_set1_epi8(char(2 * power));
      const __m256i a = _mm256_cmpeq_epi8(_mm256_max_epu8(v, one), v), b = _mm256_cmpeq_epi8(_mm256_max_epu8(v, two), v);
      v = _mm256_sub_epi8(v, _mm256_and_si256(a, one));
      v = _mm256_sub_epi8(v, _mm256_and_si256(b, one));
      d[i] = _mm256_sub_epi8(_mm256_setzero_si256(), _mm256_add_epi8(a, b));
    }
    d[0] = v;
  }
};
