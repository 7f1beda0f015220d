// The Python module `bitwright._core`.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>

#include "activations.h"
#include "bind.h"
#include "dispatch.h"
#include "engine/arena.h"
#include "reference.h"
#include "roofline.h"
#include "rotation.h"
#include "scores.h"
#include "team.h"

namespace bitwright {
namespace {

// The tensor in attribute `name`, of the given type and contiguous; kept alive in `owners`.
template <class Owners> Array array_of(nb::handle term, const char* name, nb::dlpack::dtype type, Owners& owners) {
  const nb::object value = term.attr(name);
  if (value.is_none()) return {};
  nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu> a;
  if (!nb::try_cast(value, a, false))
    throw nb::type_error((std::string(name) + " must be a contiguous array in main memory").c_str());
  if (a.dtype() != type) throw nb::type_error((std::string(name) + " has the wrong element type").c_str());
  owners.emplace_back(a.data(), nb::cast(a));
  Array out;
  out.given = true;
  out.data = static_cast<const uint8_t*>(a.data());
  for (size_t i = 0; i < a.ndim(); i++) out.shape.push_back(a.shape(i));
  out.bytes = a.nbytes();
  return out;
}

template <class Owners> TermSource source_of(nb::handle term, Owners& owners) {
  const auto u8 = nb::dtype<uint8_t>(), i32 = nb::dtype<int32_t>();
  const nb::dlpack::dtype f16{uint8_t(nb::dlpack::dtype_code::Float), 16, 1};
  TermSource s;
  s.activation_group = nb::cast<int>(term.attr("activation_group"));
  s.rotated = nb::cast<bool>(term.attr("rotated"));
  s.scales = array_of(term, "scales", f16, owners), s.mins = array_of(term, "mins", f16, owners);
  if (nb::hasattr(term, "where")) {
    s.where = nb::cast<std::string>(term.attr("where"));
    s.codes = array_of(term, "index", u8, owners), s.values = array_of(term, "values", u8, owners);
    s.starts = array_of(term, "starts", i32, owners), s.counts = array_of(term, "counts", u8, owners);
    s.bits = nb::cast<int>(term.attr("bits")), s.block = nb::cast<int>(term.attr("block"));
    return s;
  }
  const nb::object width = term.attr("width");
  s.base3 = nb::isinstance<nb::str>(width) && nb::cast<std::string>(width) == "base3";
  s.trellis = nb::isinstance<nb::str>(width) && nb::cast<std::string>(width) == "trellis";
  s.per_word = nb::cast<int>(term.attr("per_word")), s.table = array_of(term, "table", u8, owners);
  if (nb::isinstance<nb::int_>(width)) s.bits = nb::cast<int>(width);
  s.codes = array_of(term, "codes", u8, owners);
  s.inputs = array_of(term, "inputs", f16, owners), s.picked = array_of(term, "picked", i32, owners);
  s.offset = nb::cast<float>(term.attr("offset"));
  if (!term.attr("group").is_none()) s.group = nb::cast<int>(term.attr("group"));
  return s;
}

}  // namespace

PyMatrix::PyMatrix(nb::sequence terms, int rows, int columns, nb::object bias) : matrix_(make(terms, rows, columns, bias)) {}

Matrix PyMatrix::make(const nb::sequence& terms, int rows, int columns, const nb::object& bias) {
  std::vector<TermSource> sources;
  for (nb::handle term : terms) sources.push_back(source_of(term, owners_));
  if (bias.is_none()) return Matrix(sources, rows, columns, nullptr);
  const auto b = nb::cast<nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>>(bias, false);
  if (b.shape(0) != size_t(rows)) throw nb::value_error("bias must have one entry a row");
  return Matrix(sources, rows, columns, b.data());
}

void PyMatrix::release(const Arena& arena) {
  owners_.erase(std::remove_if(owners_.begin(), owners_.end(), [&](const auto& own) { return arena.left(own.first); }),
                owners_.end());
}

namespace {

void check_columns(const PyMatrix& m, const Rows& x) {
  if (x.shape(1) != size_t(m.get().view().columns))
    throw nb::value_error(("x has " + std::to_string(x.shape(1)) + " columns, the matrix " +
                           std::to_string(m.get().view().columns)).c_str());
}

auto matmul(const PyMatrix& m, const Rows& x, int threads) {
  check_columns(m, x);
  const MatrixView& view = m.get().view();
  const size_t count = x.shape(0), rows = size_t(view.rows);
  Memory<float> y = allocate<float>(count * rows);
  {
    nb::gil_scoped_release released;
    multiply(level(), view, x.data(), x.shape(1), int(count), y.get(), rows, threads > 0 ? threads : allowed_cores());
  }
  return owned_array(std::move(y), {count, rows});
}

auto reference(const PyMatrix& m, const Rows& x) {
  check_columns(m, x);
  const size_t count = x.shape(0), rows = size_t(m.get().view().rows);
  Memory<float> y = allocate<float>(count * rows);
  reference_multiply(m.get().view(), x.data(), int(count), y.get());
  return owned_array(std::move(y), {count, rows});
}

// Median seconds of the kernels alone on this thread, activations quantized beforehand.
double kernel_seconds(const PyMatrix& m, const Rows& x, int repeats) {
  check_columns(m, x);
  const MatrixView& view = m.get().view();
  const Kernels& k = level();
  const int count = int(x.shape(0)), most = kMaxBlocks * k.tokens;
  std::vector<ActivationBlocks> blocks((count + most - 1) / most);
  for (int t = 0; t < count; t += most)
    blocks[t / most].fill_all(k, view, x.data() + t * x.shape(1), x.shape(1), std::min(most, count - t));
  const Memory<> scratch = allocate(kMaxTiles * view.scratch);
  const Memory<float> y = allocate<float>(size_t(count) * view.rows);
  std::vector<double> seconds;
  nb::gil_scoped_release released;
  for (int i = 0; i < repeats; i++) {
    const auto start = std::chrono::steady_clock::now();
    for (size_t b = 0; b < blocks.size(); b++)
      k.multiply(view, blocks[b].blocks(), blocks[b].size(), 0, view.tiles, y.get() + b * most * view.rows, view.rows,
                 scratch.get());
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::nth_element(seconds.begin(), seconds.begin() + repeats / 2, seconds.end());
  return seconds[repeats / 2];
}

nb::tuple quantize(const Rows& x, int group) {
  if (group < 1 || group > kMaxGroup) throw nb::value_error("group must be 1 to 32768");
  const size_t count = x.shape(0), columns = x.shape(1), groups = (columns + group - 1) / group;
  Memory<int8_t> codes = allocate<int8_t>(count * columns);
  Memory<float> scale = allocate<float>(count * groups);
  Memory<int32_t> sum = allocate<int32_t>(count * groups);
  for (size_t t = 0; t < count; t++)
    for (size_t g = 0; g < groups; g++) {
      const size_t from = t * columns + g * group;
      scale[t * groups + g] = level().quantize(x.data() + from, int(std::min(size_t(group), columns - g * group)),
                                               codes.get() + from, &sum[t * groups + g]);
    }
  return nb::make_tuple(owned_array(std::move(codes), {count, columns}), owned_array(std::move(scale), {count, groups}),
                        owned_array(std::move(sum), {count, groups}));
}

using Factors = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Square = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

auto mix_rows(const Rows& x, std::optional<Factors> before, std::optional<Factors> after, int block,
              std::optional<Square> across) {
  const size_t rows = x.shape(0), columns = x.shape(1);
  if (block < 1 || block > kMostMixed || (block & (block - 1)) || columns % block)
    throw nb::value_error("block must be a power of two up to 512 that divides the columns");
  for (const auto& factors : {before, after})
    if (factors && factors->shape(0) != columns) throw nb::value_error("there must be one factor a column");
  if (across && (across->shape(0) != columns / block || across->shape(1) != columns / block))
    throw nb::value_error("across must have a row and a column for every block");
  Memory<float> y = allocate<float>(rows * columns);
  {
    nb::gil_scoped_release released;
    const float *first = before ? before->data() : nullptr, *last = after ? after->data() : nullptr;
    const Rotation rotation = {nullptr, across ? across->data() : nullptr, int(columns), block};
    for (size_t i = 0; i < rows; i++)
      mix(level(), x.data() + i * columns, first, last, rotation, y.get() + i * columns);
  }
  return owned_array(std::move(y), {rows, columns});
}

using Parent = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

nb::dict score(nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu> logits,
               nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> targets, std::optional<Parent> parent,
               int threads) {
  const size_t rows = logits.shape(0), columns = logits.shape(1);
  if (targets.shape(0) != rows || columns == 0) throw nb::value_error("there must be one target a row");
  for (size_t i = 0; i < rows; i++)
    if (targets.data()[i] < 0 || size_t(targets.data()[i]) >= columns) throw nb::value_error("a target lies outside the vocabulary");
  if (parent && (parent->shape(0) != rows || parent->shape(1) != columns)) throw nb::value_error("the parent has another shape");
  Memory<float> nll = allocate<float>(rows), confidence = allocate<float>(rows), entropy = allocate<float>(rows);
  Memory<float> power = allocate<float>(rows), divergence = allocate<float>(rows);
  Memory<int32_t> top1 = allocate<int32_t>(rows);
  {
    nb::gil_scoped_release released;
    score_rows(level(), logits.data(), int(rows), int(columns), targets.data(), parent ? parent->data() : nullptr,
               {nll.get(), confidence.get(), entropy.get(), power.get(), divergence.get(), top1.get()},
               threads > 0 ? threads : allowed_cores());
  }
  nb::dict out;
  out["nll"] = owned_array(std::move(nll), {rows}), out["confidence"] = owned_array(std::move(confidence), {rows});
  out["entropy"] = owned_array(std::move(entropy), {rows}), out["power"] = owned_array(std::move(power), {rows});
  out["top1"] = owned_array(std::move(top1), {rows});
  if (parent) out["kl"] = owned_array(std::move(divergence), {rows});
  else out["kl"] = nb::none();
  return out;
}

double follow(nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu> student,
              nb::ndarray<nb::ndim<2>, nb::c_contig, nb::device::cpu> parent, double ambiguity, double sharpness) {
  const nb::dlpack::dtype brief{uint8_t(nb::dlpack::dtype_code::Bfloat), 16, 1};
  if (student.dtype() != parent.dtype() || (student.dtype() != brief && student.dtype() != nb::dtype<float>()))
    throw nb::type_error("both must be float32 or bfloat16");
  if (student.shape(0) != parent.shape(0) || student.shape(1) != parent.shape(1) || student.size() == 0)
    throw nb::value_error("the parent has another shape, or there is nothing");
  const Following f{student.data(),       parent.data(), int(student.shape(0)), int(student.shape(1)),
                    student.dtype() == brief, ambiguity,     sharpness};
  nb::gil_scoped_release released;
  return follow_rows(level(), f);
}

std::pair<double, double> ceilings(size_t bytes, int threads) {
  nb::gil_scoped_release released;
  const Ceilings c = measure_ceilings(bytes, threads > 0 ? threads : allowed_cores());
  return {c.bytes_per_second, c.macs_per_second};
}

nb::dict cpu_info() {
  nb::list usable;
  for (const Kernels* k : levels()) usable.append(k->name);
  nb::dict refused, info;
  for (const auto& [name, reason] : refused_levels()) refused[name.c_str()] = reason;
  info["isa"] = level().name, info["levels"] = usable, info["refused"] = refused, info["cores"] = allowed_cores();
  return info;
}

}  // namespace

NB_MODULE(_core, module) {
  module.def("cpu_info", &cpu_info);
  module.def("isa", [] { return level().name; });
  module.def("set_isa", &set_level, nb::arg("name"));
  module.def("score", &score, nb::arg("logits").noconvert(), nb::arg("targets").noconvert(),
             nb::arg("parent").noconvert().none() = nb::none(), nb::arg("threads") = 0);
  module.def("follow", &follow, nb::arg("student").noconvert(), nb::arg("parent").noconvert(), nb::arg("ambiguity"),
             nb::arg("sharpness"));
  module.def("ceilings", &ceilings, nb::arg("bytes"), nb::arg("threads") = 0);
  module.def("mix", &mix_rows, nb::arg("x").noconvert(), nb::arg("before").noconvert().none(),
             nb::arg("after").noconvert().none(), nb::arg("block"), nb::arg("across").noconvert().none());
  module.def("quantize", &quantize, nb::arg("x").noconvert(), nb::arg("group"));
  nb::class_<PyMatrix>(module, "Matrix")
      .def(nb::init<nb::sequence, int, int, nb::object>(), nb::arg("terms"), nb::arg("rows"), nb::arg("cols"),
           nb::arg("bias").none() = nb::none())
      .def("matmul", &matmul, nb::arg("x").noconvert(), nb::arg("threads") = 0)
      .def("kernel_seconds", &kernel_seconds, nb::arg("x").noconvert(), nb::arg("repeats"))
      .def("reference", &reference, nb::arg("x").noconvert())
      .def_prop_ro("shape", [](const PyMatrix& m) { return std::make_pair(m.get().view().rows, m.get().view().columns); })
      .def_prop_ro("nbytes", [](const PyMatrix& m) { return m.get().bytes(); });
  bind_engine(module);
  bind_trellis(module);
}

}  // namespace bitwright
