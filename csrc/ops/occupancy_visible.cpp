// occupancy_visible: checks, allocation and launch.
#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "ops/occupancy_visible.h"

namespace hashgrid {
namespace {

Tensor occupancy_visible_cpu(const Tensor& planes, const Tensor& aabb, const std::vector<int64_t>& resolution,
                             int64_t n_cascades) {
  Tensor visible;
  const OccupancyVisibleParams p = make_occupancy_visible_params(planes, aabb, resolution, n_cascades, &visible);
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
