// march_rays: what the CPU and the CUDA op check and fill in alike.
#pragma once

#include <cmath>

#include "core/march_rays_params.h"
#include "ops/rays.h"

namespace hashgrid {

// t_starts, t_ends, ray_indices, packed_info, totals
typedef std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> MarchRaysOutputs;

// Whether rays may leave boxes of empty bricks in one go, see core/ray.h. Where steps grow each one is taken anyway. No
// brick may lie across the border of the next finer cascade.
inline bool bricks_fit(const MarchRaysParams& p) {
  const int32_t multiple = p.n_cascades == 1 ? kMarchBrick : 4 * kMarchBrick;
  bool fit = p.cone_angle == 0.0 && p.resolution[2] % 8 == 0;  // rows of whole bytes
  for (const int32_t cells : p.resolution) fit = fit && cells % multiple == 0;
  return fit;
}

inline int64_t n_bricks_of(const MarchRaysParams& p) {
  int64_t n = p.n_cascades;
  for (const int32_t cells : p.resolution) n *= cells / kMarchBrick;
  return n;
}

inline MarchRaysParams make_march_rays_params(const Tensor& rays_o, const Tensor& rays_d, const Tensor& aabb,
                                              const Tensor& bits, const std::vector<int64_t>& resolution,
                                              int64_t n_cascades, double step_size, double cone_angle, double near,
                                              double far, const std::optional<Tensor>& limits,
                                              const std::optional<Tensor>& counter, const std::optional<Tensor>& n_rays,
                                              int64_t max_samples_per_ray, std::optional<int64_t> n_samples) {
  MarchRaysParams p = {};
  p.dtype = check_rays(rays_o, rays_d, aabb);
  const int64_t n_cells = check_grid(resolution, n_cascades, p.resolution);
  const int64_t n_bytes = (n_cells + 7) / 8;
  check_dtype(bits, "bits", ScalarType::Byte);
  check_shape(bits, "bits", {n_bytes});
  check_contiguous(bits, "bits");
  STD_TORCH_CHECK(step_size > 0.0 && std::isfinite(step_size), "`step_size` must be positive and finite, got ",
                  step_size);
  STD_TORCH_CHECK(cone_angle >= 0.0 && std::isfinite(cone_angle), "`cone_angle` must be non-negative and finite, got ",
                  cone_angle);
  p.n_cascades = static_cast<int32_t>(n_cascades);
  p.n_rays = rays_o.size(0);
  p.max_samples_per_ray = max_samples_per_ray > 0 ? max_samples_per_ray : 0;
  p.step_size = step_size;
  p.cone_angle = cone_angle;
  p.near = near;
  p.far = far;
  if (limits.has_value()) {
    check_shape(*limits, "limits", {p.n_rays, 2});
    check_dtype(*limits, "limits", rays_o.scalar_type());
    check_contiguous(*limits, "limits");
    p.limits = limits->const_data_ptr();
  }
  p.counter = counter_data(counter);
  p.fixed = n_samples.has_value();
  p.n_samples = p.n_rays > 0 ? n_samples.value_or(0) : 0;  // nothing to fill up with, where there are no rays
  STD_TORCH_CHECK(p.n_samples >= 0, "`n_samples` must not be negative, got ", p.n_samples);
  STD_TORCH_CHECK(p.fixed || !n_rays.has_value(), "`n_rays` is for results of fixed size: give `n_samples`");
  if (n_rays.has_value()) {
    check_shape(*n_rays, "n_rays", {1});
    check_dtype(*n_rays, "n_rays", ScalarType::Long);
    p.n_rays_in_use = static_cast<const int64_t*>(n_rays->const_data_ptr());
  }
  p.rays_o = rays_o.const_data_ptr();
  p.rays_d = rays_d.const_data_ptr();
  p.aabb = aabb.const_data_ptr();
  p.bits = static_cast<const uint8_t*>(bits.const_data_ptr());
  return p;
}

}  // namespace hashgrid
