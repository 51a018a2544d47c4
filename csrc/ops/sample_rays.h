// sample_rays: what the CPU and the CUDA op check, allocate and fill in alike.
#pragma once

#include "core/sample_rays_params.h"
#include "ops/rays.h"

namespace hashgrid {

struct SampledRays {
  Tensor rays_o, rays_d;  // [n_rays, 3]
  Tensor rgba;            // [n_rays, 4]
  Tensor noise;           // [n_rays, 3]
};

inline SampleRaysParams make_sample_rays_params(const Tensor& counter, int64_t n_rays, const Tensor& data,
                                                const Tensor& offsets, const Tensor& sizes, const Tensor& c2w,
                                                const Tensor& intrinsics, const std::optional<Tensor>& plane_points,
                                                const std::optional<Tensor>& plane_rows, SampledRays* rays) {
  STD_TORCH_CHECK(n_rays >= 0, "`n_rays` must not be negative, got ", n_rays);
  STD_TORCH_CHECK(data.dim() == 2 && (data.size(1) == 3 || data.size(1) == 4),
                  "`data` must have shape [P, 3] or [P, 4], got ", shape_of(data));
  check_dtype(data, "data", ScalarType::Byte);
  check_contiguous(data, "data");
  STD_TORCH_CHECK(sizes.dim() == 2 && sizes.size(1) == 2, "`sizes` must have shape [N, 2], got ", shape_of(sizes));
  STD_TORCH_CHECK(plane_points.has_value() == plane_rows.has_value(),
                  "`plane_points` and `plane_rows` must be given together");
  SampleRaysParams p = {};
  p.n_rays = n_rays;
  p.n_pixels = data.size(0);
  p.n_views = sizes.size(0);
  for (int64_t step = 1; step < p.n_views; step *= 2) p.first_step = step;
  p.n_channels = static_cast<int32_t>(data.size(1));
  STD_TORCH_CHECK(n_rays == 0 || (p.n_pixels > 0 && p.n_views > 0), "`data` must have pixels to draw from, got ",
                  shape_of(data), " and ", p.n_views, " views");
  const auto reals = [](const Tensor& tensor, const char* name, const std::vector<int64_t>& shape) {
    return static_cast<const float*>(checked_data(tensor, name, shape, ScalarType::Float));
  };
  const auto indices = [](const Tensor& tensor, const char* name, const std::vector<int64_t>& shape) {
    return static_cast<const int64_t*>(checked_data(tensor, name, shape, ScalarType::Long));
  };
  p.counter = counter_data(counter);
  p.data = static_cast<const uint8_t*>(data.const_data_ptr());
  p.offsets = indices(offsets, "offsets", {p.n_views + 1});
  p.sizes = indices(sizes, "sizes", {p.n_views, 2});
  p.c2w = reals(c2w, "c2w", {p.n_views, 3, 4});
  p.intrinsics = reals(intrinsics, "intrinsics", {p.n_views, 4});
  if (plane_points.has_value()) {
    STD_TORCH_CHECK(plane_points->dim() == 2 && plane_points->size(0) > 0,
                    "`plane_points` must have shape [Q, 2], got ", shape_of(*plane_points));
    p.n_plane_points = plane_points->size(0);
    p.plane_points = reals(*plane_points, "plane_points", {p.n_plane_points, 2});
    p.plane_rows = indices(*plane_rows, "plane_rows", {p.n_views, 2});
  }
  rays->rays_o = empty_like_dtype(c2w, {n_rays, 3});
  rays->rays_d = empty_like_dtype(c2w, {n_rays, 3});
  rays->rgba = empty_like_dtype(c2w, {n_rays, 4});
  rays->noise = empty_like_dtype(c2w, {n_rays, 3});
  p.rays_o = static_cast<float*>(rays->rays_o.mutable_data_ptr());
  p.rays_d = static_cast<float*>(rays->rays_d.mutable_data_ptr());
  p.rgba = static_cast<float*>(rays->rgba.mutable_data_ptr());
  p.noise = static_cast<float*>(rays->noise.mutable_data_ptr());
  return p;
}

}  // namespace hashgrid
