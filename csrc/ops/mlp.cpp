// mlp: checks, block sizes, allocation and launch. Inputs are [n_rows, n_in] here; the Python side flattens batches.
#include "ops/mlp_cpu.h"

namespace hashgrid {
namespace {

Tensor mlp_cpu(const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
               int64_t activation, int64_t output_activation, int64_t factors) {
  Mlp mlp = make_mlp(make_mlp_params(x, weights, biases, activation, output_activation, factors));
  MlpParams& p = mlp.p;
  Tensor y = empty(x, {p.n_rows, p.layers[p.n_layers - 1].n_out});
  if (p.n_rows == 0) return y;
  advise_huge_pages(y.mutable_data_ptr(), y.numel() * mlp.element);
  p.y = y.mutable_data_ptr();
  choose_block(mlp, MlpPass::kForward, false);
  pack_weights(mlp, x, true, false);
  run_with_scratch(kernels().mlp_forward, mlp, p.n_blocks, kForwardGrain);
  return y;
}

std::tuple<Tensor, Tensor> mlp_backward_cpu(const Tensor& grad_y, const Tensor& x, const std::vector<Tensor>& weights,
                                            const std::vector<Tensor>& biases, int64_t activation,
                                            int64_t output_activation, int64_t factors, bool need_x, bool need_params) {
  Mlp mlp = make_mlp(make_mlp_params(x, weights, biases, activation, output_activation, factors));
  set_grad_y(grad_y, x, mlp.p);
  return run_backward(kernels().mlp_backward, MlpPass::kBackward, mlp, x, need_x, need_params);
}

// y [N, out], and what grad_y [N, out] is as a gradient of x [N, in], by one pass through the layers.
std::tuple<Tensor, Tensor> mlp_with_gradient_cpu(const Tensor& grad_y, const Tensor& x,
                                                 const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
                                                 int64_t activation, int64_t output_activation) {
  Mlp mlp = make_mlp(
      make_mlp_params(x, weights, biases, activation, output_activation, static_cast<int64_t>(MlpFactors::kReal)));
  set_grad_y(grad_y, x, mlp.p);
  Tensor y = empty(x, {mlp.p.n_rows, grad_y.size(1)});
  mlp.p.y = y.mutable_data_ptr();
  const Tensor grad_x = std::get<0>(run_backward(kernels().mlp_backward, MlpPass::kBackward, mlp, x, true, false));
  return {y, grad_x};
}

// The cotangent [N, in] of grad_x pulled back to grad_y [N, out] (or [0, out]), x and parameters as above; added to the
// last two, the gradients of y that are `grad_values` [N, out].
std::tuple<Tensor, Tensor, Tensor> mlp_backward_backward_cpu(
    const Tensor& cotangent, const std::optional<Tensor>& grad_values, const Tensor& grad_y, const Tensor& x,
    const std::vector<Tensor>& weights, const std::vector<Tensor>& biases, int64_t activation,
    int64_t output_activation, bool need_grad_y, bool need_x, bool need_params) {
  Mlp mlp = make_mlp(
      make_mlp_params(x, weights, biases, activation, output_activation, static_cast<int64_t>(MlpFactors::kReal)));
  MlpParams& p = mlp.p;
  set_grad_y(grad_y, x, p);
  p.cotangent = checked_data(cotangent, "cotangent", {p.n_rows, x.size(1)}, x.scalar_type());
  p.grad_values = checked_data(grad_values, "grad_values", {p.n_rows, grad_y.size(1)}, x.scalar_type());
  Tensor grad_grad_y = empty(x, {need_grad_y ? p.n_rows : 0, grad_y.size(1)});
  if (need_grad_y) p.grad_grad_y = grad_grad_y.mutable_data_ptr();
  auto [grad_x, grad_params] = run_backward(kernels().mlp_second, MlpPass::kSecond, mlp, x, need_x, need_params);
  return {grad_grad_y, grad_x, grad_params};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) {
  m.impl("mlp", TORCH_BOX(&mlp_cpu));
  m.impl("mlp_backward", TORCH_BOX(&mlp_backward_cpu));
  m.impl("mlp_with_gradient", TORCH_BOX(&mlp_with_gradient_cpu));
  m.impl("mlp_backward_backward", TORCH_BOX(&mlp_backward_backward_cpu));
}

}  // namespace hashgrid
