// Words of a trellis: windows are cut out of the 64-bit words of the rows and looked up. A unit is one word column of a tile,
// [16 rows][8 bytes]. Where `P::looks_up` is true, P has
//   Lookup<N>(table) with codes(unit, chunk, first, second): of rows 0-7 and 8-15, columns 8 chunk .. 8 chunk + 7, [row][8]
//   eight (eight activations for every row), quads ([row][8] twice to two column quads), and rows (sums of dword pairs)

template <class P, int N> struct DotTrellis {
  static constexpr int columns = N, bytes = kLanes * kWordBytes;
  typename P::template Lookup<N> lookup;
  V<P> a[2] = {P::zero(), P::zero()};

  explicit DotTrellis(const Term& t) : lookup(t.table) {}

  void add(const uint8_t* unit, const int8_t* q) {
    const V<P> words[2] = {P::load_once(unit), P::load_once(unit + kVector)};
#pragma GCC unroll 8
    for (int i = 0; i < N / 8; i++) {
      const V<P> eight = P::eight(q + 8 * i);
      a[0] = P::dot(a[0], lookup.codes(words[0], i), eight);
      a[1] = P::dot(a[1], lookup.codes(words[1], i), eight);
    }
  }
  V<P> total() const { return P::rows(a[0], a[1]); }
};

// Codes of `units` units as column quads [quad][row][4].
template <class P, int N> void unpack_words(const Term& t, const uint8_t* unit, int units, uint8_t* out) {
  for (; units; units--, unit += t.unit_bytes) {
    if constexpr (P::looks_up) {
      const typename P::template Lookup<N> lookup(t.table);
      const V<P> words[2] = {P::load(unit), P::load(unit + kVector)};
      for (int i = 0; i < N / 8; i++, out += 2 * kVector) {
        V<P> quads[2] = {lookup.codes(words[0], i), lookup.codes(words[1], i)};
        P::quads(quads);
        P::store(out, quads[0]), P::store(out + kVector, quads[1]);
      }
    } else {
      for (int row = 0; row < kLanes; row++) {
        const uint64_t word = load_word(unit + row * kWordBytes);
        for (int i = 0; i < N; i++) out[i / 4 * kVector + 4 * row + i % 4] = t.table[window(word, N, i)];
      }
      out += N * kLanes;
    }
  }
}

// Calls go with the number of columns in a word, as a constant.
template <class Go> inline void with_word(int per_word, Go go) {
  switch (per_word) {
    case 16: return go(Count<16>{});
    case 24: return go(Count<24>{});
    case 32: return go(Count<32>{});
    case 40: return go(Count<40>{});
    case 48: return go(Count<48>{});
    case 56: return go(Count<56>{});
    default: return go(Count<64>{});
  }
}
