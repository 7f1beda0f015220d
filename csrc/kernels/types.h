// What every instruction-set level sees: plain views without ownership and without standard containers,
// because an inline function compiled for one level must never be linked into another.
#pragma once
#include <cstddef>
#include <cstdint>

#include "trellis.h"

namespace bitwright {

constexpr int kLanes = 16;         // rows of a tile
constexpr int kVector = 64;        // bytes of a vector: a column quad of every row
constexpr int kMaxTerms = 16;      // of one matrix
constexpr int kMaxTokens = 16;     // of one block of activations
constexpr int kMaxTiles = 2;       // multiplied at a time
constexpr int kMaxBlocks = 8;      // blocks that share one unpacking of the weights
constexpr int kStretch = 640;      // columns unpacked at a time at most (one group where that is longer)
constexpr size_t kAhead = 8192;    // bytes from what a product of one token reads to what it fetches
constexpr size_t kAheadSparse = 2048;  // the same of the streams of an n:m term
constexpr int kDots = 12;          // products of one round of `dots`
constexpr int kMostMixed = 512;       // columns of a block of a rotation at most
constexpr int kMostBlocks = 64;       // of a rotation that are mixed with each other
constexpr int kMaxGroup = 32768;   // columns: 255 * 127 * 32768 fits an int32

// The units of one activation group: `count` from `first` on, whose activations start behind those of `start` units.
struct Run {
  int first, start, count;
};

// How activations of a block lie: quad by quad, those of all tokens beside each other; token by token, where n:m terms gather
// them; as quads, but for a single token at levels that rotate words as in `strided_column`.
enum class Order { quads, gathered, words };

// Columns are walked in units: 32 of a field plane or bitmap, 20 of a base-3 plane, one block of an n:m plane. A unit that two
// groups share is in the runs of both, and in each of them the activations of the other group are zero. Where codes are of
// picked columns only, those of every group begin a unit.
struct Runs {
  int unit;
  Order order;
  const float* inputs;  // [columns]: activations are multiplied by it before they become codes; null: they are not
  const int* picked;    // [places]: columns of the codes, the matrix's own number of columns: none; null: all columns
  int places;
  const Run* of;  // [groups + 1]; behind the last, the start tells how many there are
};

enum class Kind { fields, codebook, base3, trellis, bitmap, nm };

struct Term {
  Kind kind;
  int bits;              // of a code, or of a sparse value
  int runs;              // which of the matrix's runs
  int units;             // of a tile
  int unit_bytes;        // of `codes`
  int per_word;          // weights of a 64-bit word
  const uint8_t* table;  // what windows [kStates] or 4-bit codes [16] stand for
  const uint8_t* codes;  // the index plane where the term is sparse
  const uint8_t* values;
  const int32_t* starts;  // values before each tile
  const uint8_t* tail;    // the values from tile `tail_tile` on, copied so that 64 bytes behind the last may be read
  int tail_tile, tail_start;
  const uint16_t* scales;  // f16 [tiles][groups][16]
  const uint16_t* mins;    // null: scale * offset
  float offset;
  int groups;
  const int* weight_group;  // of each activation group
  size_t plane;             // bytes of unpacked codes, in scratch memory
  size_t nibbles;           // where in it the 4-bit values of a bitmap's tile go as bytes
};

// Activations are multiplied by factors [columns], every `block` of them mixed by a Hadamard transform, then the blocks with each
// other by a matrix `across` [blocks][blocks]. Null factors: they are not rotated; null `across`: the blocks stay apart.
struct Rotation {
  const float *factors, *across;
  int columns, block;
};

struct MatrixView {
  int rows, columns, tiles;
  int group, groups;  // of activations
  int stretch;        // groups unpacked at a time
  int terms, run_kinds;
  size_t scratch;  // bytes of each of kMaxTiles tiles
  Term term[kMaxTerms];
  Runs runs[kMaxTerms];
  const float* bias;
  Rotation rotation;
};

// One block of int8 activations. Codes of a run kind: [run units][unit / 4][tokens][4]; gathered: [run units][tokens][unit];
// strided: [run units][whole eights of the unit].
struct Activations {
  int tokens;          // 1, 2, 4, 8 or 16; the last may be padding
  int used;            // tokens that are real
  float* scale[kMaxTerms];  // [groups][tokens], of each run kind
  float* sum[kMaxTerms];    // [groups][tokens]: sums of codes
  int8_t* codes[kMaxTerms];
};

constexpr int kMostDims = 1024;            // of a head
constexpr int kPage = 64;                  // positions
constexpr int kLargestDigits = 127 * 128;  // of a number of two int8 digits
constexpr int kLargestWeight = 127 * 128 + 127;  // the same with digits 0 to 127
constexpr float kNoScore = -1e30f;         // the top of nothing
constexpr float kTiny = 1e-30f;            // steps below it are zero: their inverse might not be finite
constexpr float kLog2E = 1.44269504f;

// Keys and values of one kv head at kPage positions; what follows the codes is the plane of their low digits, where fine.
struct Page {
  const uint8_t* keys;    // code + 128: [tiles of 16 positions][dims / 4][16][4]
  const uint8_t* values;  // int8: [tiles of 16 dims][quads of positions][16][4]
  const float *key_scale, *value_scale;
  int dims;              // a multiple of 16
  bool fine;
  int start, used;       // its first position, and how many of them are looked at
  const uint8_t* next;   // the page that will be read after this one
};

// A query of one head, and what it has gathered from the pages of a range so far.
struct Query {
  alignas(kVector) int8_t high[kMostDims], low[kMostDims];  // (high * 128 + low) * step
  alignas(kVector) float sum[kLanes], mixed[kMostDims];     // weights 2^(score - top), and values weighted so
  float step, top;
  int32_t high_sum, low_sum;
  int first, last;  // positions it sees
};

// What was gathered from one range of positions or more.
struct Part {
  float top, total;
  float* mixed;
};

// Of one row of logits: the largest and its first index; sums of e, e * d and e * e with d = x - top and e = exp d.
struct RowSums {
  float top;
  int index;
  double sum, weighted, squared;
};

// Float steps of the engine. Sums run over 16 lanes in a fixed order, so that every level gives the same bits.
struct Steps {
  float (*sum_squares)(const float* x, int n);
  void (*scale_by)(const float* x, float factor, const float* weight, float* y, int n);  // y = x * factor * weight
  void (*add)(const float* x, float* y, int n);                                          // y += x
  void (*silu)(const float* gate, float* y, int n);                                      // y *= silu(gate)
  void (*gelu)(const float* gate, float* y, int n);                                      // y *= gelu(gate), by tanh
  void (*soft_cap)(float* x, float cap, int n);                                          // x = cap * tanh(x / cap)
  void (*rotate)(float* x, const float* cosine, const float* sine, int half);
  void (*hadamard)(float* x, int n);  // unnormalized, in blocks of the largest power of two that divides n
  // y [blocks][block] = matrix [blocks][blocks] times x [blocks][block], products added in their order.
  void (*across)(const float* matrix, const float* x, int blocks, int block, float* y);
  // y [tokens][16] of a tile [columns][16] and x [tokens], `stride` floats apart. A token's result does not depend on the others.
  void (*float_tile)(const float* tile, const float* x, size_t stride, int tokens, int columns, float* y);
  // x as (high * 128 + low) * step with |x / step| up to `largest`; returns step. n is a multiple of 16.
  float (*digits)(const float* x, int n, int largest, int8_t* high, int8_t* low);
  // Scores are powers of two, but for those that are capped.
  void (*attend)(const Page& page, Query* queries, int count, float cap);
  void (*fold)(const Part& part, int dims, Part& whole);  // adds what was gathered from one range more
  RowSums (*row_sums)(const float* x, int n);
  // x = (x - top) - log_sum; returns the sum of exp(parent) * (parent - x), 0 without a parent.
  double (*log_probabilities)(float* x, int n, float top, float log_sum, const float* parent);
  // x - shift are log-probabilities, and so is the parent, which becomes factor * (exp(x) - exp(parent)) of them; returns the
  // divergence from the parent.
  double (*follow)(const float* x, float shift, float* parent, float parent_shift, int n, float factor);
};

struct Kernels {
  const char* name;
  Steps steps;
  int tokens;  // of the largest block
  bool strides;  // whether words are rotated
  // Codes of x [n] and their sum; returns the scale max|x| / 127.
  float (*quantize)(const float* x, int n, int8_t* codes, int32_t* sum);
  // y[token * stride + row] for tiles [first, last) and all tokens of up to kMaxBlocks blocks; `scratch` is 64-byte aligned.
  void (*multiply)(const MatrixView& m, const Activations* x, int blocks, int first, int last, float* y, size_t stride,
                   uint8_t* scratch);
  int32_t (*read)(const uint8_t* at, size_t vectors);  // for the ceiling of memory
  int32_t (*dots)(int rounds);                         // for the ceiling of products: kDots vectors a round
  // Tiles [first, last) of a job; `scratch` is 64-byte aligned and has `trellis_scratch` bytes.
  void (*encode_trellis)(const TrellisJob& job, int first, int last, void* scratch);
  size_t trellis_scratch;
};

}  // namespace bitwright
