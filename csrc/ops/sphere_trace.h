// sphere_trace: what the CPU and the CUDA op check, allocate and fill in alike.
#pragma once

#include "core/sphere_trace_params.h"
#include "ops/rays.h"

namespace hashgrid {

// `positions` [A, 3] receives the next points.
inline SphereTraceParams make_sphere_trace_params(const Tensor& distances, const Tensor& rays, const Tensor& rays_o,
                                                  const Tensor& rays_d, const Tensor& speed, const Tensor& t_max,
                                                  Tensor& state, Tensor& status, Tensor& n_evaluations, double epsilon,
                                                  double step_scale, Tensor* positions) {
  SphereTraceParams p = {};
  p.dtype = real_dtype_of(rays_o, "rays_o");
  STD_TORCH_CHECK(rays_o.dim() == 2 && rays_o.size(1) == 3, "`rays_o` must have shape [R, 3], got ", shape_of(rays_o));
  STD_TORCH_CHECK(rays.dim() == 1, "`rays` must have shape [A], got ", shape_of(rays));
  p.n_rays = rays_o.size(0);
  p.n_points = rays.size(0);
  const auto check = [](const Tensor& tensor, const char* name, const std::vector<int64_t>& shape, ScalarType dtype) {
    check_shape(tensor, name, shape);
    check_dtype(tensor, name, dtype);
    check_contiguous(tensor, name);
  };
  const ScalarType real = rays_o.scalar_type();
  check(distances, "distances", {p.n_points}, real);
  check(rays, "rays", {p.n_points}, ScalarType::Long);
  check(rays_o, "rays_o", {p.n_rays, 3}, real);
  check(rays_d, "rays_d", {p.n_rays, 3}, real);
  check(speed, "speed", {p.n_rays}, real);
  check(t_max, "t_max", {p.n_rays}, real);
  check(state, "state", {p.n_rays, 5}, real);
  check(status, "status", {p.n_rays}, ScalarType::Byte);
  check(n_evaluations, "n_evaluations", {p.n_rays}, ScalarType::Int);

  p.epsilon = epsilon;
  p.step_scale = step_scale;
  p.distances = distances.const_data_ptr();
  p.rays = static_cast<const int64_t*>(rays.const_data_ptr());
  p.rays_o = rays_o.const_data_ptr();
  p.rays_d = rays_d.const_data_ptr();
  p.speed = speed.const_data_ptr();
  p.t_max = t_max.const_data_ptr();
  p.state = state.mutable_data_ptr();
  p.status = static_cast<uint8_t*>(status.mutable_data_ptr());
  p.n_evaluations = static_cast<int32_t*>(n_evaluations.mutable_data_ptr());
  *positions = empty_like_dtype(rays_o, {p.n_points, 3});
  p.positions = positions->mutable_data_ptr();
  return p;
}

}  // namespace hashgrid
