// frequency_encode on CUDA: checks, allocation and launch.
#include "ops/frequency_encode.h"
#include "ops/cuda/device.h"

namespace hashgrid {
namespace {

Tensor frequency_encode_cuda(const Tensor& x, int64_t n_frequencies, bool pi) {
  const DeviceScope device(x);
  FrequencyEncodeParams p = make_frequency_encode_params(x, n_frequencies, pi);
  Tensor y = torch::stable::new_empty(x, {x.size(0), x.size(1) * 2 * n_frequencies});
  p.y = y.mutable_data_ptr();
  launch_frequency_encode_forward(p, device.stream());
  return y;
}

Tensor frequency_encode_backward_cuda(const Tensor& any_grad_y, const Tensor& x, int64_t n_frequencies, bool pi) {
  const DeviceScope device(x);
  device.check(any_grad_y, "grad_y");
  const Tensor grad_y = aligned(any_grad_y);
  FrequencyEncodeParams p = make_frequency_encode_params(x, n_frequencies, pi);
  set_grad_y(grad_y, x, p);
  Tensor grad_x = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  p.grad_x = grad_x.mutable_data_ptr();
  launch_frequency_encode_backward(p, device.stream());
  return grad_x;
}

}  // namespace

HASHGRID_CUDA_LIBRARY(m) {
  m.impl("frequency_encode", TORCH_BOX(&frequency_encode_cuda));
  m.impl("frequency_encode_backward", TORCH_BOX(&frequency_encode_backward_cuda));
}

}  // namespace hashgrid
