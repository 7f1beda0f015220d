// Which units of a term the activation groups of a matrix take.
#include "matrix.h"

namespace bitwright {

int Matrix::runs_of(int unit, const float* inputs, Order order) {
  const MatrixView& m = view_;
  std::vector<Run>& runs = kinds_.emplace_back(m.groups + 1);
  for (int g = 0; g < m.groups; g++) {
    const int from = g * m.group, to = std::min(from + m.group, m.columns);
    runs[g].first = from / unit, runs[g].count = parts(to, unit) - runs[g].first;
    runs[g + 1].start = runs[g].start + runs[g].count;
  }
  return add_runs({unit, order, inputs, nullptr, 0, runs.data()});
}

int Matrix::runs_of_picked(const Array& picked) {
  constexpr int unit = 32;
  const MatrixView& m = view_;
  const int32_t* columns = reinterpret_cast<const int32_t*>(picked.data);
  const size_t count = picked.bytes / sizeof(int32_t);
  require(count > 0, "picked names no column");
  std::vector<Run>& runs = kinds_.emplace_back(m.groups + 1);
  std::vector<int> places;
  size_t k = 0;
  for (int g = 0; g < m.groups; g++) {
    runs[g].first = runs[g].start = int(places.size()) / unit;
    for (const int to = std::min((g + 1) * m.group, m.columns); k < count && columns[k] < to; k++) {
      require(columns[k] > (k ? columns[k - 1] : -1), "picked must name columns in their order");
      places.push_back(columns[k]);
    }
    places.resize(size_t(parts(int(places.size()), unit)) * unit, m.columns);
    runs[g].count = int(places.size()) / unit - runs[g].first;
  }
  require(k == count, "picked names a column outside the matrix");
  runs[m.groups].start = int(places.size()) / unit;
  int* held = own<int>(places.size());
  std::copy(places.begin(), places.end(), held);
  bytes_ += places.size() * sizeof(int);
  return add_runs({unit, Order::quads, nullptr, held, int(places.size()), runs.data()});
}

// The last of `kinds_` is what they view.
int Matrix::add_runs(const Runs& wanted) {
  MatrixView& m = view_;
  for (int i = 0; i < m.run_kinds; i++)
    if (same_order(m.runs[i], wanted)) {
      kinds_.pop_back();
      return i;
    }
  m.runs[m.run_kinds] = wanted;
  return m.run_kinds++;
}

}  // namespace bitwright
