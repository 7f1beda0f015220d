#include "engine/arena.h"

#include <type_traits>

namespace bitwright {
namespace {

size_t padded(size_t bytes) { return (bytes + kVector - 1) / kVector * kVector; }

// Calls visit(pointer, bytes) for every stream of weights and scales. Values of a bitmap have their own padded end and stay.
template <class Visit> void each_stream(MatrixView& m, Visit visit) {
  for (int i = 0; i < m.terms; i++) {
    Term& t = m.term[i];
    const size_t codes = size_t(m.tiles) * t.units * t.unit_bytes, scales = size_t(m.tiles) * t.groups * kLanes * sizeof(uint16_t);
    visit(t.codes, codes);
    if (t.kind == Kind::nm) visit(t.values, codes);
    visit(t.scales, scales);
    if (t.mins) visit(t.mins, scales);
  }
}

}  // namespace

const MatrixView* Arena::take(const MatrixView& m) { return &views_.emplace_back(m); }

void Arena::fill() {
  size_t total = 0;
  for (MatrixView& m : views_) each_stream(m, [&](auto*, size_t bytes) { total += padded(bytes); });
  memory_ = allocate(total + 1);
  uint8_t* at = memory_.get();
  for (MatrixView& m : views_)
    each_stream(m, [&](auto*& stream, size_t bytes) {
      std::memcpy(at, stream, bytes);
      stream = reinterpret_cast<std::remove_reference_t<decltype(stream)>>(at);
      at += padded(bytes);
    });
}

}  // namespace bitwright
