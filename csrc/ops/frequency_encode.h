// frequency_encode: what the CPU and the CUDA ops check and fill in alike.
#pragma once

#include "core/frequency_encode_params.h"
#include "ops/checks.h"

namespace hashgrid {

inline FrequencyEncodeParams make_frequency_encode_params(const Tensor& x, int64_t n_frequencies, bool pi) {
  FrequencyEncodeParams p = {};
  check_shape(x, "x", {-1, -1});
  STD_TORCH_CHECK(x.is_contiguous(), "`x` must be contiguous");
  STD_TORCH_CHECK(n_frequencies >= 1 && n_frequencies <= kMaxFrequencies, "`n_frequencies` must be in 1..",
                  kMaxFrequencies, ", got ", n_frequencies);
  p.n_inputs = x.numel();
  p.n_frequencies = static_cast<int32_t>(n_frequencies);
  p.dtype = real_dtype_of(x, "x");
  p.pi = pi;
  p.x = x.const_data_ptr();
  float scale = 1.0f;
  for (int64_t k = 0; k < n_frequencies; ++k, scale *= 2.0f) p.scales[k] = scale;
  return p;
}

inline void set_grad_y(const Tensor& grad_y, const Tensor& x, FrequencyEncodeParams& p) {
  check_shape(grad_y, "grad_y", {x.size(0), x.size(1) * 2 * p.n_frequencies});
  check_dtype(grad_y, "grad_y", x.scalar_type());
  STD_TORCH_CHECK(grad_y.is_contiguous(), "`grad_y` must be contiguous");
  p.grad_y = grad_y.const_data_ptr();
}

}  // namespace hashgrid
