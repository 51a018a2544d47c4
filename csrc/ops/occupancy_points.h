// occupancy_points: what the CPU and the CUDA op check, allocate and fill in alike.
#pragma once

#include "core/occupancy_points_params.h"
#include "ops/rays.h"

namespace hashgrid {

// Cells that do not exist are the kernels' business.
inline OccupancyPointsParams make_occupancy_points_params(const Tensor& cells, const Tensor& aabb,
                                                          const std::vector<int64_t>& resolution, int64_t n_cascades,
                                                          const std::optional<Tensor>& counter) {
  STD_TORCH_CHECK(cells.dim() == 1, "`cells` must have shape [M], got ", shape_of(cells));
  check_dtype(cells, "cells", ScalarType::Long);
  check_shape(aabb, "aabb", {6});
  OccupancyPointsParams p = {};
  p.dtype = real_dtype_of(aabb, "aabb");
  check_contiguous(cells, "cells");
  check_contiguous(aabb, "aabb");
  p.n_points = cells.size(0);
  p.n_cells = check_grid(resolution, n_cascades, p.resolution);
  p.counter = counter_data(counter);
  p.cells = static_cast<const int64_t*>(cells.const_data_ptr());
  p.aabb = aabb.const_data_ptr();
  return p;
}

}  // namespace hashgrid
