// sample_positions: what the CPU and the CUDA op check, allocate and fill in alike.
#pragma once

#include "core/sample_positions_params.h"
#include "ops/rays.h"

namespace hashgrid {

// `positions` receives [n_samples, 3].
inline SamplePositionsParams make_sample_positions_params(const Tensor& rays_o, const Tensor& rays_d,
                                                          const Tensor& ray_indices, const Tensor& t_starts,
                                                          const Tensor& t_ends, Tensor* positions) {
  SamplePositionsParams p = {};
  STD_TORCH_CHECK(rays_o.dim() == 2 && rays_o.size(1) == 3, "`rays_o` must have shape [R, 3], got ", shape_of(rays_o));
  STD_TORCH_CHECK(t_starts.dim() == 1, "`t_starts` must have shape [S], got ", shape_of(t_starts));
  p.dtype = real_dtype_of(rays_o, "rays_o");
  p.n_rays = rays_o.size(0);
  p.n_samples = t_starts.size(0);
  const auto data_of = [&](const Tensor& tensor, const char* name, const std::vector<int64_t>& shape) {
    return checked_data(tensor, name, shape, rays_o.scalar_type());
  };
  p.rays_o = data_of(rays_o, "rays_o", {p.n_rays, 3});
  p.rays_d = data_of(rays_d, "rays_d", {p.n_rays, 3});
  p.t_starts = data_of(t_starts, "t_starts", {p.n_samples});
  p.t_ends = data_of(t_ends, "t_ends", {p.n_samples});
  p.ray_indices =
      static_cast<const int64_t*>(checked_data(ray_indices, "ray_indices", {p.n_samples}, ScalarType::Long));
  *positions = empty_like_dtype(rays_o, {p.n_samples, 3});
  p.positions = positions->mutable_data_ptr();
  return p;
}

}  // namespace hashgrid
