// ray_aabb: checks, allocation and launch.
#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "ops/ray_aabb.h"

namespace hashgrid {
namespace {

std::tuple<Tensor, Tensor> ray_aabb_cpu(const Tensor& rays_o, const Tensor& rays_d, const Tensor& aabb, double near,
                                        double far) {
  Tensor t_min, t_max;
  const RayAabbParams p = make_ray_aabb_params(rays_o, rays_d, aabb, near, far, &t_min, &t_max);
  parallel_units(p.n_rays, 4096, [&](int64_t begin, int64_t end) { kernels().ray_aabb(p, begin, end); });
  return {t_min, t_max};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) { m.impl("ray_aabb", TORCH_BOX(&ray_aabb_cpu)); }

}  // namespace hashgrid
