// frequency_encode: checks, allocation and launch.
#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "ops/checks.h"
#include "ops/memory.h"

namespace hashgrid {
namespace {

FrequencyEncodeParams make_params(const Tensor& x, int64_t n_frequencies) {
  FrequencyEncodeParams p = {};
  check_shape(x, "x", {-1, -1});
  STD_TORCH_CHECK(x.is_contiguous(), "`x` must be contiguous");
  STD_TORCH_CHECK(n_frequencies >= 1 && n_frequencies <= kMaxFrequencies, "`n_frequencies` must be in 1..",
                  kMaxFrequencies, ", got ", n_frequencies);
  p.n_inputs = x.numel();
  p.n_frequencies = static_cast<int32_t>(n_frequencies);
  p.dtype = real_dtype_of(x, "x");
  p.x = x.const_data_ptr();
  float scale = 1.0f;
  for (int64_t k = 0; k < n_frequencies; ++k, scale *= 2.0f) p.scales[k] = scale;
  return p;
}

int64_t grain_of(const FrequencyEncodeParams& p) { return (16384 + p.n_frequencies - 1) / p.n_frequencies; }

Tensor frequency_encode_cpu(const Tensor& x, int64_t n_frequencies) {
  FrequencyEncodeParams p = make_params(x, n_frequencies);
  Tensor y = torch::stable::new_empty(x, {x.size(0), x.size(1) * 2 * n_frequencies});
  p.y = y.mutable_data_ptr();
  advise_huge_pages(p.y, y.numel() * (p.dtype == DType::kFloat64 ? 8 : 4));
  parallel_units(p.n_inputs, grain_of(p),
                 [&](int64_t begin, int64_t end) { kernels().frequency_encode_forward(p, begin, end); });
  return y;
}

Tensor frequency_encode_backward_cpu(const Tensor& grad_y, const Tensor& x, int64_t n_frequencies) {
  FrequencyEncodeParams p = make_params(x, n_frequencies);
  check_shape(grad_y, "grad_y", {x.size(0), x.size(1) * 2 * n_frequencies});
  check_dtype(grad_y, "grad_y", x.scalar_type());
  STD_TORCH_CHECK(grad_y.is_contiguous(), "`grad_y` must be contiguous");
  p.grad_y = grad_y.const_data_ptr();
  Tensor grad_x = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  p.grad_x = grad_x.mutable_data_ptr();
  parallel_units(p.n_inputs, grain_of(p),
                 [&](int64_t begin, int64_t end) { kernels().frequency_encode_backward(p, begin, end); });
  return grad_x;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) {
  m.impl("frequency_encode", TORCH_BOX(&frequency_encode_cpu));
  m.impl("frequency_encode_backward", TORCH_BOX(&frequency_encode_backward_cpu));
}

}  // namespace hashgrid
