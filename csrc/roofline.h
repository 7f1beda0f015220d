// What this machine could do at best: bytes read and 8-bit multiply-adds a second.
#pragma once
#include <cstddef>

namespace bitwright {

struct Ceilings {
  double bytes_per_second;  // reading a stretch of `bytes` again and again, as decoding does
  double macs_per_second;   // products of codes and activations that lie in the first-level cache
};

Ceilings measure_ceilings(size_t bytes, int threads);

}  // namespace bitwright
