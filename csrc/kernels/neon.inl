// NEON with dot products: a vector of the layout is four registers of four rows. Included once a level: with i8mm codes are
// unsigned bytes; without it they are at most 127, and wider ones have 128 taken off, which is given back as 128 times the
// sum of the activations. Never measured.

struct Policy {
  struct V {
    uint8x16_t r[4];
  };
  struct F {
    float32x4_t r[4];
  };
  static constexpr int tokens = 4, tiles = 1;
  static constexpr bool expands = true, looks_up = true, dots_words = true, strides = true;

  template <class Each> static V each(Each part) { return {{part(0), part(1), part(2), part(3)}}; }
  template <class Each> static F floats(Each part) { return {{part(0), part(1), part(2), part(3)}}; }
  static int8x16_t s8(uint8x16_t v) { return vreinterpretq_s8_u8(v); }
  static int32x4_t s32(uint8x16_t v) { return vreinterpretq_s32_u8(v); }
  static uint8x16_t u8(int32x4_t v) { return vreinterpretq_u8_s32(v); }

  static V load(const void* p) {
    const auto* at = static_cast<const uint8_t*>(p);
    return each([=](int i) { return vld1q_u8(at + 16 * i); });
  }
  static V load_once(const void* p) { return load(p); }
  static void store(void* p, V v) {
    for (int i = 0; i < 4; i++) vst1q_u8(static_cast<uint8_t*>(p) + 16 * i, v.r[i]);
  }
  static V zero() { return all8(0); }
  static V all8(int c) { return each([=](int) { return vdupq_n_u8(uint8_t(c)); }); }
  static V all32(int32_t c) { return each([=](int) { return u8(vdupq_n_s32(c)); }); }
  static V both(V a, V b) { return each([&](int i) { return vandq_u8(a.r[i], b.r[i]); }); }
  template <int N> static V srl(V v) { return each([&](int i) { return vshrq_n_u8(v.r[i], N); }); }
  template <int N> static V sll(V v) { return each([&](int i) { return vshlq_n_u8(v.r[i], N); }); }
  static V merge(V low, V v, V mask) { return each([&](int i) { return vorrq_u8(low.r[i], vandq_u8(v.r[i], mask.r[i])); }); }
  static V plus(V a, V b) { return each([&](int i) { return u8(vaddq_s32(s32(a.r[i]), s32(b.r[i]))); }); }
  static V flip(V v) { return each([&](int i) { return veorq_u8(v.r[i], vdupq_n_u8(128)); }); }
  static V table16(const uint8_t* p) { return each([=](int) { return vld1q_u8(p); }); }
  static V look16(V table, V codes) { return each([&](int i) { return vqtbl1q_u8(table.r[i], codes.r[i]); }); }

  static V quad(const int8_t* q) {
    int32_t four;
    std::memcpy(&four, q, 4);
    return all32(four);
  }
  static V dot_signed(V acc, V a, V b) { return each([&](int i) { return u8(vdotq_s32(s32(acc.r[i]), s8(a.r[i]), s8(b.r[i]))); }); }
  static constexpr int key_offset = 0;
  static V key(V codes) { return flip(codes); }
  static V dot_key(V acc, V codes, V q) { return dot_signed(acc, codes, q); }

#ifdef __ARM_FEATURE_MATMUL_INT8
  static V dot(V acc, V codes, V q) { return each([&](int i) { return u8(vusdotq_s32(s32(acc.r[i]), codes.r[i], s8(q.r[i]))); }); }
  static V dot_wide(V acc, V codes, V q) { return dot(acc, codes, q); }
#else
  static V dot(V acc, V codes, V q) { return dot_signed(acc, codes, q); }
  static V dot_wide(V acc, V codes, V q) {
    const V half = dot_signed(dot_signed(acc, all8(64), q), all8(64), q);
    return dot_signed(half, flip(codes), q);
  }
#endif

  template <int B> struct Dot {
    static constexpr int columns = 32, bytes = kVector * B;
    V a[2] = {zero(), zero()};

    void add(const uint8_t* unit, const int8_t* q) {
      each_quad<Policy, B>(unit, [&](int i, V codes) {
        if constexpr (B == 8) a[i % 2] = dot_wide(a[i % 2], codes, quad(q + 4 * i));
        else a[i % 2] = dot(a[i % 2], codes, quad(q + 4 * i));
      });
    }
    V total() const { return plus(a[0], a[1]); }
  };
  using DotBase3 = SplitDotBase3<Policy>;

