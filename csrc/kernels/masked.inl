// Products of codes that stay where they are in their bytes, for levels that multiply unsigned bytes by signed ones.
// P has chains, dot_quad, sra32 and spreads beside what kernels.inl asks for; where `spreads` is true also spread.

// Fields are masked in place; a[i] and a[i + 4] collect those that stand at the same height, and total() undoes the height.
// P::chains sums, 4 or 8, take turns, because a product waits for the one before it.
template <class P, int B> struct MaskedDot {
  static constexpr int columns = 32, bytes = kVector * B, chains = P::chains;
  static constexpr bool nibbles = B == 4 || (B == 3 && P::spreads);
  V<P> a[chains] = {};

  void add(const uint8_t* unit, const int8_t* q) {
    if constexpr (B == 1) {
      const V<P> low = P::load_once(unit), high = P::template srl<4>(low);
      for (int i = 0; i < 4; i++) {
        a[i] = P::dot_quad(a[i], P::both(low, P::all8(1 << i)), q + 4 * i);
        V<P>& other = a[(i + 4) % chains];
        other = P::dot_quad(other, P::both(high, P::all8(1 << i)), q + 16 + 4 * i);
      }
    } else if constexpr (B == 2) {
      const V<P> first = P::load_once(unit), second = P::load_once(unit + kVector);
      for (int i = 0; i < 4; i++) {
        a[i] = P::dot_quad(a[i], P::both(first, P::all8(3 << 2 * i)), q + 4 * i);
        V<P>& other = a[(i + 4) % chains];
        other = P::dot_quad(other, P::both(second, P::all8(3 << 2 * i)), q + 16 + 4 * i);
      }
    } else if constexpr (B == 4) {
      for (int i = 0; i < 4; i++) {
        const V<P> v = P::load_once(unit + i * kVector);
        add_nibbles(i, v, q + 8 * i, q + 8 * i + 4);
      }
    } else if constexpr (nibbles) {
      // Bits of the upper plane go to where, in a nibble, two fields of the lower one leave room for them.
      const V<P> upper = P::load_once(unit + 2 * kVector), fields = P::all8(0x33);
      const V<P> first = P::load_once(unit), second = P::load_once(unit + kVector);
      add_nibbles(0, P::merge(P::template spread<0, 2>(upper), first, fields), q, q + 8);
      add_nibbles(1, P::merge(P::template spread<1, 3>(upper), P::template srl<2>(first), fields), q + 4, q + 12);
      add_nibbles(2, P::merge(P::template spread<4, 6>(upper), second, fields), q + 16, q + 24);
      add_nibbles(3, P::merge(P::template spread<5, 7>(upper), P::template srl<2>(second), fields), q + 20, q + 28);
    } else {
      each_quad<P, B>(unit, [&](int i, V<P> codes) {
        a[i % chains] = P::dot_quad(a[i % chains], codes, q + 4 * i);
      });
    }
  }

  V<P> total() const {
    constexpr int step = B <= 2 ? B : 0;
    V<P> s[4];
    for (int i = 0; i < 4; i++) s[i] = chains == 4 ? a[i] : P::plus(a[i], a[(i + 4) % chains]);
    if constexpr (nibbles) return P::plus(P::plus(s[0], s[2]), P::template sra32<4>(P::plus(s[1], s[3])));
    const V<P> upper = P::plus(P::template sra32<2 * step>(s[2]), P::template sra32<3 * step>(s[3]));
    return P::plus(P::plus(s[0], P::template sra32<step>(s[1])), upper);
  }

 private:
  void add_nibbles(int i, V<P> v, const int8_t* q_low, const int8_t* q_high) {
    V<P>&low = a[2 * i % chains], &high = a[(2 * i + 1) % chains];
    low = P::dot_quad(low, P::both(v, P::all8(0x0F)), q_low);
    high = P::dot_quad(high, P::both(v, P::all8(0xF0)), q_high);
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
