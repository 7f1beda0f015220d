// Words of a trellis: windows are cut out of the 64-bit words of the rows and looked up. A unit is one word column of a tile,
// [16 rows][8 bytes]. Where `P::looks_up` is true, P has
//   Lookup<N>  codes(words, i): columns 8 i .. 8 i + 7 of eight rows' words, [row][8]; the last four may be beyond the word
//   quads      codes of rows 0-7 and 8-15, [row][8], to two column quads, [16 rows][4]
// and where `P::dots_words` is true (one token is multiplied in place)
//   eight      eight activations for every row; where `P::strides` is false also four: and four times 0
//   Lookup<N>  where it is true, strided(words, i): columns of places 8 i .. 8 i + 7 of `strided_column`
//   pairs      sums of rows 0-7 and 8-15, two a row, to one a row

template <class P, int N> struct DotTrellis {
  static constexpr int columns = P::strides ? 8 * kEights<N> : N, bytes = kLanes * kWordBytes;
  const uint8_t* table;
  V<P> a[2] = {P::zero(), P::zero()};

  void begin(const Term& t) { table = t.table; }
  void add(const uint8_t* unit, const int8_t* q) {
    const typename P::template Lookup<N> lookup(table);
    const V<P> low = P::load_once(unit), high = P::load_once(unit + kVector);
#pragma GCC unroll 8
    for (int i = 0; i < kEights<N>; i++) {
      if constexpr (P::strides) {
        const V<P> some = P::eight(q + 8 * i);
        a[0] = P::dot_wide(a[0], lookup.strided(low, i), some);
        a[1] = P::dot_wide(a[1], lookup.strided(high, i), some);
      } else {
        const V<P> some = 8 * i + 8 <= N ? P::eight(q + 8 * i) : P::four(q + 8 * i);
        a[0] = P::dot_wide(a[0], lookup.codes(low, i), some);
        a[1] = P::dot_wide(a[1], lookup.codes(high, i), some);
      }
    }
  }
  V<P> total() const { return P::pairs(a[0], a[1]); }
};

// Tells a dot product which term it belongs to, where it wants to know.
template <class Dot> inline void begin(Dot&, const Term&) {}
template <class P, int N> inline void begin(DotTrellis<P, N>& dot, const Term& t) { dot.begin(t); }

template <int N> struct Count {
  static constexpr int value = N;
};

// Calls go with the columns of a word as a constant.
template <class Go> inline void with_word(int per_word, Go go) {
  switch (per_word) {
    case 12: return go(Count<12>{});
    case 16: return go(Count<16>{});
    case 20: return go(Count<20>{});
    case 24: return go(Count<24>{});
    case 28: return go(Count<28>{});
    case 32: return go(Count<32>{});
    case 40: return go(Count<40>{});
    case 48: return go(Count<48>{});
    case 56: return go(Count<56>{});
    default: return go(Count<64>{});
  }
}

// Codes of `units` units as column quads, [quad][16 rows][4].
template <class P> void unpack_words(const Term& t, const uint8_t* unit, int units, uint8_t* out) {
  const int columns = t.per_word;
  if constexpr (P::looks_up) {
    with_word(columns, [&](auto word) {
      constexpr int count = decltype(word)::value;
      const typename P::template Lookup<count> lookup(t.table);
      for (; units; units--, unit += 2 * kVector) {
        const V<P> low = P::load(unit), high = P::load(unit + kVector);
        for (int i = 0; i < kEights<count>; i++) {
          V<P> first = lookup.codes(low, i), second = lookup.codes(high, i);
          P::quads(first, second);
          P::store(out, first), out += kVector;
          if (8 * i + 4 < count) P::store(out, second), out += kVector;
        }
      }
    });
  } else {
    int byte[kWord], shift[kWord];
    for (int i = 0; i < columns; i++) byte[i] = window_start(columns, i) / 8, shift[i] = window_start(columns, i) % 8;
    for (; units; units--, unit += t.unit_bytes, out += columns * kLanes)
      for (int row = 0; row < kLanes; row++) {
        const uint8_t* word = unit + row * kWordBytes;
        for (int i = 0; i < columns; i++) {
          const int both = word[byte[i]] | word[(byte[i] + 1) % kWordBytes] << 8;
          out[i / 4 * kVector + 4 * row + i % 4] = t.table[both >> shift[i] & (kStates - 1)];
        }
      }
  }
}
