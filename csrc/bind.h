// What the files of the Python module share.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "matrix.h"

namespace bitwright {

namespace nb = nanobind;

using Rows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Owned = std::vector<nb::object>;

class Arena;

class PyMatrix {
 public:
  PyMatrix(nb::sequence terms, int rows, int columns, nb::object bias);

  const Matrix& get() const { return matrix_; }
  // Lets go of what an arena has copied: nobody may look at the matrix but through the arena's view any more.
  void release(const Arena& arena);

 private:
  Matrix make(const nb::sequence& terms, int rows, int columns, const nb::object& bias);

  std::vector<std::pair<const void*, nb::object>> owners_;  // of the memory that the matrix views, and where it is
  Matrix matrix_;
};

template <class T> auto owned_array(Memory<T> memory, std::initializer_list<size_t> shape) {
  T* data = memory.release();
  nb::capsule owner(data, [](void* p) noexcept { std::free(p); });
  return nb::ndarray<nb::numpy, T>(data, shape, owner);
}

void bind_engine(nb::module_& module);
void bind_trellis(nb::module_& module);

}  // namespace bitwright
