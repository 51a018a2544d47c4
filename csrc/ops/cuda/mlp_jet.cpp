// mlp_jet on CUDA: checks, allocation and launch. Inputs are [n_points, n_in] here; the Python side flattens batches.
#include "ops/mlp_jet.h"
#include "ops/cuda/device.h"

namespace hashgrid {
namespace {

void check_devices(const DeviceScope& device, const Tensor& directions, const std::optional<Tensor>& accelerations,
                   const std::optional<Tensor>& operators, const std::vector<Tensor>& weights,
                   const std::vector<Tensor>& biases) {
  device.check(directions, "directions");
  device.check(accelerations, "accelerations");
  device.check(operators, "operators");
  device.check(weights, "weights");
  device.check(biases, "biases");
}

// Chooses chunks and allocates what they need.
void plan(const Tensor& like, bool backward, bool need_params, MlpJetParams& p, Workspace& workspace) {
  const MlpWorkspace sizes = plan_mlp_jet(p, backward, need_params);
  p.mlp.scratch = workspace.add(like, sizes.scratch);
  p.mlp.partials = workspace.add(like, sizes.partials);
}

std::tuple<Tensor, Tensor, Tensor> mlp_jet_cuda(const Tensor& x, const Tensor& directions,
                                                const std::optional<Tensor>& accelerations,
                                                const std::optional<Tensor>& operators,
                                                const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
                                                int64_t activation, int64_t output_activation) {
  const DeviceScope device(x);
  check_devices(device, directions, accelerations, operators, weights, biases);
  MlpJetParams p =
      make_mlp_jet_params(x, directions, accelerations, operators, weights, biases, activation, output_activation);
  auto results = make_jet_results(x, p);
  Workspace workspace;
  plan(x, false, false, p, workspace);
  launch_mlp_jet_forward(p, device.stream());
  return results;
}

// Gradients of x, directions, accelerations and of all parameters in one buffer: weights, then biases, in layer order.
std::tuple<Tensor, Tensor, Tensor, Tensor> mlp_jet_backward_cuda(
    const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_first,
    const std::optional<Tensor>& grad_second, const Tensor& x, const Tensor& directions,
    const std::optional<Tensor>& accelerations, const std::optional<Tensor>& operators,
    const std::vector<Tensor>& weights, const std::vector<Tensor>& biases, int64_t activation,
    int64_t output_activation, bool need_x, bool need_directions, bool need_accelerations, bool need_params) {
  const DeviceScope device(x);
  device.check(grad_y, "grad_y");
  device.check(grad_first, "grad_first");
  device.check(grad_second, "grad_second");
  check_devices(device, directions, accelerations, operators, weights, biases);
  MlpJetParams p =
      make_mlp_jet_params(x, directions, accelerations, operators, weights, biases, activation, output_activation);
  set_jet_gradients(grad_y, grad_first, grad_second, x, p);
  MlpJetGradients grads = make_jet_gradients(x, need_x, need_directions, need_accelerations, need_params, p);
  Workspace workspace;
  plan(x, true, need_params, p, workspace);
  launch_mlp_jet_backward(p, device.stream());
  return {grads.x, grads.directions, grads.accelerations, grads.params};
}

// The cotangent [N, in] of mlp's grad_x pulled back to grad_y [N, out] (or [0, out]), x and parameters; added to the
// last two, the gradients of y that are `grad_values` [N, out].
std::tuple<Tensor, Tensor, Tensor> mlp_backward_backward_cuda(
    const Tensor& cotangent, const std::optional<Tensor>& grad_values, const Tensor& grad_y, const Tensor& x,
    const std::vector<Tensor>& weights, const std::vector<Tensor>& biases, int64_t activation,
    int64_t output_activation, bool need_grad_y, bool need_x, bool need_params) {
  const DeviceScope device(x);
  device.check(cotangent, "cotangent");
  device.check(grad_values, "grad_values");
  device.check(grad_y, "grad_y");
  device.check(weights, "weights");
  device.check(biases, "biases");
  MlpJetParams p = {};
  p.mlp = make_mlp_params(x, weights, biases, activation, output_activation, static_cast<int64_t>(MlpFactors::kReal));
  p.shape.n_directions = 1;
  p.shape.n_slabs = 2;
  const int64_t n_out = p.mlp.layers[p.mlp.n_layers - 1].n_out;
  p.directions = checked_data(cotangent, "cotangent", {p.mlp.n_rows, x.size(1)}, x.scalar_type());
  p.grad_first = checked_data(grad_y, "grad_y", {p.mlp.n_rows, n_out}, x.scalar_type());
  p.mlp.grad_y = checked_data(grad_values, "grad_values", {p.mlp.n_rows, n_out}, x.scalar_type());
  Tensor grad_grad_y = empty(x, {need_grad_y ? p.mlp.n_rows : 0, n_out});
  if (need_grad_y) p.first = grad_grad_y.mutable_data_ptr();
  MlpJetGradients grads = make_jet_gradients(x, need_x, false, false, need_params, p);
  Workspace workspace;
  plan(x, true, need_params, p, workspace);
  launch_mlp_jet_backward(p, device.stream());
  return {grad_grad_y, grads.x, grads.params};
}

}  // namespace

HASHGRID_CUDA_LIBRARY(m) {
  m.impl("mlp_jet", TORCH_BOX(&mlp_jet_cuda));
  m.impl("mlp_jet_backward", TORCH_BOX(&mlp_jet_backward_cuda));
  m.impl("mlp_backward_backward", TORCH_BOX(&mlp_backward_backward_cuda));
}

}  // namespace hashgrid
