// occupancy_points on CUDA: checks, allocation and launch.
//
// Whether a cell does not exist is read back once the points are computed. Cell 0 does exist: it stands for "none".
#include "ops/occupancy_points.h"
#include "ops/cuda/device.h"

namespace hashgrid {
namespace {

Tensor occupancy_points_cuda(const Tensor& cells, const Tensor& aabb, const std::vector<int64_t>& resolution,
                             int64_t n_cascades, const std::optional<Tensor>& counter) {
  const DeviceScope device(aabb);
  device.check(cells, "cells");
  device.check(counter, "counter");
  OccupancyPointsParams p = make_occupancy_points_params(cells, aabb, resolution, n_cascades, counter);
  Tensor points = empty_like_dtype(aabb, {p.n_points, 3});
  p.points = points.mutable_data_ptr();
  Tensor invalid = torch::stable::new_zeros(cells, {1});
  p.invalid_cell = static_cast<int64_t*>(invalid.mutable_data_ptr());
  launch_occupancy_points(p, device.stream());
  int64_t invalid_cell = 0;
  device.read_back(&invalid_cell, p.invalid_cell, sizeof(invalid_cell));
  STD_TORCH_CHECK(invalid_cell == 0, "`cells` must lie in 0..", p.n_cells - 1, ", got ", invalid_cell);
  return points;
}

}  // namespace

HASHGRID_CUDA_LIBRARY(m) { m.impl("occupancy_points", TORCH_BOX(&occupancy_points_cuda)); }

}  // namespace hashgrid
