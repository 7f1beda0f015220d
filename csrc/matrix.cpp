#include "matrix.h"

#include <algorithm>
#include <climits>
#include <cstring>
#include <stdexcept>

#include "codes.h"
#include "rotation.h"

namespace bitwright {
namespace {

std::string shape_text(const std::vector<size_t>& shape) {
  std::string text = "[";
  for (size_t n : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(n);
  return text + "]";
}

void require_shape(const Array& a, const char* name, const std::vector<size_t>& shape) {
  require(bool(a), std::string(name) + " is missing");
  require(a.shape == shape, std::string(name) + " has shape " + shape_text(a.shape) + ", expected " + shape_text(shape));
}

}  // namespace

Matrix::Matrix(const std::vector<TermSource>& terms, int rows, int columns, const float* bias) {
  require(rows > 0 && columns > 0, "a matrix needs at least one row and one column");
  require(!terms.empty() && terms.size() <= kMaxTerms, "a matrix needs 1 to " + std::to_string(kMaxTerms) + " terms");
  MatrixView& m = view_;
  m.rows = rows, m.columns = columns, m.tiles = parts(rows, kLanes);
  m.group = std::min(terms[0].activation_group, columns);
  require(m.group > 0 && m.group <= kMaxGroup, "activation_group must be 1 to " + std::to_string(kMaxGroup));
  m.groups = parts(columns, m.group);
  const int most = std::max(1, kStretch / m.group);
  m.stretch = parts(m.groups, parts(m.groups, most));  // all of about one length
  for (const TermSource& source : terms) {
    require(std::min(source.activation_group, columns) == m.group, "all terms of a matrix must have one activation_group");
    require(source.rotated == terms[0].rotated, "all terms of a matrix must be rotated, or none");
    Term& term = m.term[m.terms];
    source.where.empty() ? add_dense(source, term) : add_sparse(source, term);
    m.terms++;
  }
  if (terms[0].rotated) rotate_inputs();
  place_scratch();
  if (bias) {
    float* copy = own<float>(size_t(m.tiles) * kLanes);
    std::copy(bias, bias + rows, copy);
    m.bias = copy;
  }
}

void Matrix::add_dense(const TermSource& source, Term& t) {
  const MatrixView& m = view_;
  if (source.trellis) {
    add_words(source, t);
  } else {
    add_codes(source, t);
  }
  const bool whole = source.group == 0 || source.group >= m.columns;
  require(source.group >= 0 && (whole || source.group % m.group == 0), "group must be a multiple of activation_group");
  add_scales(source, t, whole ? 1 : parts(m.columns, source.group));
}

void Matrix::add_codes(const TermSource& source, Term& t) {
  const MatrixView& m = view_;
  require(source.base3 || (source.bits >= 1 && source.bits <= 8), "width must be 1 to 8 or \"base3\"");
  require(!source.table || (source.bits == 4 && !source.base3), "a table needs 4-bit codes");
  t.kind = source.base3 ? Kind::base3 : source.table ? Kind::codebook : Kind::fields;
  t.bits = source.base3 ? 2 : source.bits;
  const int vectors = source.base3 ? 1 : source.bits, unit = source.base3 ? 20 : 32;
  if (source.picked) {
    require(!source.base3 && !source.inputs, "picked columns need codes of 1 to 8 bits and no inputs");
    t.runs = runs_of_picked(source.picked), t.units = m.runs[t.runs].of[m.groups].start;
  } else {
    t.runs = runs_of(unit, inputs_of(source.inputs)), t.units = parts(m.columns, unit);
  }
  t.unit_bytes = vectors * kVector;
  require_shape(source.codes, "codes", {size_t(m.tiles), size_t(t.units) * vectors, kVector});
  t.codes = hold(source.codes);
  if (!source.table) return;
  require_shape(source.table, "table", {16});
  t.table = hold(source.table);
}

void Matrix::add_words(const TermSource& source, Term& t) {
  const MatrixView& m = view_;
  const int n = source.per_word;
  require(has_kernel(n), "per_word must be 12, 16, 20, 24, 28, 32, 40, 48, 56 or 64");
  t.kind = Kind::trellis, t.bits = 8, t.per_word = n;
  t.runs = runs_of(n, inputs_of(source.inputs), Order::words);
  t.units = parts(m.columns, n), t.unit_bytes = kLanes * kWordBytes;
  require_shape(source.codes, "codes", {size_t(m.tiles), size_t(t.units), size_t(t.unit_bytes)});
  require_shape(source.table, "table", {kStates});
  for (int i = 0; i < kStates / 2; i++)
    require(source.table.data[i] + source.table.data[i + kStates / 2] == 256,
            "the second half of a table must be the first, negated");
  t.codes = hold(source.codes), t.table = hold(source.table);
}

void Matrix::add_scales(const TermSource& source, Term& t, int groups) {
  const MatrixView& m = view_;
  const std::vector<size_t> shape = {size_t(m.tiles), size_t(groups), kLanes};
  require_shape(source.scales, "scales", shape);
  t.scales = reinterpret_cast<const uint16_t*>(hold(source.scales));
  if (source.mins) {
    require_shape(source.mins, "mins", shape);
    t.mins = reinterpret_cast<const uint16_t*>(hold(source.mins));
  }
  t.offset = source.offset, t.groups = groups;
  const int ratio = groups == 1 ? INT_MAX : source.group / m.group;
  std::vector<int>& table = tables_.emplace_back(m.groups);
  for (int g = 0; g < m.groups; g++) table[g] = g / ratio;
  t.weight_group = table.data();
}

void Matrix::add_sparse(const TermSource& source, Term& t) {
  const MatrixView& m = view_;
  t.bits = source.bits;
  require(t.bits == 4 || t.bits == 8, "sparse values must have 4 or 8 bits");
  if (source.where == "nm") {
    require(source.block == 64 || source.block == 128, "block must be 64 or 128");
    require(t.bits == 8, "values of \"nm\" must have 8 bits");
    t.kind = Kind::nm, t.runs = runs_of(source.block, nullptr, Order::gathered);
    t.units = parts(m.columns, source.block), t.unit_bytes = kVector;
    const std::vector<size_t> shape = {size_t(m.tiles), size_t(t.units), kVector};
    require_shape(source.codes, "index", shape);
    require_shape(source.values, "values", shape);
    t.codes = hold(source.codes), t.values = hold(source.values);
  } else {
    require(source.where == "bitmap" || source.where == "offsets", "where must be bitmap, offsets or nm");
    t.kind = Kind::bitmap, t.runs = runs_of(32, nullptr);
    t.units = parts(m.columns, 32), t.unit_bytes = kVector;
    source.where == "bitmap" ? add_bitmap(source, t) : bitmap_of_offsets(source, t);
  }
  add_scales(source, t, 1);
}

void Matrix::add_bitmap(const TermSource& source, Term& t) {
  const MatrixView& m = view_;
  const size_t tile_bytes = size_t(t.units) * kVector;
  require_shape(source.codes, "index", {size_t(m.tiles), size_t(t.units), kVector});
  require_shape(source.starts, "starts", {size_t(m.tiles) + 1});
  require(bool(source.values), "values is missing");
  t.codes = hold(source.codes), t.starts = reinterpret_cast<const int32_t*>(hold(source.starts));
  require(t.starts[0] == 0, "starts must begin with 0");
  for (int tile = 0; tile < m.tiles; tile++) {
    int64_t count = 0;
    for (size_t i = 0; i < tile_bytes; i += 8) {
      uint64_t word;
      std::memcpy(&word, t.codes + tile * tile_bytes + i, 8);
      count += __builtin_popcountll(word);
    }
    require(t.starts[tile + 1] - int64_t(t.starts[tile]) == count, "starts does not agree with the bits of the index");
  }
  require(source.values.bytes >= (size_t(t.starts[m.tiles]) * t.bits + 7) / 8, "values is shorter than starts says");
  t.values = hold(source.values);
  if (t.bits == 8) keep_tail(t, source.values.bytes);
}

// The widest read takes 64 bytes from the first value it needs; tiles that would read past the end get a padded copy.
void Matrix::keep_tail(Term& t, size_t value_bytes) {
  int tile = view_.tiles;
  while (tile > 0 && size_t(t.starts[tile]) + kVector > value_bytes) tile--;
  t.tail_tile = tile, t.tail_start = t.starts[tile];
  uint8_t* copy = own<uint8_t>(value_bytes - t.tail_start + 2 * kVector);
  std::memcpy(copy, t.values + t.tail_start, value_bytes - t.tail_start);
  t.tail = copy;
}

// Row-major offsets inside 256-column tiles become the bitmap that the kernels walk.
void Matrix::bitmap_of_offsets(const TermSource& source, Term& t) {
  const MatrixView& m = view_;
  const int wide = parts(m.columns, 256);
  require_shape(source.counts, "counts", {size_t(m.rows), size_t(wide)});
  require(source.codes && source.values, "index or values is missing");
  size_t total = 0;
  for (int i = 0; i < m.rows * wide; i++) total += source.counts.data[i];
  require(source.codes.bytes >= total, "index is shorter than counts says");
  require(source.values.bytes >= (total * t.bits + 7) / 8, "values is shorter than counts says");
  require(total <= INT_MAX, "too many values in one matrix");
  const auto value = [&](size_t i) {
    return t.bits == 8 ? source.values.data[i] : uint8_t(source.values.data[i / 2] >> 4 * (i & 1) & 15);
  };

  uint8_t* index = own<uint8_t>(size_t(m.tiles) * t.units * kVector);
  uint8_t* values = own<uint8_t>((total * t.bits + 7) / 8 + 1);
  int32_t* starts = own<int32_t>(size_t(m.tiles) + 1);
  std::vector<uint8_t> tile_values(size_t(t.units) * 32 * kLanes);  // [quad][lane][column]
  size_t read = 0, written = 0;
  for (int tile = 0; tile < m.tiles; tile++) {
    uint8_t* bitmap = index + size_t(tile) * t.units * kVector;
    for (int row = tile * kLanes; row < std::min(m.rows, (tile + 1) * kLanes); row++)
      for (int i = 0; i < wide; i++)
        for (int n = source.counts.data[row * wide + i]; n; n--, read++) {
          const int column = i * 256 + source.codes.data[read], byte = row % kLanes * 4 + column % 4;
          require(column < m.columns, "an offset of the index lies outside the matrix");
          bitmap[column / 32 * kVector + byte] |= uint8_t(1 << column % 32 / 4);
          tile_values[size_t(column / 4) * kVector + byte] = value(read);
        }
    for (int quad = 0; quad < t.units * 8; quad++)
      for (int byte = 0; byte < kVector; byte++) {
        if (!(bitmap[quad / 8 * kVector + byte] >> quad % 8 & 1)) continue;
        const uint8_t v = tile_values[size_t(quad) * kVector + byte];
        if (t.bits == 8) values[written] = v;
        else values[written / 2] |= uint8_t(v << 4 * (written & 1));
        written++;
      }
    starts[tile + 1] = int32_t(written);
  }
  require(written == total, "the index names a column twice");
  t.codes = index, t.values = values, t.starts = starts;
  bytes_ += total * t.bits / 8 + size_t(m.tiles) * t.units * kVector;
  if (t.bits == 8) keep_tail(t, total);
}

const float* Matrix::inputs_of(const Array& a) {
  if (!a) return nullptr;
  for (const auto& [given, converted] : inputs_)
    if (given == a.data) return converted;
  require_shape(a, "inputs", {size_t(view_.columns)});
  float* scales = own<float>(view_.columns);
  for (int k = 0; k < view_.columns; k++) {
    uint16_t half;
    std::memcpy(&half, a.data + 2 * k, 2);
    scales[k] = from_half(half);
  }
  bytes_ += a.bytes;
  inputs_.emplace_back(a.data, scales);
  return scales;
}

void Matrix::rotate_inputs() {
  const auto hold_all = [&](const std::vector<float>& numbers) {
    float* held = own<float>(numbers.size());
    std::copy(numbers.begin(), numbers.end(), held);
    return held;
  };
  const std::vector<float> across = rotation_across(view_.columns);
  view_.rotation = {hold_all(rotation_factors(view_.columns)), across.empty() ? nullptr : hold_all(across), view_.columns,
                    mixed_columns(view_.columns)};
}

// Terms use it one after the other.
void Matrix::place_scratch() {
  MatrixView& m = view_;
  for (int i = 0; i < m.terms; i++) {
    Term& t = m.term[i];
    if (t.kind == Kind::nm) continue;  // read in place
    const Runs& runs = m.runs[t.runs];
    int units = 0;
    for (int g = 0; g < m.groups; g += m.stretch)
      units = std::max(units, runs.of[std::min(g + m.stretch, m.groups)].start - runs.of[g].start);
    t.plane = size_t(units) * runs.unit * kLanes;
    t.nibbles = t.plane * (t.values ? 2 : 1);
    size_t most = 0;
    if (t.kind == Kind::bitmap && t.bits == 4)
      for (int tile = 0; tile < m.tiles; tile++) most = std::max(most, size_t(t.starts[tile + 1] - t.starts[tile]) + 2 * kVector);
    m.scratch = std::max(m.scratch, t.nibbles + most);  // 64 bytes behind the last value may be read
  }
  m.scratch = size_t(parts(int(m.scratch), kVector)) * kVector;
}

// Views aligned memory, copies the rest.
const uint8_t* Matrix::hold(const Array& a) {
  bytes_ += a.bytes;
  if (a.data && reinterpret_cast<uintptr_t>(a.data) % kVector == 0) return a.data;
  uint8_t* copy = own<uint8_t>(a.bytes + 1);  // never null: null values mean a dense term
  if (a.bytes) std::memcpy(copy, a.data, a.bytes);
  return copy;
}

}  // namespace bitwright
