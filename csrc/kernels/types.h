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
constexpr int kMaxBlocks = 4;      // blocks that share one unpacking of the weights
constexpr int kStretch = 512;      // columns unpacked at a time (one group where that is longer)
constexpr int kMaxGroup = 32768;   // columns: 255 * 127 * 32768 fits an int32

// Columns are walked in units: 32 of a field plane or bitmap, 20 of a base-3 plane, one block of an n:m plane.
// Activation group g covers units first[g], first[g] + 1, ... of run positions start[g] to start[g + 1]. A unit that two
// groups share is in both runs, and in each run the activations of the other group are zero.
struct Runs {
  int unit;
  const float* inputs;  // [columns]: activations are multiplied by it before they become codes; null: they are not
  const int* first;  // [groups]
  const int* start;  // [groups + 1]
};

enum class Kind { fields, base3, trellis, bitmap, nm };

struct Term {
  Kind kind;
  int bits;              // of a code, or of a sparse value
  int runs;              // which of the matrix's runs
  int units;             // of a tile
  int unit_bytes;        // of `codes`
  int per_word;          // weights of a 64-bit word
  const uint8_t* table;  // [kStates]: what windows stand for
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
  size_t scratch, plane;    // bytes: where unpacked codes go, and one plane of them
};

struct MatrixView {
  int rows, columns, tiles;
  int group, groups;  // of activations
  int stretch;        // groups unpacked at a time
  int terms, run_kinds;
  size_t scratch;  // bytes
  Term term[kMaxTerms];
  Runs runs[kMaxTerms];
  const float* bias;
};

// One block of int8 activations. Codes of a run kind: [run units][unit / 4][tokens][4].
struct Activations {
  int tokens;          // 1, 2, 4, 8 or 16; the last may be padding
  int used;            // tokens that are real
  float* scale[kMaxTerms];  // [groups][tokens], of each run kind
  float* sum[kMaxTerms];    // [groups][tokens]: sums of codes
  int8_t* codes[kMaxTerms];
};

constexpr int kMostDims = 1024;             // of a head
constexpr int kLargestDigits = 127 * 128;  // of a number of two int8 digits

// Numbers (high * 128 + low) * step as the kernels read them: [quad][high, low][4].
struct Digits {
  alignas(kVector) int8_t quads[2 * kMostDims];
  float step;
  int32_t high_sum, low_sum;
};

// Rows of codes + 128 in tiles: [tiles][quads][16][4]. The codes may be high digits, with the low ones in a second plane.
struct CodeRows {
  const uint8_t* codes;
  size_t stride, lower;  // bytes between tiles, and to the plane of low digits (0: there is none)
  int quads, tiles;
  const float* scale;  // of each row; null: 1, and products are added to what is there
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
  // x = exp(x - max x), not normalized; returns their sum. -inf becomes 0; n is a multiple of 16.
  float (*softmax)(float* x, int n);
  void (*rotate)(float* x, const float* cosine, const float* sine, int half);
  void (*hadamard)(float* x, int n);  // unnormalized, in blocks of the largest power of two that divides n
  // y [tokens][16] of a tile [columns][16] and x [tokens], `stride` floats apart. A token's result does not depend on the others.
  void (*float_tile)(const float* tile, const float* x, size_t stride, int tokens, int columns, float* y);
  // x as (high * 128 + low) * step with |x / step| up to `largest`; returns step. Here and below n is a multiple of 16.
  float (*digits)(const float* x, int n, int largest, int8_t* high, int8_t* low);
  void (*split)(const float* x, int n, Digits& digits);
  // out [count][tiles][16], a vector's `stride` floats apart: scale * (rows * x) for `count` vectors x.
  void (*products)(const CodeRows& rows, const Digits* x, int count, float* out, size_t stride);
  RowSums (*row_sums)(const float* x, int n);
  // x = (x - top) - log_sum; returns the sum of exp(parent) * (parent - x), 0 without a parent.
  double (*log_probabilities)(float* x, int n, float top, float log_sum, const float* parent);
};

struct Kernels {
  const char* name;
  Steps steps;
  int tokens;  // of the largest block
  // Codes of x [n] and their sum; returns the scale max|x| / 127.
  float (*quantize)(const float* x, int n, int8_t* codes, int32_t* sum);
  // y[token * stride + row] for tiles [first, last) and all tokens of up to kMaxBlocks blocks; `scratch` is 64-byte aligned.
  void (*multiply)(const MatrixView& m, const Activations* x, int blocks, int first, int last, float* y, size_t stride,
                   uint8_t* scratch);
  int32_t (*read)(const uint8_t* at, size_t vectors);  // for the ceiling of memory
  // Tiles [first, last) of a job; `scratch` is 64-byte aligned and has `trellis_scratch` bytes.
  void (*encode_trellis)(const TrellisJob& job, int first, int last, void* scratch);
  size_t trellis_scratch;
};

}  // namespace bitwright
