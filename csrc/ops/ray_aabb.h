// ray_aabb: what the CPU and the CUDA op check, allocate and fill in alike.
#pragma once

#include "core/ray_aabb_params.h"
#include "ops/rays.h"

namespace hashgrid {

// `t_min` and `t_max` [R] receive the distances.
inline RayAabbParams make_ray_aabb_params(const Tensor& rays_o, const Tensor& rays_d, const Tensor& aabb, double near,
                                          double far, Tensor* t_min, Tensor* t_max) {
  RayAabbParams p = {};
  p.dtype = check_rays(rays_o, rays_d, aabb);
  p.n_rays = rays_o.size(0);
  p.near = near;
  p.far = far;
  p.rays_o = rays_o.const_data_ptr();
  p.rays_d = rays_d.const_data_ptr();
  p.aabb = aabb.const_data_ptr();
  *t_min = empty_like_dtype(rays_o, {p.n_rays});
  *t_max = empty_like_dtype(rays_o, {p.n_rays});
  p.t_min = t_min->mutable_data_ptr();
  p.t_max = t_max->mutable_data_ptr();
  return p;
}

}  // namespace hashgrid
