// `_core.Engine`: a plan of Python objects becomes a plan of views, and the Python objects stay alive beside it.
#include <nanobind/stl/function.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bind.h"
#include "dispatch.h"
#include "engine/arena.h"
#include "engine/engine.h"

namespace bitwright {
namespace {

using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;

// Reads the plan of bitwright/runtime/plan.py.
class PlanReader {
 public:
  explicit PlanReader(nb::handle source) : source_(source), in_place_(nb::cast<bool>(source.attr("in_place"))) {
    Plan& p = plan;
    p.hidden = integer("hidden"), p.heads = integer("heads"), p.kv_heads = integer("kv_heads");
    p.head_dim = integer("head_dim"), p.ffn = integer("ffn");
    p.vocabulary = integer("vocabulary"), p.positions = integer("positions");
    p.eps = real("eps"), p.embedding_scale = real("embedding_scale"), p.attention_scale = real("attention_scale");
    p.attention_cap = real("attention_cap"), p.logit_cap = real("logit_cap");
    p.gelu = nb::cast<bool>(source.attr("gelu")), p.fine_cache = nb::cast<bool>(source.attr("fine_cache"));
    require(p.head_dim > 0 && p.head_dim <= 1024 && p.kv_heads > 0 && p.heads % p.kv_heads == 0, "heads do not fit each other");
    for (nb::handle f : source.attr("frequencies")) {
      const Floats a = nb::cast<Floats>(f, false);
      p.frequencies.emplace_back(a.data(), a.data() + a.size());
      require(a.size() * 2 <= size_t(p.head_dim), "more rotary frequencies than half the dims of a head");
    }
    for (nb::handle s : source.attr("rope_scales")) p.rope_scale.push_back(nb::cast<float>(s));
    for (nb::handle layer : source.attr("layers")) p.layers.push_back(layer_of(layer));
    p.last = norm(source.attr("norm"), p.hidden);
    p.head = linear(source.attr("head"), p.vocabulary, p.hidden);
    const nb::object table = source.attr("embedding");
    if (const PyMatrix* packed = matrix_of(table)) {
      const MatrixView& m = packed->get().view();
      for (int i = 0; i < m.terms; i++) {
        const Runs& runs = m.runs[m.term[i].runs];
        require(!m.term[i].values && !runs.inputs && !runs.picked, "a packed embedding must have plain dense terms only");
      }
      require(m.rows == p.vocabulary && m.columns == p.hidden, "the embedding has the wrong shape");
      PyMatrix* head = nullptr;
      const bool tied = nb::try_cast(source.attr("head"), head) && head == packed;
      p.packed_embedding = tied ? p.head.packed : &m;  // a few rows a token: where the head is, or where it lies
    } else {
      p.embedding = floats(table, size_t(p.vocabulary) * p.hidden, "the embedding has the wrong shape");
    }
    for (nb::handle file : source_.attr("files")) {
      const auto a = nb::cast<nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>>(file, false);
      owners.push_back(nb::cast(a));
      if (!in_place_) arena.give_back(a.data(), a.size());
    }
    plan.arena = &arena;
  }

  // Once weights are copied: lets go of what they were copied from, where nobody else has the matrix.
  void settle() {
    if (settled_ || !arena.full()) return;
    settled_ = true;
    PyMatrix* m = nullptr;
    for (nb::object& owner : owners)
      if (Py_REFCNT(owner.ptr()) == 1 && nb::try_cast(owner, m)) m->release(arena);
    trim();  // else what made these weights stays with the process
  }

  Plan plan;
  Owned owners;
  std::vector<Memory<float>> memory;
  Arena arena;

 private:
  static void require(bool ok, const char* message) {
    if (!ok) throw nb::value_error(message);
  }
  int integer(const char* name) const { return nb::cast<int>(source_.attr(name)); }
  float real(const char* name) const { return nb::cast<float>(source_.attr(name)); }