  // Digits of base-3 bytes, largest first: each is how often its power can be taken away.
  static void base3(V v, V* q) {
    int power = 81;
    for (int d = 4; d; d--, power /= 3) {
      q[d] = zero();
      for (int times = 0; times < 2; times++)
        for (int i = 0; i < 4; i++) {
          const uint8x16_t there = vcgeq_u8(v.r[i], vdupq_n_u8(uint8_t(power)));
          v.r[i] = vsubq_u8(v.r[i], vandq_u8(there, vdupq_n_u8(uint8_t(power))));
          q[d].r[i] = vsubq_u8(q[d].r[i], there);
        }
    }
    q[0] = v;
  }

  template <int T> static void product(const uint8_t* codes, const int8_t* q, int quads, bool wide, V* out) {
    if (!wide) return split_product<Policy, T>(codes, q, quads, out);
    for (int j = 0; j < T; j++) out[j] = zero();
    for (; quads; quads--, codes += kVector, q += 4 * T)
      for (int j = 0; j < T; j++) out[j] = dot_wide(out[j], load(codes), quad(q + 4 * j));
  }

  // One instruction looks among the 64 bytes of a trellis table's first half; the last bit of the window turns the sign.
  template <int N> struct Lookup {
    uint8x16x4_t table;
    explicit Lookup(const uint8_t* from) : table(vld1q_u8_x4(from)) {}
    V codes(V words, int i) const {
      alignas(16) uint8_t windows[kVector];
      uint64_t rows[kVector / kWordBytes];
      std::memcpy(rows, words.r, kVector);
      for (int k = 0; k < kVector; k++) {
        const int column = 8 * i + k % 8, start = window_start(N, column < N ? column : 0);
        const uint64_t word = rows[k / 8];
        windows[k] = uint8_t(word >> start | word << (kWord - start) % kWord);
      }
      return look_up(load(windows));
    }
    V strided(V words, int i) const {
      const auto start = [](int place) { return window_start(N, strided_column(N, place)); };
      V w = rotate(words, start(8 * i));
      if (N % 8 && strided_column(N, 8 * i + 1) >= 0) {
        const V odd = rotate(words, (start(8 * i + 1) + kWord - 8) % kWord);
        const uint8x16_t upper = vreinterpretq_u8_u16(vdupq_n_u16(0xFF00));
        for (int k = 0; k < 4; k++) w.r[k] = vbslq_u8(upper, odd.r[k], w.r[k]);
      }
      return look_up(w);
    }

   private:
    static V rotate(V words, int bits) {
      const int64x2_t right = vdupq_n_s64(-bits), left = vdupq_n_s64(kWord - bits);  // a shift by 64 gives zero
      return each([&](int k) {
        const uint64x2_t v = vreinterpretq_u64_u8(words.r[k]);
        return vreinterpretq_u8_u64(vorrq_u64(vshlq_u64(v, right), vshlq_u64(v, left)));
      });
    }
    V look_up(V w) const {
      return each([&](int k) {
        const uint8x16_t code = vqtbl4q_u8(table, vandq_u8(w.r[k], vdupq_n_u8(63)));
        const uint8x16_t turn = vtstq_u8(w.r[k], vdupq_n_u8(64));
        return vsubq_u8(veorq_u8(code, turn), turn);
      });
    }
  };
  static V eight(const int8_t* q) {
    const uint8x16_t both = vreinterpretq_u8_s8(vcombine_s8(vld1_s8(q), vld1_s8(q)));
    return each([=](int) { return both; });
  }
  // The even and the odd dwords of eight rows.
  static void quads(V& first, V& second) {
    const V a = first, b = second;
    const auto part = [](const V& v, int k, bool odd) {
      const uint32x4_t low = vreinterpretq_u32_u8(v.r[k]), high = vreinterpretq_u32_u8(v.r[k + 1]);
      return vreinterpretq_u8_u32(odd ? vuzp2q_u32(low, high) : vuzp1q_u32(low, high));
    };
    first = {{part(a, 0, false), part(a, 2, false), part(b, 0, false), part(b, 2, false)}};
    second = {{part(a, 0, true), part(a, 2, true), part(b, 0, true), part(b, 2, true)}};
  }
  static V pairs(V low, V high) {
    quads(low, high);
    return plus(low, high);
  }

  // Bytes that an index finds nowhere are zero.
  template <int Block> static V gather(V index, const int8_t* q) {
    const auto table = [=](int i) { return vld1q_u8_x4(reinterpret_cast<const uint8_t*>(q) + kVector * i); };
    const uint8x16x4_t low = table(0);
    if (Block == 64) return each([&](int i) { return vqtbl4q_u8(low, index.r[i]); });
    const uint8x16x4_t high = table(1);
    return each([&](int i) {
      return vorrq_u8(vqtbl4q_u8(low, index.r[i]), vqtbl4q_u8(high, vsubq_u8(index.r[i], vdupq_n_u8(kVector))));
    });
  }

