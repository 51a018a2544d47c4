// visible_cells: indices of an occupancy grid's cells that are to be evaluated. Counted per unit, then written.
#include "ops/rays.h"

namespace hashgrid {
namespace {

constexpr int64_t kGrain = 1 << 15;  // cells per unit

struct VisibleCellsParams {
  const float* density;  // [n_cells]; negative where no camera sees the cell
  const bool* chosen;    // [n_cells], or nullptr for all
  int64_t n_cells;
};

// Calls f with each cell of a unit and whether it is visible.
template <typename F>
void for_each_cell(const VisibleCellsParams& p, int64_t unit, const F& f) {
  const int64_t begin = unit * kGrain, end = begin + kGrain < p.n_cells ? begin + kGrain : p.n_cells;
  if (p.chosen == nullptr) {
    for (int64_t i = begin; i < end; ++i) f(i, p.density[i] >= 0.0f);
  } else {
    for (int64_t i = begin; i < end; ++i) f(i, (p.density[i] >= 0.0f) & p.chosen[i]);
  }
}

Tensor visible_cells_cpu(const Tensor& density, const std::optional<Tensor>& chosen) {
  VisibleCellsParams p = {};
  STD_TORCH_CHECK(density.dim() == 1, "`density` must have shape [n_cells], got ", shape_of(density));
  p.n_cells = density.size(0);
  p.density = static_cast<const float*>(checked_data(density, "density", {p.n_cells}, ScalarType::Float));
  if (chosen.has_value()) {
    p.chosen = static_cast<const bool*>(checked_data(*chosen, "chosen", {p.n_cells}, ScalarType::Bool));
  }
  const int64_t n_units = (p.n_cells + kGrain - 1) / kGrain;
  std::vector<int64_t> first(static_cast<size_t>(n_units) + 1, 0);  // where a unit's cells begin in the result
  parallel_units(n_units, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      int64_t n = 0;
      for_each_cell(p, unit, [&n](int64_t, bool visible) { n += visible; });
      first[static_cast<size_t>(unit) + 1] = n;
    }
  });
  for (int64_t unit = 0; unit < n_units; ++unit)
    first[static_cast<size_t>(unit) + 1] += first[static_cast<size_t>(unit)];
  Tensor cells = empty_like_dtype(density, {first.back()}, ScalarType::Long);
  int64_t* const out = static_cast<int64_t*>(cells.mutable_data_ptr());
  parallel_units(n_units, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      int64_t* next = out + first[static_cast<size_t>(unit)];
      for_each_cell(p, unit, [&next](int64_t i, bool visible) {
        if (visible) *next++ = i;
      });
    }
  });
  return cells;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) { m.impl("visible_cells", TORCH_BOX(&visible_cells_cpu)); }

}  // namespace hashgrid
