// A decoder language model as the engine runs it: sizes, and for every layer its products and norms. Views only.
#pragma once
#include <vector>

#include "kernels/types.h"
#include "memory.h"

namespace bitwright {

class Arena;

// y = W x + b with packed W, or with float W in tiles [columns][16] where a model keeps a layer unquantized.
struct Linear {
  const MatrixView* packed = nullptr;
  const float* tiles = nullptr;
  const float* bias = nullptr;  // of a float W, padded to whole tiles
  int rows = 0, columns = 0;

  int tile_count() const { return (rows + kLanes - 1) / kLanes; }
};

struct Norm {
  const float* weight = nullptr;  // null: there is no such norm

  explicit operator bool() const { return weight; }
};

struct Layer {
  Linear q, k, v, o, gate, up, down;
  Norm before_attention, after_attention, before_ffn, after_ffn, q_norm, k_norm;
  int window = 0;  // positions that a token sees; 0: all
  int rope = 0;    // which frequencies
};

struct Plan {
  int hidden = 0, heads = 0, kv_heads = 0, head_dim = 0, ffn = 0, vocabulary = 0, positions = 0;
  float eps = 0, embedding_scale = 1, attention_scale = 1, attention_cap = 0, logit_cap = 0;
  bool gelu = false, fine_cache = false;
  std::vector<Layer> layers;
  std::vector<std::vector<float>> frequencies;  // of rotary embeddings: [kind][half of the rotated dims]
  std::vector<float> rope_scale;                // of sine and cosine: [kind]
  const MatrixView* packed_embedding = nullptr;
  const float* embedding = nullptr;  // [vocabulary][hidden], where it is not packed
  Norm last;
  Linear head;
  Arena* arena = nullptr;  // where the packed weights will lie
};

}  // namespace bitwright
