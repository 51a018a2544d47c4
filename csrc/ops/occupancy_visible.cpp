// occupancy_visible: checks, allocation and launch.
#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "ops/checks.h"
#include "ops/rays.h"

namespace hashgrid {
namespace {

Tensor occupancy_visible_cpu(const Tensor& planes, const Tensor& aabb, const std::vector<int64_t>& resolution,
                             int64_t n_cascades) {
  STD_TORCH_CHECK(planes.dim() == 3 && planes.size(1) == 5 && planes.size(2) == 4,
                  "`planes` must have shape [N, 5, 4], got ", shape_of(planes));
  check_shape(aabb, "aabb", {6});
  check_dtype(planes, "planes", ScalarType::Float);
  check_dtype(aabb, "aabb", ScalarType::Float);
  check_contiguous(planes, "planes");
  check_contiguous(aabb, "aabb");
  OccupancyVisibleParams p = {};
  const int64_t n_cells = check_grid(resolution, n_cascades, p.resolution);
  p.n_cascades = static_cast<int32_t>(n_cascades);
  p.n_views = planes.size(0);
  p.planes = static_cast<const float*>(planes.const_data_ptr());
  p.aabb = static_cast<const float*>(aabb.const_data_ptr());
  Tensor visible = empty_like_dtype(aabb, {n_cells}, ScalarType::Bool);
  p.visible = static_cast<uint8_t*>(visible.mutable_data_ptr());
  int64_t n_blocks = n_cascades;
  for (int axis = 0; axis < 3; ++axis) n_blocks *= (p.resolution[axis] + kVisibleBlock - 1) / kVisibleBlock;
  parallel_units(n_blocks, 16, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> candidates(p.n_views);
    OccupancyVisibleParams q = p;
    q.candidates = candidates.data();
    kernels().occupancy_visible(q, begin, end);
  });
  return visible;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) { m.impl("occupancy_visible", TORCH_BOX(&occupancy_visible_cpu)); }

}  // namespace hashgrid
