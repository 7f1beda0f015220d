// Choosing the words of a trellis, for Python.
#include <algorithm>

#include "bind.h"
#include "dispatch.h"
#include "team.h"

namespace bitwright {
namespace {

using Optional = const nb::object&;

// The data of an optional float matrix of this shape; null where there is none.
const float* matrix_of(Optional value, const char* name, size_t rows, size_t columns) {
  if (value.is_none()) return nullptr;
  const auto m = nb::cast<Rows>(value, false);
  if (m.shape(0) != rows || m.shape(1) != columns) throw nb::value_error((std::string(name) + " has the wrong shape").c_str());
  return m.data();
}

auto encode_trellis(const Rows& x, const nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>& table,
                    int per_word, Optional importance, Optional u, int threads) {
  const size_t rows = x.shape(0), columns = x.shape(1);
  if (per_word < kLeastPerWord || per_word > kWord) throw nb::value_error("per_word must be 11 to 64");
  if (table.shape(0) != kStates) throw nb::value_error("table must have 128 entries");
  if (!u.is_none() && columns > size_t(per_word)) throw nb::value_error("u belongs to the columns of one word");
  Memory<uint8_t> windows = allocate<uint8_t>(rows * columns);
  const TrellisJob job{int(rows),
                       int(columns),
                       per_word,
                       x.data(),
                       matrix_of(importance, "importance", rows, columns),
                       matrix_of(u, "u", columns, columns),
                       table.data(),
                       windows.get()};
  {
    nb::gil_scoped_release released;
    const int tiles = int((rows + kLanes - 1) / kLanes);
    const Kernels& k = level();
    Team::shared().run(std::min(threads > 0 ? threads : allowed_cores(), std::max(tiles, 1)), [&](int worker, int workers) {
      const Memory<> scratch = allocate(k.trellis_scratch);
      k.encode_trellis(job, tiles * worker / workers, tiles * (worker + 1) / workers, scratch.get());
    });
  }
  return owned_array(std::move(windows), {rows, columns});
}

}  // namespace

void bind_trellis(nb::module_& module) {
  module.def("encode_trellis", &encode_trellis, nb::arg("x").noconvert(), nb::arg("table").noconvert(), nb::arg("per_word"),
             nb::arg("importance").none() = nb::none(), nb::arg("u").none() = nb::none(), nb::arg("threads") = 0);
}

}  // namespace bitwright
