// ray_aabb on CUDA: checks, allocation and launch.
#include "ops/ray_aabb.h"
#include "ops/cuda/device.h"

namespace hashgrid {
namespace {

std::tuple<Tensor, Tensor> ray_aabb_cuda(const Tensor& rays_o, const Tensor& rays_d, const Tensor& aabb, double near,
                                         double far) {
  const DeviceScope device(rays_o);
  device.check(rays_d, "rays_d");
  device.check(aabb, "aabb");
  Tensor t_min, t_max;
  const RayAabbParams p = make_ray_aabb_params(rays_o, rays_d, aabb, near, far, &t_min, &t_max);
  launch_ray_aabb(p, device.stream());
  return {t_min, t_max};
}

}  // namespace

HASHGRID_CUDA_LIBRARY(m) { m.impl("ray_aabb", TORCH_BOX(&ray_aabb_cuda)); }

}  // namespace hashgrid
