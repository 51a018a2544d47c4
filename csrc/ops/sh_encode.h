// sh_encode: what the CPU and the CUDA ops check and fill in alike.
#pragma once

#include "core/sh_encode_params.h"
#include "ops/checks.h"

namespace hashgrid {

inline ShEncodeParams make_sh_encode_params(const Tensor& directions, int64_t degree) {
  ShEncodeParams p = {};
  check_shape(directions, "directions", {-1, 3});
  STD_TORCH_CHECK(directions.is_contiguous(), "`directions` must be contiguous");
  STD_TORCH_CHECK(degree >= 1 && degree <= kMaxShDegree, "`degree` must be in 1..", kMaxShDegree, ", got ", degree);
  p.n_points = directions.size(0);
  p.degree = static_cast<int32_t>(degree);
  p.dtype = real_dtype_of(directions, "directions");
  p.directions = directions.const_data_ptr();
  return p;
}

inline void set_grad_y(const Tensor& grad_y, const Tensor& directions, ShEncodeParams& p) {
  check_shape(grad_y, "grad_y", {p.n_points, int64_t{p.degree} * p.degree});
  check_dtype(grad_y, "grad_y", directions.scalar_type());
  STD_TORCH_CHECK(grad_y.is_contiguous(), "`grad_y` must be contiguous");
  p.grad_y = grad_y.const_data_ptr();
}

}  // namespace hashgrid
