// occupancy_points: checks, allocation and launch.
#include <limits>

#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "ops/checks.h"
#include "ops/rays.h"

namespace hashgrid {
namespace {

Tensor occupancy_points_cpu(const Tensor& cells, const Tensor& aabb, const std::vector<int64_t>& resolution,
                            int64_t n_cascades, std::optional<int64_t> seed, int64_t step) {
  STD_TORCH_CHECK(cells.dim() == 1, "`cells` must have shape [M], got ", shape_of(cells));
  check_dtype(cells, "cells", ScalarType::Long);
  check_shape(aabb, "aabb", {6});
  OccupancyPointsParams p = {};
  p.dtype = real_dtype_of(aabb, "aabb");
  check_contiguous(cells, "cells");
  check_contiguous(aabb, "aabb");
  p.n_cells = check_grid(resolution, n_cascades, p.resolution);
  p.jitter = seed.has_value();
  p.seed = static_cast<uint64_t>(seed.value_or(0));
  p.step = static_cast<uint32_t>(step);
  p.cells = static_cast<const int64_t*>(cells.const_data_ptr());
  p.aabb = aabb.const_data_ptr();
  Tensor points = empty_like_dtype(aabb, {cells.size(0), 3});
  p.points = points.mutable_data_ptr();
  constexpr int64_t kNone = std::numeric_limits<int64_t>::min();
  int64_t invalid_cell = kNone;
  p.invalid_cell = &invalid_cell;
  parallel_units(cells.size(0), 8192, [&](int64_t begin, int64_t end) { kernels().occupancy_points(p, begin, end); });
  STD_TORCH_CHECK(invalid_cell == kNone, "`cells` must lie in 0..", p.n_cells - 1, ", got ", invalid_cell);
  return points;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) { m.impl("occupancy_points", TORCH_BOX(&occupancy_points_cpu)); }

}  // namespace hashgrid