  const PyMatrix* matrix_of(nb::handle object) {
    PyMatrix* m = nullptr;
    if (!nb::try_cast(object, m) || !m) return nullptr;
    owners.push_back(nb::borrow(object));
    return m;
  }
  const float* floats(nb::handle object, size_t size, const char* message) {
    const Floats a = nb::cast<Floats>(object, false);
    require(a.size() == size, message);
    owners.push_back(nb::cast(a));
    return a.data();
  }
  Norm norm(nb::handle object, int size) {
    if (object.is_none()) return {};
    return {floats(object, size_t(size), "a norm has the wrong size")};
  }

  // A packed matrix, or a pair of float32 weight [rows, columns] and bias or None.
  Linear linear(nb::handle object, int rows, int columns) {
    Linear l;
    l.rows = rows, l.columns = columns;
    if (const PyMatrix* packed = matrix_of(object)) {
      l.packed = in_place_ ? &packed->get().view() : arena.take(packed->get().view());
      require(l.packed->rows == rows && l.packed->columns == columns, "a weight has the wrong shape");
      return l;
    }
    const nb::tuple pair = nb::cast<nb::tuple>(object);
    const Floats w = nb::cast<Floats>(pair[0], false);
    require(w.size() == size_t(rows) * columns, "a float weight has the wrong shape");
    float* tiles = memory.emplace_back(allocate_zeros<float>(size_t(l.tile_count()) * kLanes * columns)).get();
    for (int n = 0; n < rows; n++)
      for (int k = 0; k < columns; k++)
        tiles[(size_t(n / kLanes) * columns + k) * kLanes + n % kLanes] = w.data()[size_t(n) * columns + k];
    l.tiles = tiles;
    if (!pair[1].is_none()) {
      const Floats b = nb::cast<Floats>(pair[1], false);
      require(b.size() == size_t(rows), "a bias has the wrong size");
      float* bias = memory.emplace_back(allocate_zeros<float>(size_t(l.tile_count()) * kLanes)).get();
      std::copy_n(b.data(), rows, bias);
      l.bias = bias;
    }
    return l;
  }

  Layer layer_of(nb::handle s) {
    const Plan& p = plan;
    const int inner = p.heads * p.head_dim, kv = p.kv_heads * p.head_dim;
    Layer l;
    l.q = linear(s.attr("q"), inner, p.hidden), l.k = linear(s.attr("k"), kv, p.hidden);
    l.v = linear(s.attr("v"), kv, p.hidden), l.o = linear(s.attr("o"), p.hidden, inner);
    l.gate = linear(s.attr("gate"), p.ffn, p.hidden), l.up = linear(s.attr("up"), p.ffn, p.hidden);
    l.down = linear(s.attr("down"), p.hidden, p.ffn);
    l.before_attention = norm(s.attr("before_attention"), p.hidden);
    l.after_attention = norm(s.attr("after_attention"), p.hidden);
    l.before_ffn = norm(s.attr("before_ffn"), p.hidden), l.after_ffn = norm(s.attr("after_ffn"), p.hidden);
    l.q_norm = norm(s.attr("q_norm"), p.head_dim), l.k_norm = norm(s.attr("k_norm"), p.head_dim);
    l.window = nb::cast<int>(s.attr("window")), l.rope = nb::cast<int>(s.attr("rope"));
    require(l.rope >= 0 && l.rope < int(p.frequencies.size()) && p.rope_scale.size() == p.frequencies.size(),
            "a layer names rotary frequencies that there are not");
    return l;
  }

  nb::handle source_;
  bool settled_ = false;
  bool in_place_;  // packed weights stay where they are, so that they are in memory once and may change one by one
};

class PyEngine {
 public:
  PyEngine(const PyEngine&) = delete;
  PyEngine(nb::handle plan, int threads) : reader_(plan), engine_(reader_.plan, threads) {}

  auto forward(const std::vector<int>& tokens, bool all, int sequence) {
    check(tokens);
    const size_t rows = all ? tokens.size() : 1, columns = size_t(engine_.plan().vocabulary);
    Memory<float> logits = allocate<float>(rows * columns);
    {
      nb::gil_scoped_release released;
      engine_.forward(sequence, tokens.data(), int(tokens.size()), all, logits.get());
    }
    reader_.settle();
    return owned_array(std::move(logits), {rows, columns});
  }

