// Products of codes that stay where they are in their bytes, for levels that multiply unsigned bytes by signed ones.
// P has dot and sra32 beside what kernels.inl asks for.

// Fields are masked in place; a[i] collects those that stand at the same height, and total() undoes the height.
template <class P, int B> struct MaskedDot {
  static constexpr int columns = 32, bytes = kVector * B;
  V<P> a[4] = {P::zero(), P::zero(), P::zero(), P::zero()};

  void add(const uint8_t* unit, const int8_t* q) {
    if constexpr (B == 1) {
      const V<P> low = P::load_once(unit), high = P::template srl<4>(low);
      for (int i = 0; i < 4; i++) {
        a[i] = P::dot(a[i], P::both(low, P::all8(1 << i)), P::quad(q + 4 * i));
        a[i] = P::dot(a[i], P::both(high, P::all8(1 << i)), P::quad(q + 16 + 4 * i));
      }
    } else if constexpr (B == 2) {
      const V<P> first = P::load_once(unit), second = P::load_once(unit + kVector);
      for (int i = 0; i < 4; i++) {
        a[i] = P::dot(a[i], P::both(first, P::all8(3 << 2 * i)), P::quad(q + 4 * i));
        a[i] = P::dot(a[i], P::both(second, P::all8(3 << 2 * i)), P::quad(q + 16 + 4 * i));
      }
    } else if constexpr (B == 4) {
      for (int i = 0; i < 4; i++) {
        const V<P> v = P::load_once(unit + i * kVector);
        a[i % 2 * 2] = P::dot(a[i % 2 * 2], P::both(v, P::all8(0x0F)), P::quad(q + 8 * i));
        a[i % 2 * 2 + 1] = P::dot(a[i % 2 * 2 + 1], P::both(v, P::all8(0xF0)), P::quad(q + 8 * i + 4));
      }
    } else {
      each_quad<P, B>(unit, [&](int i, V<P> codes) { a[i % 4] = P::dot(a[i % 4], codes, P::quad(q + 4 * i)); });
    }
  }

  V<P> total() const {
    constexpr int step = B == 4 ? 4 : B <= 2 ? B : 0;
    if constexpr (B == 4) return P::plus(P::plus(a[0], a[2]), P::template sra32<step>(P::plus(a[1], a[3])));
    const V<P> upper = P::plus(P::template sra32<2 * step>(a[2]), P::template sra32<3 * step>(a[3]));
    return P::plus(P::plus(a[0], P::template sra32<step>(a[1])), upper);
  }
};

// Base-3 bytes, split into their digits.
template <class P> struct SplitDotBase3 {
  static constexpr int columns = 20, bytes = kVector;
  V<P> a = P::zero();

  void add(const uint8_t* unit, const int8_t* q) {
    V<P> digits[5];
    P::base3(P::load(unit), digits);
    for (int i = 0; i < 5; i++) a = P::dot(a, digits[i], P::quad(q + 4 * i));
  }
  V<P> total() const { return a; }
};

// Of codes in bytes with T tokens.
template <class P, int T> void split_product(const uint8_t* codes, const int8_t* q, int quads, V<P>* out) {
  for (int j = 0; j < T; j++) out[j] = P::zero();
  for (; quads; quads--, codes += kVector, q += 4 * T) {
    const V<P> c = P::load(codes);
    for (int j = 0; j < T; j++) out[j] = P::dot(out[j], c, P::quad(q + 4 * j));
  }
}
