// occupancy_visible: what the CPU and the CUDA op check, allocate and fill in alike.
#pragma once

#include "core/occupancy_visible_params.h"
#include "ops/rays.h"

namespace hashgrid {

// `visible` [n_cells] receives the flags.
inline OccupancyVisibleParams make_occupancy_visible_params(const Tensor& planes, const Tensor& aabb,
                                                            const std::vector<int64_t>& resolution, int64_t n_cascades,
                                                            Tensor* visible) {
  STD_TORCH_CHECK(planes.dim() == 3 && planes.size(1) == 5 && planes.size(2) == 4,
                  "`planes` must have shape [N, 5, 4], got ", shape_of(planes));
  check_shape(aabb, "aabb", {6});
  check_dtype(planes, "planes", ScalarType::Float);
  check_dtype(aabb, "aabb", ScalarType::Float);
  check_contiguous(planes, "planes");
  check_contiguous(aabb, "aabb");
  OccupancyVisibleParams p = {};
  p.n_cells = check_grid(resolution, n_cascades, p.resolution);
  p.n_cascades = static_cast<int32_t>(n_cascades);
  p.n_views = planes.size(0);
  p.planes = static_cast<const float*>(planes.const_data_ptr());
  p.aabb = static_cast<const float*>(aabb.const_data_ptr());
  *visible = empty_like_dtype(aabb, {p.n_cells}, ScalarType::Bool);
  p.visible = static_cast<uint8_t*>(visible->mutable_data_ptr());
  return p;
}

}  // namespace hashgrid
