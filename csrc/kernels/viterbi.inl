// The Viterbi algorithm over the windows of tail-biting words, kRowsAtOnce rows at a time (the level's widest register),
// compiled once per level. Vectors are the compiler's and every operation is elementwise: all levels give the same bits.
//
// A survivor is what a window shares with the next one: window = survivor << advance | freed bits, and the next window is the
// survivor below its new bits. So there are kStates >> advance survivors, and all that follow from one share its past.

using RowFloats = float __attribute__((vector_size(4 * kRowsAtOnce)));
using RowInts = int32_t __attribute__((vector_size(4 * kRowsAtOnce)));
using RowBytes = uint8_t __attribute__((vector_size(kRowsAtOnce)));

constexpr int kSurvivors = kStates / 2;
constexpr int kSeam = 32;  // columns on each side of a word's seam by which its overlap is chosen
constexpr int kRounds = 2;  // of choosing it where columns are compensated

struct Survivors {
  RowFloats cost[kSurvivors];
  RowFloats error[kWord][kSurvivors];  // of the columns before, where they are compensated
};

struct Trellis {
  Survivors survivors[2];
  RowBytes freed[kWord][kSurvivors];  // the low bits of the best window before each survivor
  RowFloats x[kWord], importance[kWord];
  RowFloats aim[kWord];  // x, or what is left of it after the compensation of the best word so far
  RowFloats target[kSurvivors], error[kSurvivors];
  int per_word;

  int advance(int i) const { return window_start(per_word, i + 1) - window_start(per_word, i); }
  int before(int i) const { return advance(i ? i - 1 : per_word - 1); }
};

// Column i: from survivors of the column before to those behind it. Every survivor keeps the best of 2^K windows.
template <int K, bool Feedback>
void viterbi_column(Trellis& t, const Survivors& from, Survivors& to, const float* table, int i, float inverse) {
  const int mask = (kStates >> t.before(i)) - 1;
  const RowFloats x = t.aim[i], importance = t.importance[i];
  for (int s = 0; s < kStates >> K; s++) {
    RowFloats best{}, best_error{};
    RowInts freed{};
#pragma GCC unroll 16
    for (int j = 0; j < 1 << K; j++) {
      const int window = s << K | j, past = window & mask;
      const RowFloats e = Feedback ? (t.target[past] - table[window]) * inverse : x - table[window];
      const RowFloats cost = from.cost[past] + (Feedback ? e * e : e * e * importance);
      const RowInts less = j ? cost < best : RowInts{} - 1;
      best = less ? cost : best;
      freed = less ? RowInts{} + j : freed;
      if constexpr (Feedback) best_error = less ? e : best_error;
    }
    to.cost[s] = best;
    t.freed[i][s] = __builtin_convertvector(freed, RowBytes);
    if constexpr (Feedback) {
      to.error[i][s] = best_error;
      for (int c = 0; c < i; c++) {
        RowFloats e = from.error[c][s << K & mask];
#pragma GCC unroll 16
        for (int j = 1; j < 1 << K; j++) e = freed == j ? from.error[c][(s << K | j) & mask] : e;
        to.error[c][s] = e;
      }
    }
  }
}

// Columns first, first + 1, ... around the word; returns which survivors hold the result.
template <bool Feedback> int viterbi(Trellis& t, const TrellisJob& job, int first, int count) {
  int now = 0;
  for (int c = 0; c < count; c++, now = 1 - now) {
    const int i = (first + c) % t.per_word;
    float inverse = 1;
    if constexpr (Feedback) {
      const int n = job.columns;
      inverse = i < n ? 1 / job.u[i * n + i] : 0;
      for (int s = 0; s < kStates >> t.before(i); s++) {
        t.target[s] = t.x[i];
        for (int k = 0; i < n && k < i; k++) t.target[s] -= t.survivors[now].error[k][s] * job.u[k * n + i];
      }
    }
    const auto column = t.advance(i) == 1   ? viterbi_column<1, Feedback>
                        : t.advance(i) == 2 ? viterbi_column<2, Feedback>
                        : t.advance(i) == 3 ? viterbi_column<3, Feedback>
                        : t.advance(i) == 4 ? viterbi_column<4, Feedback>
                        : t.advance(i) == 5 ? viterbi_column<5, Feedback>
                                            : viterbi_column<6, Feedback>;
    column(t, t.survivors[now], t.survivors[1 - now], job.table, i, inverse);
  }
  return now;
}

