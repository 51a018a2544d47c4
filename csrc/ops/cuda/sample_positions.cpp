// sample_positions on CUDA: checks, allocation and launch.
#include "ops/sample_positions.h"
#include "ops/cuda/device.h"

namespace hashgrid {
namespace {

Tensor sample_positions_cuda(const Tensor& rays_o, const Tensor& rays_d, const Tensor& ray_indices,
                             const Tensor& t_starts, const Tensor& t_ends) {
  const DeviceScope device(rays_o);
  device.check(rays_d, "rays_d");
  device.check(ray_indices, "ray_indices");
  device.check(t_starts, "t_starts");
  device.check(t_ends, "t_ends");
  Tensor positions;
  const SamplePositionsParams p =
      make_sample_positions_params(rays_o, rays_d, ray_indices, t_starts, t_ends, &positions);
  launch_sample_positions(p, device.stream());
  return positions;
}

}  // namespace

HASHGRID_CUDA_LIBRARY(m) { m.impl("sample_positions", TORCH_BOX(&sample_positions_cuda)); }

}  // namespace hashgrid
