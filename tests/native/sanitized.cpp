// Every kind of matrix at every level against the reference, and a small engine with packed and float weights: built with
// AddressSanitizer and UndefinedBehaviorSanitizer by test_sanitizers.py. All memory has its exact size.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <stdexcept>

#include "activations.h"
#include "dispatch.h"
#include "engine/arena.h"
#include "engine/engine.h"
#include "matrix.h"
#include "reference.h"
#include "rotation.h"

using namespace bitwright;

namespace {

std::mt19937 random_bits(1);

void require(bool ok, const std::string& what) {
  if (ok) return;
  std::printf("failed: %s\n", what.c_str());
  std::exit(1);
}

float normal() { return std::normal_distribution<float>()(random_bits); }

std::vector<float> normals(size_t count) {
  std::vector<float> x(count);
  for (float& v : x) v = normal();
  return x;
}

// The arrays of one matrix.
class Store {
 public:
  Array bytes(std::vector<size_t> shape, int end, int item = 1) {
    size_t size = item;
    for (size_t n : shape) size *= n;
    uint8_t* data = memory_.emplace_back(exact(size)).get();
    for (size_t i = 0; i < size; i++) data[i] = uint8_t(random_bits() % end);
    return {true, data, shape, size};
  }
  // f16 between 2^-7 and 2^-5 of either sign.
  Array halves(std::vector<size_t> shape) {
    Array a = bytes(shape, 256, 2);
    for (size_t i = 1; i < a.bytes; i += 2) const_cast<uint8_t*>(a.data)[i] = uint8_t((a.data[i] & 0x87) | 0x20);
    return a;
  }

