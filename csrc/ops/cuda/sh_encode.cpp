// sh_encode on CUDA: checks, allocation and launch.
#include "ops/sh_encode.h"
#include "ops/cuda/device.h"

namespace hashgrid {
namespace {

Tensor sh_encode_cuda(const Tensor& directions, int64_t degree) {
  const DeviceScope device(directions);
  ShEncodeParams p = make_sh_encode_params(directions, degree);
  Tensor y = torch::stable::new_empty(directions, {p.n_points, degree * degree});
  p.y = y.mutable_data_ptr();
  launch_sh_encode_forward(p, device.stream());
  return y;
}

Tensor sh_encode_backward_cuda(const Tensor& any_grad_y, const Tensor& directions, int64_t degree) {
  const DeviceScope device(directions);
  device.check(any_grad_y, "grad_y");
  const Tensor grad_y = aligned(any_grad_y);
  ShEncodeParams p = make_sh_encode_params(directions, degree);
  set_grad_y(grad_y, directions, p);
  Tensor grad_directions = torch::stable::new_empty(directions, {p.n_points, 3});
  p.grad_directions = grad_directions.mutable_data_ptr();
  launch_sh_encode_backward(p, device.stream());
  return grad_directions;
}

}  // namespace

HASHGRID_CUDA_LIBRARY(m) {
  m.impl("sh_encode", TORCH_BOX(&sh_encode_cuda));
  m.impl("sh_encode_backward", TORCH_BOX(&sh_encode_backward_cuda));
}

}  // namespace hashgrid