  auto step(const std::vector<int>& sequences, const std::vector<int>& tokens) {
    check(tokens);
    if (tokens.size() != sequences.size()) throw nb::value_error("there must be one token a sequence");
    const size_t rows = tokens.size(), columns = size_t(engine_.plan().vocabulary);
    Memory<float> logits = allocate<float>(rows * columns);
    {
      nb::gil_scoped_release released;
      engine_.step(sequences, tokens.data(), logits.get());
    }
    reader_.settle();
    return owned_array(std::move(logits), {rows, columns});
  }

  void generate(const std::vector<int>& prompt, int limit, nb::callable emit, float temperature, int top_k, float top_p,
                float min_p, float repetition_penalty, uint64_t seed, const std::vector<int>& stops, int chunk,
                const std::vector<int>& before) {
    check(prompt);
    const Sampling sampling{temperature, top_k, top_p, min_p, repetition_penalty, seed};
    nb::gil_scoped_release released;
    engine_.generate(before, prompt, limit, sampling, stops, std::max(chunk, 1), [&](const std::vector<int>& tokens) {
      nb::gil_scoped_acquire held;
      if (PyErr_CheckSignals() != 0) throw nb::python_error();
      reader_.settle();
      return nb::cast<bool>(emit(nb::cast(tokens)));
    });
  }

  Engine& engine() { return engine_; }

 private:
  static void check(const std::vector<int>& tokens) {
    if (tokens.empty()) throw nb::value_error("there must be at least one token");
  }

  struct Trim {
    ~Trim() { trim(); }
  } last_;  // after all the others are gone
  PlanReader reader_;
  Engine engine_;
};

int next_token(Sampler& sampler, nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu> logits,
               const std::vector<int>& seen) {
  for (int token : seen)
    if (token < 0 || size_t(token) >= logits.size()) throw nb::value_error("a token lies outside the vocabulary");
  if (logits.size() == 0) throw nb::value_error("there are no logits");
  return sampler.next(logits.data(), int(logits.size()), seen);
}

}  // namespace

void bind_engine(nb::module_& module) {
  nb::class_<Sampler>(module, "Sampler")
      .def("__init__",
           [](Sampler* at, float temperature, int top_k, float top_p, float min_p, float repetition_penalty, uint64_t seed) {
             new (at) Sampler(Sampling{temperature, top_k, top_p, min_p, repetition_penalty, seed});
           },
           nb::arg("temperature") = 0.0f, nb::arg("top_k") = 0, nb::arg("top_p") = 1.0f, nb::arg("min_p") = 0.0f,
           nb::arg("repetition_penalty") = 1.0f, nb::arg("seed") = 0)
      .def("next", &next_token, nb::arg("logits").noconvert(), nb::arg("seen"));
  nb::class_<PyEngine>(module, "Engine")
      .def(nb::init<nb::handle, int>(), nb::arg("plan"), nb::arg("threads") = 0)
      .def("forward", &PyEngine::forward, nb::arg("tokens"), nb::arg("all") = false, nb::arg("sequence") = 0)
      .def("step", &PyEngine::step, nb::arg("sequences"), nb::arg("tokens"))
      .def("open", [](PyEngine& e) { return e.engine().open(); })
      .def("close", [](PyEngine& e, int sequence) { e.engine().close(sequence); }, nb::arg("sequence"))
      .def("generate", &PyEngine::generate, nb::arg("prompt"), nb::arg("limit"), nb::arg("emit"), nb::arg("temperature") = 0.0f,
           nb::arg("top_k") = 0, nb::arg("top_p") = 1.0f, nb::arg("min_p") = 0.0f, nb::arg("repetition_penalty") = 1.0f,
           nb::arg("seed") = 0, nb::arg("stops") = std::vector<int>(), nb::arg("chunk") = 16,
           nb::arg("before") = std::vector<int>())
      .def("truncate", [](PyEngine& e, int position, int sequence) { e.engine().truncate(position, sequence); },
           nb::arg("position"), nb::arg("sequence") = 0)
      .def_prop_ro("position", [](PyEngine& e) { return e.engine().position(); })
      .def_prop_ro("cache_bytes", [](PyEngine& e) { return e.engine().cache_bytes(); });
}

}  // namespace bitwright
