// ray_aabb: checks, allocation and launch.
#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "ops/checks.h"
#include "ops/rays.h"

namespace hashgrid {
namespace {

std::tuple<Tensor, Tensor> ray_aabb_cpu(const Tensor& rays_o, const Tensor& rays_d, const Tensor& aabb, double near,
                                        double far) {
  RayAabbParams p = {};
  p.dtype = check_rays(rays_o, rays_d, aabb);
  p.n_rays = rays_o.size(0);
  p.near = near;
  p.far = far;
  p.rays_o = rays_o.const_data_ptr();
  p.rays_d = rays_d.const_data_ptr();
  p.aabb = aabb.const_data_ptr();
  Tensor t_min = empty_like_dtype(rays_o, {p.n_rays});
  Tensor t_max = empty_like_dtype(rays_o, {p.n_rays});
  p.t_min = t_min.mutable_data_ptr();
  p.t_max = t_max.mutable_data_ptr();
  parallel_units(p.n_rays, 4096, [&](int64_t begin, int64_t end) { kernels().ray_aabb(p, begin, end); });
  return {t_min, t_max};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) { m.impl("ray_aabb", TORCH_BOX(&ray_aabb_cpu)); }

}  // namespace hashgrid
