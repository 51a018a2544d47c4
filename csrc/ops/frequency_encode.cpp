// frequency_encode: checks, allocation and launch.
#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "ops/checks.h"
#include "ops/frequency_encode.h"
#include "ops/memory.h"

namespace hashgrid {
namespace {

int64_t grain_of(const FrequencyEncodeParams& p) { return (16384 + p.n_frequencies - 1) / p.n_frequencies; }

Tensor frequency_encode_cpu(const Tensor& x, int64_t n_frequencies, bool pi) {
  FrequencyEncodeParams p = make_frequency_encode_params(x, n_frequencies, pi);
  Tensor y = torch::stable::new_empty(x, {x.size(0), x.size(1) * 2 * n_frequencies});
  p.y = y.mutable_data_ptr();
  advise_huge_pages(p.y, y.numel() * (p.dtype == DType::kFloat64 ? 8 : 4));
  parallel_units(p.n_inputs, grain_of(p),
                 [&](int64_t begin, int64_t end) { kernels().frequency_encode_forward(p, begin, end); });
  return y;
}

Tensor frequency_encode_backward_cpu(const Tensor& grad_y, const Tensor& x, int64_t n_frequencies, bool pi) {
  FrequencyEncodeParams p = make_frequency_encode_params(x, n_frequencies, pi);
  set_grad_y(grad_y, x, p);
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
