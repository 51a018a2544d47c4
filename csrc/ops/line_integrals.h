// line_integrals: what the CPU and the CUDA ops check, allocate and fill in alike.
#pragma once

#include "core/line_integrals_params.h"
#include "ops/rays.h"

namespace hashgrid {

// That the rays lie back to back is left to the caller.
inline LineIntegralsParams make_line_integrals_params(const Tensor& values, const Tensor& steps,
                                                      const Tensor& packed_info) {
  STD_TORCH_CHECK(values.dim() == 2, "`values` must have shape [S, C], got ", shape_of(values));
  LineIntegralsParams p = {};
  p.n_samples = values.size(0);
  p.n_channels = values.size(1);
  p.dtype = real_dtype_of(values, "values");
  p.values = checked_data(values, "values", {p.n_samples, p.n_channels}, values.scalar_type());
  p.steps = checked_data(steps, "steps", {p.n_samples}, values.scalar_type());
  p.packed_info = packed_info_data(packed_info);
  p.n_rays = packed_info.size(0);
  return p;
}

inline Tensor allocate_sums(const Tensor& like, LineIntegralsParams* p) {
  Tensor sums = empty_like_dtype(like, {p->n_rays, p->n_channels});
  p->sums = sums.mutable_data_ptr();
  return sums;
}

// grad_values and grad_steps, [0] where nobody asks. With `cleared` they start as zeros: samples may belong to no ray.
inline std::tuple<Tensor, Tensor> allocate_integral_gradients(const Tensor& like, bool need_values, bool need_steps,
                                                              bool cleared, LineIntegralsParams* p) {
  const auto allocate = [&](const std::vector<int64_t>& shape) {
    return cleared ? torch::stable::new_zeros(like, shape) : empty_like_dtype(like, shape);
  };
  Tensor grad_values = need_values ? allocate({p->n_samples, p->n_channels}) : allocate({0});
  Tensor grad_steps = allocate({need_steps ? p->n_samples : 0});
  if (need_values) p->grad_values = grad_values.mutable_data_ptr();
  if (need_steps) p->grad_steps = grad_steps.mutable_data_ptr();
  return {grad_values, grad_steps};
}

}  // namespace hashgrid
