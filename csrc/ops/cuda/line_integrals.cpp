// line_integrals on CUDA: checks, allocation and launch. The kernels check that the rays lie back to back, as those of
// composite do: NaN shows where they do not.
#include "ops/line_integrals.h"
#include "ops/cuda/device.h"

namespace hashgrid {
namespace {

Tensor line_integrals_cuda(const Tensor& values, const Tensor& steps, const Tensor& packed_info) {
  const DeviceScope device(values);
  device.check(steps, "steps");
  device.check(packed_info, "packed_info");
  LineIntegralsParams p = make_line_integrals_params(values, steps, packed_info);
  Tensor sums = allocate_sums(values, &p);
  launch_line_integrals_forward(p, device.stream());
  return sums;
}

std::tuple<Tensor, Tensor> line_integrals_backward_cuda(const Tensor& grad_sums, const Tensor& values,
                                                        const Tensor& steps, const Tensor& packed_info,
                                                        bool need_values, bool need_steps) {
  const DeviceScope device(values);
  device.check(grad_sums, "grad_sums");
  device.check(steps, "steps");
  device.check(packed_info, "packed_info");
  LineIntegralsParams p = make_line_integrals_params(values, steps, packed_info);
  p.grad_sums = checked_data(grad_sums, "grad_sums", {p.n_rays, p.n_channels}, values.scalar_type());
  const std::tuple<Tensor, Tensor> gradients = allocate_integral_gradients(values, need_values, need_steps, true, &p);
  launch_line_integrals_backward(p, device.stream());
  return gradients;
}

}  // namespace

HASHGRID_CUDA_LIBRARY(m) {
  m.impl("line_integrals", TORCH_BOX(&line_integrals_cuda));
  m.impl("line_integrals_backward", TORCH_BOX(&line_integrals_backward_cuda));
}

}  // namespace hashgrid
