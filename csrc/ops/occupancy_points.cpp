// occupancy_points: checks, allocation and launch.
#include <limits>

#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "ops/occupancy_points.h"

namespace hashgrid {
namespace {

Tensor occupancy_points_cpu(const Tensor& cells, const Tensor& aabb, const std::vector<int64_t>& resolution,
                            int64_t n_cascades, const std::optional<Tensor>& counter) {
  OccupancyPointsParams p = make_occupancy_points_params(cells, aabb, resolution, n_cascades, counter);
  Tensor points = empty_like_dtype(aabb, {p.n_points, 3});
  p.points = points.mutable_data_ptr();
  constexpr int64_t kNone = std::numeric_limits<int64_t>::min();
  int64_t invalid_cell = kNone;
  p.invalid_cell = &invalid_cell;
  parallel_units(p.n_points, 8192, [&](int64_t begin, int64_t end) { kernels().occupancy_points(p, begin, end); });
  STD_TORCH_CHECK(invalid_cell == kNone, "`cells` must lie in 0..", p.n_cells - 1, ", got ", invalid_cell);
  return points;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) { m.impl("occupancy_points", TORCH_BOX(&occupancy_points_cpu)); }

}  // namespace hashgrid