  static uint64_t mask(V index, int field) {
    uint64_t m = 0;
    uint8_t bytes[kVector];
    store(bytes, index);
    for (int i = 0; i < kVector; i++) m |= uint64_t(bytes[i] >> field & 1) << i;
    return m;
  }

  // Values go where the mask is set, eight bytes at a time.
  static V expand(uint64_t mask, const uint8_t* values) {
    uint8x8_t eight[8];
    for (int i = 0; i < 8; i++, mask >>= 8) {
      eight[i] = vtbl1_u8(vld1_u8(values), vld1_u8(places.of[mask & 255]));
      values += __builtin_popcountll(mask & 255);
    }
    return each([&](int i) { return vcombine_u8(eight[2 * i], eight[2 * i + 1]); });
  }

  static F to_float(V v) { return floats([&](int i) { return vcvtq_f32_s32(s32(v.r[i])); }); }
  static F half(const uint16_t* p) {
    return floats([=](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
  }
  static F all(float c) { return floats([=](int) { return vdupq_n_f32(c); }); }
  static F mul(F a, F b) { return floats([&](int i) { return vmulq_f32(a.r[i], b.r[i]); }); }
  static F sum(F a, F b) { return floats([&](int i) { return vaddq_f32(a.r[i], b.r[i]); }); }
  static F less(F a, F b) { return floats([&](int i) { return vsubq_f32(a.r[i], b.r[i]); }); }
  static F larger(F a, F b) { return floats([&](int i) { return vmaxq_f32(a.r[i], b.r[i]); }); }
  static float largest(F f) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(f.r[0], f.r[1]), vmaxq_f32(f.r[2], f.r[3]))); }
  static F loadf(const float* p) { return floats([=](int i) { return vld1q_f32(p + 4 * i); }); }
  static void storef(float* p, F f) {
    for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, f.r[i]);
  }
  static void store_some(float* p, F f, int n) {
    float rows[kLanes];
    storef(rows, f);
    for (int i = 0; i < n; i++) p[i] = rows[i];
  }

  static float amax(const float* x, int n) {
    F top = all(0);
    for (int i = 0; i < n; i += kLanes) {
      const F f = loadf(x + i);
      top = larger(top, floats([&](int k) { return vabsq_f32(f.r[k]); }));
    }
    return largest(top);
  }
  // Sums and differences of lanes 1, 2, 4 and 8 apart.
  static F butterflies16(F f) {
    alignas(16) float lanes[kLanes];
    storef(lanes, f);
    butterflies<1>(lanes, kLanes, kLanes);
    return loadf(lanes);
  }
  // Sixteen integers as bytes.
  static int8x16_t bytes(const int32x4_t* v) {
    const int16x8_t low = vcombine_s16(vmovn_s32(v[0]), vmovn_s32(v[1])), high = vcombine_s16(vmovn_s32(v[2]), vmovn_s32(v[3]));
    return vcombine_s8(vmovn_s16(low), vmovn_s16(high));
  }
  // Integers up to 2^14 from floats, in two digits of 7 bits; the lower one begins at -Least.
  template <int Least> static void digits7(F f, int8_t* high, int8_t* low) {
    int32x4_t h[4], l[4];
    for (int i = 0; i < 4; i++) {
      const int32x4_t least = vdupq_n_s32(Least), v = vaddq_s32(vcvtnq_s32_f32(f.r[i]), least);
      h[i] = vshrq_n_s32(v, 7), l[i] = vsubq_s32(vandq_s32(v, vdupq_n_s32(127)), least);
    }
    vst1q_s8(high, bytes(h)), vst1q_s8(low, bytes(l));
  }
  static int32_t round(const float* x, float inverse, int8_t* codes, int n) {
    int32x4_t total = vdupq_n_s32(0);
    for (int i = 0; i < n; i += kLanes) {
      const F f = mul(loadf(x + i), all(inverse));
      int32x4_t v[4];
      for (int k = 0; k < 4; k++) {
        v[k] = vcvtnq_s32_f32(vmaxq_f32(vminq_f32(f.r[k], vdupq_n_f32(127)), vdupq_n_f32(-127)));
        total = vaddq_s32(total, v[k]);
      }
      vst1q_s8(codes + i, bytes(v));
    }
    return vaddvq_s32(total);
  }
};
