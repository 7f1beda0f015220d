#include "engine/arena.h"

#include <algorithm>
#include <type_traits>

#include "team.h"

#ifdef __linux__
#include <unistd.h>
#endif

namespace bitwright {
namespace {

size_t padded(size_t bytes) { return (bytes + kVector - 1) / kVector * kVector; }

// Pages that lie within; of a mapped file they are read again when somebody looks.
void drop_pages(const uint8_t* data, size_t bytes) {
#ifdef __linux__
  const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE)), from = (uintptr_t(data) + page - 1) / page * page;
  const uintptr_t to = (uintptr_t(data) + bytes) / page * page;
  if (to > from) madvise(reinterpret_cast<void*>(from), to - from, MADV_DONTNEED);
#endif
}

// Calls visit(pointer, bytes) for every stream of weights and scales; codes that several terms share are one stream. Values
// of a bitmap have their own padded end and stay.
template <class Visit> void each_stream(MatrixView& m, Visit visit) {
  int first[kMaxTerms];  // of the terms with the same codes, looked up before visits move them
  for (int i = 0; i < m.terms; i++)
    for (first[i] = 0; m.term[first[i]].codes != m.term[i].codes;) first[i]++;
  for (int i = 0; i < m.terms; i++) {
    Term& t = m.term[i];
    const size_t codes = size_t(m.tiles) * t.units * t.unit_bytes, scales = size_t(m.tiles) * t.groups * kLanes * sizeof(uint16_t);
    if (first[i] == i) visit(t.codes, codes);
    else if (t.codes != m.term[first[i]].codes) t.codes = m.term[first[i]].codes;  // only where visits move: threads share
    if (t.kind == Kind::nm) visit(t.values, codes);
    visit(t.scales, scales);
    if (t.mins) visit(t.mins, scales);
  }
}

}  // namespace

const MatrixView* Arena::take(const MatrixView& m) { return &views_.emplace_back(m); }

void Arena::fill(Team& team, int threads) {
  if (memory_) return;
  const auto each = [&](auto visit) {
    size_t at = 0;
    for (MatrixView& m : views_) each_stream(m, [&](auto*& stream, size_t bytes) { visit(stream, bytes, at), at += padded(bytes); });
    return at;
  };
  const size_t total = each([](auto*&, size_t, size_t) {});
  memory_ = allocate(total + 1);
  team.run(threads, [&](int worker, int workers) {  // each a stretch of the copy, whose pages it is the first to touch
    const size_t from = total * worker / workers, to = total * (worker + 1) / workers;
    each([&](auto* stream, size_t bytes, size_t at) {
      const size_t a = std::clamp(from, at, at + bytes), b = std::clamp(to, at, at + bytes);
      std::memcpy(memory_.get() + a, reinterpret_cast<const uint8_t*>(stream) + (a - at), b - a);
    });
  });
  each([&](auto*& stream, size_t, size_t at) {
    left_.insert(stream);
    stream = reinterpret_cast<std::remove_reference_t<decltype(stream)>>(memory_.get() + at);
  });
  for (const auto& [data, bytes] : files_) drop_pages(data, bytes);
}

}  // namespace bitwright
