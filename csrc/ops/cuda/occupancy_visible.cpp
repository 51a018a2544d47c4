// occupancy_visible on CUDA: checks, allocation and launch.
#include "ops/occupancy_visible.h"
#include "ops/cuda/device.h"

namespace hashgrid {
namespace {

Tensor occupancy_visible_cuda(const Tensor& planes, const Tensor& aabb, const std::vector<int64_t>& resolution,
                              int64_t n_cascades) {
  const DeviceScope device(aabb);
  device.check(planes, "planes");
  Tensor visible;
  const OccupancyVisibleParams p = make_occupancy_visible_params(planes, aabb, resolution, n_cascades, &visible);
  launch_occupancy_visible(p, device.stream());
  return visible;
}

}  // namespace

HASHGRID_CUDA_LIBRARY(m) { m.impl("occupancy_visible", TORCH_BOX(&occupancy_visible_cuda)); }

}  // namespace hashgrid
