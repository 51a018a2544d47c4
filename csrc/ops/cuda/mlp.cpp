// mlp on CUDA: checks, allocation and launch. Inputs are [n_rows, n_in] here; the Python side flattens batches.
#include "ops/mlp.h"
#include "ops/cuda/device.h"

#include <tuple>

namespace hashgrid {
namespace {

// Chooses kernels and allocates what they need.
void plan(const Tensor& like, bool backward, bool need_params, MlpParams& p, Workspace& workspace) {
  const MlpWorkspace sizes = plan_mlp(p, backward, need_params);
  p.packed = workspace.add(like, sizes.packed);
  p.scratch = workspace.add(like, sizes.scratch);
  p.partials = workspace.add(like, sizes.partials);
}

Tensor mlp_cuda(const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
                int64_t activation, int64_t output_activation, int64_t factors) {
  const DeviceScope device(x);
  device.check(weights, "weights");
  device.check(biases, "biases");
  MlpParams p = make_mlp_params(x, weights, biases, activation, output_activation, factors);
  Tensor y = torch::stable::new_empty(x, {p.n_rows, p.layers[p.n_layers - 1].n_out});
  p.y = y.mutable_data_ptr();
  Workspace workspace;
  plan(x, false, false, p, workspace);
  launch_mlp_forward(p, device.stream());
  return y;
}

// grad_x [N, in] (or [0, in]) and all parameter gradients in one buffer: weights, then biases, in layer order.
std::tuple<Tensor, Tensor> mlp_backward_cuda(const Tensor& grad_y, const Tensor& x, const std::vector<Tensor>& weights,
                                             const std::vector<Tensor>& biases, int64_t activation,
                                             int64_t output_activation, int64_t factors, bool need_x,
                                             bool need_params) {
  const DeviceScope device(x);
  device.check(grad_y, "grad_y");
  device.check(weights, "weights");
  device.check(biases, "biases");
  MlpParams p = make_mlp_params(x, weights, biases, activation, output_activation, factors);
  set_grad_y(grad_y, x, p);
  Tensor grad_x = torch::stable::new_empty(x, {need_x ? p.n_rows : 0, x.size(1)});
  Tensor grad_params = torch::stable::new_empty(x, {need_params ? mlp_parameters(p) : 0});
  if (need_x) p.grad_x = grad_x.mutable_data_ptr();
  if (need_params) p.grad_params = grad_params.mutable_data_ptr();
  Workspace workspace;
  plan(x, true, need_params, p, workspace);
  launch_mlp_backward(p, device.stream());
  return {grad_x, grad_params};
}

// y [N, out], and what grad_y [N, out] is as a gradient of x [N, in], by one pass through the layers.
std::tuple<Tensor, Tensor> mlp_with_gradient_cuda(const Tensor& grad_y, const Tensor& x,
                                                  const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
                                                  int64_t activation, int64_t output_activation) {
  const DeviceScope device(x);
  device.check(grad_y, "grad_y");
  device.check(weights, "weights");
  device.check(biases, "biases");
  MlpParams p =
      make_mlp_params(x, weights, biases, activation, output_activation, static_cast<int64_t>(MlpFactors::kReal));
  set_grad_y(grad_y, x, p);
  Tensor y = torch::stable::new_empty(x, {p.n_rows, grad_y.size(1)});
  Tensor grad_x = torch::stable::new_empty(x, {p.n_rows, x.size(1)});
  p.y = y.mutable_data_ptr();
  p.grad_x = grad_x.mutable_data_ptr();
  Workspace workspace;
  plan(x, true, false, p, workspace);
  launch_mlp_backward(p, device.stream());
  return {y, grad_x};
}

}  // namespace

HASHGRID_CUDA_LIBRARY(m) {
  m.impl("mlp", TORCH_BOX(&mlp_cuda));
  m.impl("mlp_backward", TORCH_BOX(&mlp_backward_cuda));
  m.impl("mlp_with_gradient", TORCH_BOX(&mlp_with_gradient_cuda));
}

}  // namespace hashgrid