 private:
  static Memory<> exact(size_t size) {  // whole vectors, as on disk: what reads behind them is found
    return Memory<>(static_cast<uint8_t*>(std::aligned_alloc(kVector, (size + kVector - 1) / kVector * kVector)));
  }
  std::vector<Memory<>> memory_;
};

constexpr int kRows = 40, kColumns = 200, kGroup = 80;  // nothing is a multiple of a tile, a unit or a vector
constexpr size_t kTiles = 3;

TermSource dense(Store& store, int bits, int group = kGroup, int rows = kRows, int columns = kColumns) {
  TermSource t;
  const size_t tiles = (rows + kLanes - 1) / kLanes, groups = group ? (columns + group - 1) / group : 1;
  t.base3 = bits == 3 && group == 0, t.bits = t.base3 ? 2 : bits, t.group = group, t.activation_group = kGroup, t.offset = -1.5f;
  const size_t vectors = t.base3 ? (columns + 19) / 20 : (columns + 31) / 32 * bits;
  t.codes = store.bytes({tiles, vectors, kVector}, t.base3 ? 243 : 256);
  t.scales = store.halves({tiles, groups, kLanes});
  if (bits == 2) t.mins = store.halves({tiles, groups, kLanes});
  return t;
}

TermSource words(Store& store, int per_word) {
  TermSource t = dense(store, 1);
  t.trellis = true, t.per_word = per_word, t.mins = {};
  t.codes = store.bytes({kTiles, size_t((kColumns + per_word - 1) / per_word), kLanes * kWordBytes}, 256);
  t.table = store.bytes({kStates}, 255);
  uint8_t* table = const_cast<uint8_t*>(t.table.data);
  for (int i = 0; i < kStates / 2; i++) table[i]++, table[i + kStates / 2] = uint8_t(-table[i]);
  return t;
}

TermSource bitmap(Store& store, int bits) {
  TermSource t;
  t.where = "bitmap", t.bits = bits, t.activation_group = kGroup;
  constexpr size_t units = (kColumns + 31) / 32;
  t.codes = store.bytes({kTiles, units, kVector}, 256);
  t.starts = store.bytes({kTiles + 1}, 1, 4);
  int32_t* starts = reinterpret_cast<int32_t*>(const_cast<uint8_t*>(t.starts.data));
  for (size_t tile = 0; tile < kTiles; tile++) {
    starts[tile + 1] = starts[tile];
    for (size_t i = 0; i < units * kVector; i++)
      starts[tile + 1] += __builtin_popcount(const_cast<uint8_t*>(t.codes.data)[tile * units * kVector + i] &= uint8_t(random_bits()));
  }
  t.values = store.bytes({size_t(starts[kTiles] * bits + 7) / 8}, 256);
  t.scales = store.halves({kTiles, 1, kLanes}), t.mins = store.halves({kTiles, 1, kLanes});
  return t;
}

TermSource blocks(Store& store, int block) {
  TermSource t;
  t.where = "nm", t.bits = 8, t.block = block, t.activation_group = kGroup;
  const size_t units = (kColumns + block - 1) / block;
  t.codes = store.bytes({kTiles, units, kVector}, block / 4);
  for (size_t i = 0; i < t.codes.bytes; i++)  // slots of a row in different quarters of the block; some are unused
    const_cast<uint8_t*>(t.codes.data)[i] = random_bits() % 4 ? uint8_t(t.codes.data[i] + i % 4 * (block / 4)) : 255;
  t.values = store.bytes({kTiles, units, kVector}, 256);
  t.scales = store.halves({kTiles, 1, kLanes}), t.mins = store.halves({kTiles, 1, kLanes});
  return t;
}

// Every third column, those of each group in one unit.
TermSource columns(Store& store, int bits) {
  TermSource t = dense(store, bits, 0);
  t.picked = store.bytes({(kColumns + 2) / 3}, 1, 4);
  int32_t* picked = reinterpret_cast<int32_t*>(const_cast<uint8_t*>(t.picked.data));
  for (int k = 0; k < kColumns; k += 3) picked[k / 3] = k;
  t.codes = store.bytes({kTiles, size_t((kColumns + kGroup - 1) / kGroup * bits), kVector}, 256);
  t.mins = store.halves({kTiles, 1, kLanes});
  return t;
}

TermSource codebook(Store& store) {
  TermSource t = dense(store, 4);
  t.table = store.bytes({16}, 256);
  return t;
}

void check(const std::string& name, const std::vector<TermSource>& terms) {
  const Matrix matrix(terms, kRows, kColumns, nullptr);
  constexpr int most = 70;
  const std::vector<float> x = normals(most * kColumns);
  std::vector<float> expected(most * kRows);
  reference_multiply(matrix.view(), x.data(), most, expected.data());
  for (const Kernels* level : levels())
    for (int count : {1, 2, 3, 35, most}) {
      std::vector<float> y(count * kRows);
      multiply(*level, matrix.view(), x.data(), kColumns, count, y.data(), kRows, 2);
      require(std::equal(y.begin(), y.end(), expected.begin()), name + " at level " + level->name);
    }
  for (size_t i = 0; i < terms.size(); i++) {  // one vector less than the shape needs
    std::vector<TermSource> short_terms = terms;
    short_terms[i].codes.shape[1]--;
    bool refused = false;
    try {
      Matrix(short_terms, kRows, kColumns, nullptr);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    require(refused, name + " with codes that are too short");
  }
}

void check_matrices() {
  Store store;
  for (int bits = 1; bits <= 8; bits++) check(std::to_string(bits) + " bits", {dense(store, bits)});
  for (int per_word = 1; per_word <= kWord; per_word++)
    if (has_kernel(per_word)) check("words of " + std::to_string(per_word), {words(store, per_word)});
  check("codebook", {codebook(store)});
  check("codebook and codes", {codebook(store), dense(store, 2)});
  const TermSource base3 = dense(store, 3, 0);
  check("base 3", {base3});
  TermSource scaled = dense(store, 1);
  scaled.inputs = store.halves({kColumns});
  check("input scales", {dense(store, 1), scaled});
  for (int bits : {4, 8}) check("columns", {scaled, columns(store, bits)});
  TermSource rotated = dense(store, 2);
  rotated.rotated = scaled.rotated = true;
  check("rotated inputs", {rotated, scaled});
  for (const Kernels* level : levels())
    for (int columns : {192, 20}) {  // 3 blocks of 64, 5 of 4
      const std::vector<float> x = normals(columns), factors = rotation_factors(columns), across = rotation_across(columns);
      const Rotation rotation = {factors.data(), across.data(), columns, mixed_columns(columns)};
      std::vector<float> y(columns), back(columns);
      mix(*level, x.data(), factors.data(), nullptr, rotation, y.data());
      mix(*level, y.data(), nullptr, factors.data(), rotation, back.data());
      for (int i = 0; i < columns; i++) require(std::abs(back[i] - x[i]) < 1e-5f, "a rotation is not undone");
    }
  for (int bits : {4, 8}) check("bitmap of " + std::to_string(bits) + " bits", {base3, bitmap(store, bits)});
  for (int block : {64, 128}) check("blocks of " + std::to_string(block), {base3, blocks(store, block)});
  check("words and blocks", {words(store, 64), blocks(store, 64)});
  check("words and a bitmap", {words(store, 20), bitmap(store, 8)});
}

// Plan, weights and memory of a decoder of two layers.
struct Model {
  static constexpr int hidden = 80, heads = 6, kv_heads = 2, dim = 20, ffn = 96, vocabulary = 50;
  Store store;
  std::deque<Matrix> matrices;
  std::deque<std::vector<float>> floats;
  Arena arena;
  Plan plan;

  Linear packed(int bits, int rows, int columns) {
    matrices.emplace_back(Matrix({dense(store, bits, kGroup, rows, columns)}, rows, columns, nullptr));
    return {arena.take(matrices.back().view()), nullptr, nullptr, rows, columns};
  }
  const float* vector(size_t size) { return floats.emplace_back(normals(size)).data(); }
  Linear tiles(int rows, int columns) {
    const size_t tiles = (rows + kLanes - 1) / kLanes;
    return {nullptr, vector(tiles * kLanes * columns), vector(tiles * kLanes), rows, columns};
  }

  explicit Model(bool fine) {
    plan.hidden = hidden, plan.heads = heads, plan.kv_heads = kv_heads, plan.head_dim = dim, plan.ffn = ffn;
    plan.vocabulary = vocabulary, plan.positions = 300, plan.eps = 1e-5f, plan.attention_scale = 0.2f, plan.fine_cache = fine;
    plan.frequencies = {std::vector<float>(dim / 2, 0.3f)}, plan.rope_scale = {1};
    for (int i = 0; i < 2; i++) {
      Layer l;
      l.q = packed(4, heads * dim, hidden), l.k = packed(3, kv_heads * dim, hidden), l.v = tiles(kv_heads * dim, hidden);
      l.o = tiles(hidden, heads * dim);
      l.gate = packed(2, ffn, hidden), l.up = packed(1, ffn, hidden), l.down = packed(5, hidden, ffn);
      l.before_attention = {vector(hidden)}, l.before_ffn = {vector(hidden)};
      l.window = i ? 33 : 0;
      plan.layers.push_back(l);
    }
    plan.embedding = vector(vocabulary * hidden), plan.last = {vector(hidden)};
    plan.head = packed(8, vocabulary, hidden), plan.arena = &arena;
  }
};

// Blocks, single tokens, several sequences: the same logits at every level and number of threads.
void check_engine(bool fine) {
  constexpr int count = 150, last = 20, v = Model::vocabulary;
  std::vector<int> tokens(count);
  for (int& t : tokens) t = int(random_bits() % v);
  Model model(fine);
  std::vector<float> expected;
  for (const Kernels* level : levels())
    for (int threads : {1, 2, 3}) {
      set_level(level->name);
      Engine engine(model.plan, threads);
      std::vector<float> all(count * v), one(v);
      engine.forward(0, tokens.data(), count, true, all.data());
      if (expected.empty()) expected = all;
      require(all == expected, std::string("engine at level ") + level->name);
      engine.truncate(count - last);
      const int other = engine.open();
      engine.forward(other, tokens.data(), 5, false, one.data());
      for (int t = count - last; t < count; t++) {
        std::vector<float> two(2 * v);
        const int next[] = {tokens[t], tokens[5]};
        if (t % 2) engine.step({0, other}, next, two.data());
        else engine.forward(0, &tokens[t], 1, false, two.data());
        require(std::equal(two.begin(), two.begin() + v, expected.begin() + t * v), "token by token");
      }
      engine.close(other);
      engine.truncate(0);
      const Sampling sampling{0.8f, 20, 0.9f, 0.01f, 1.1f, 7};
      engine.generate({}, tokens, 40, sampling, {}, 7, [](const std::vector<int>&) { return true; });
    }
}

}  // namespace

int main() {
  std::printf("levels:");
  for (const Kernels* level : levels()) std::printf(" %s", level->name);
  std::puts("");
  check_matrices();
  check_engine(false);
  check_engine(true);
  std::puts("all is well");
}