// Walks back from a survivor behind column `last`; returns the survivor before the first of `count` columns.
inline int trace_back(const Trellis& t, int lane, int survivor, int last, int count, uint8_t* windows) {
  for (int c = 0, i = last; c < count; c++, i = i ? i - 1 : t.per_word - 1) {
    const int window = survivor << t.advance(i) | t.freed[i][survivor][lane];
    if (windows) windows[i] = uint8_t(window);
    survivor = window & ((kStates >> t.before(i)) - 1);
  }
  return survivor;
}

// The overlap of the last with the first window: where the best free path around the seam passes it. Errors are not
// compensated there, because that has a first column.
inline void choose_overlap(Trellis& t, const TrellisJob& job, int* overlap) {
  const int side = kSeam < t.per_word ? kSeam : t.per_word;
  for (RowFloats& cost : t.survivors[0].cost) cost = RowFloats{};
  const Survivors& end = t.survivors[viterbi<false>(t, job, t.per_word - side, 2 * side)];
  for (int lane = 0; lane < kRowsAtOnce; lane++) {
    int best = 0;
    for (int s = 1; s < kStates >> t.advance(side - 1); s++)
      if (end.cost[s][lane] < end.cost[best][lane]) best = s;
    overlap[lane] = trace_back(t, lane, best, side - 1, side, nullptr);
  }
}

inline void load_word(Trellis& t, const TrellisJob& job, int row, int column) {
  constexpr float most = 4096;  // far outside every table: keeps costs finite
  for (int i = 0; i < kWord; i++)
    for (int lane = 0; lane < kRowsAtOnce; lane++) {
      const bool inside = i < t.per_word && column + i < job.columns && row + lane < job.rows;
      const size_t at = inside ? size_t(row + lane) * job.columns + column + i : 0;
      const float x = inside ? job.x[at] : 0, low = x > -most ? x : -most;
      t.x[i][lane] = t.aim[i][lane] = low < most ? low : most;
      t.importance[i][lane] = !inside ? 0 : job.importance ? job.importance[at] : 1;
      // The overlap is chosen by the errors alone: 1 / u^2 is the curvature of a column given those before it.
      if (inside && job.u) t.importance[i][lane] = 1 / (job.u[i * job.columns + i] * job.u[i * job.columns + i]);
    }
}

// What a column aims at once the errors of the columns before are compensated.
inline void compensate(Trellis& t, const TrellisJob& job, int lane, const uint8_t* windows) {
  float error[kWord];
  for (int i = 0; i < t.per_word && i < job.columns; i++) {
    float aim = t.x[i][lane];
    for (int k = 0; k < i; k++) aim -= error[k] * job.u[k * job.columns + i];
    t.aim[i][lane] = aim;
    error[i] = (aim - job.table[windows[i]]) / job.u[i * job.columns + i];
  }
}

inline void encode_word(Trellis& t, const TrellisJob& job, int row, int column) {
  constexpr float never = 1e30f;
  const int columns = job.columns - column < t.per_word ? job.columns - column : t.per_word;
  float least[kRowsAtOnce];
  load_word(t, job, row, column);
  for (int round = 0; round < (job.u ? kRounds : 1); round++) {
    int overlap[kRowsAtOnce];
    choose_overlap(t, job, overlap);
    for (int s = 0; s < kSurvivors; s++)
      for (int lane = 0; lane < kRowsAtOnce; lane++) t.survivors[0].cost[s][lane] = s == overlap[lane] ? 0 : never;
    const int now = job.u ? viterbi<true>(t, job, 0, t.per_word) : viterbi<false>(t, job, 0, t.per_word);
    for (int lane = 0; lane < kRowsAtOnce && row + lane < job.rows; lane++) {
      uint8_t windows[kWord];
      trace_back(t, lane, overlap[lane], t.per_word - 1, t.per_word, windows);
      if (job.u) compensate(t, job, lane, windows);
      const float cost = t.survivors[now].cost[overlap[lane]][lane];
      if (round && !(cost < least[lane])) continue;
      least[lane] = cost;
      std::memcpy(job.windows + size_t(row + lane) * job.columns + column, windows, columns);
    }
  }
}

// Tiles [first, last) of 16 rows; `scratch` holds a Trellis.
inline void encode_trellis(const TrellisJob& job, int first, int last, void* scratch) {
  Trellis& t = *static_cast<Trellis*>(scratch);
  t.per_word = job.per_word;
  for (int row = first * kLanes; row < last * kLanes && row < job.rows; row += kRowsAtOnce)
    for (int column = 0; column < job.columns; column += job.per_word) encode_word(t, job, row, column);
}
