// mlp: checks, block sizes, allocation and launch. Inputs are [n_rows, n_in] here; the Python side flattens batches.
#include "ops/mlp_cpu.h"

#include <tuple>

namespace hashgrid {
namespace {

constexpr int64_t kForwardGrain = 8;                    // blocks per unit
constexpr int64_t kRowsPerPartial = 2048;               // at least, so that adding up the partial sums costs little
constexpr int64_t kMaxPartials = 32;                    // work units of a backward
constexpr int64_t kMaxPartialBytes = int64_t{1} << 26;  // of all partial sums together
constexpr int64_t kReduceGrain = 64;                    // output rows per unit

// Runs a kernel on scratch memory of the thread it lands on.
void run_with_scratch(RangeKernel<MlpParams> kernel, const Mlp& mlp, int64_t units, int64_t grain) {
  parallel_units(units, grain, [&](int64_t begin, int64_t end) {
    MlpParams p = mlp.p;
    thread_local Scratch scratch;
    p.scratch = scratch.at_least(mlp.scratch_bytes);
    kernel(p, begin, end);
  });
}

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

// Runs a kernel over partial sums of the parameter gradients; grad_x [N, in] (or [0, in]) and all parameter gradients
// in one buffer: weights, then biases, in layer order.
std::tuple<Tensor, Tensor> run_backward(RangeKernel<MlpParams> kernel, MlpPass pass, Mlp& mlp, const Tensor& x,
                                        bool need_x, bool need_params) {
  MlpParams& p = mlp.p;
  MlpLayout partial;
  int64_t n_outputs = 0;
  for (int l = 0; l < p.n_layers; ++l) {
    MlpLayer& layer = p.layers[l];
    layer.grad_weight = partial.add(round_up(layer.n_out, kMlpRowPad) * mlp.width_in(l) * mlp.element) / mlp.element;
    if (layer.bias != nullptr) layer.grad_bias = partial.add(mlp.width_out(l) * mlp.element) / mlp.element;
    n_outputs += layer.n_out;
  }
  Tensor grad_x = empty(x, {need_x ? p.n_rows : 0, x.size(1)});
  Tensor grad_params = empty(x, {need_params ? mlp_parameters(p) : 0});
  if (need_x) {
    advise_huge_pages(grad_x.mutable_data_ptr(), grad_x.numel() * mlp.element);
    p.grad_x = grad_x.mutable_data_ptr();
  }
  choose_block(mlp, pass, need_params);
  // Derived from the problem alone, like everything else that fixes the order of sums.
  p.n_partials = std::min({kMaxPartials, (p.n_rows + kRowsPerPartial - 1) / kRowsPerPartial, p.n_blocks});
  p.n_partials = std::max<int64_t>(1, std::min(p.n_partials, std::max<int64_t>(4, kMaxPartialBytes / partial.size)));
  if (need_params) {
    p.partial_size = partial.size / mlp.element;
    p.partials = allocate(x, p.partial_size * p.n_partials, mlp.keep);
    p.grad_params = grad_params.mutable_data_ptr();
  }
  const bool needed = need_x || need_params || p.grad_grad_y != nullptr;
  if (p.n_rows > 0 && needed) pack_weights(mlp, x, true, true);
  run_with_scratch(kernel, mlp, needed ? p.n_partials : 0, 1);
  if (need_params) {
    parallel_units(n_outputs, kReduceGrain, [&](int64_t begin, int64_t end) { kernels().mlp_reduce(p, begin, end); });
  }
  return {grad_x, grad_params};
}

std::tuple<Tensor, Tensor> mlp_backward_cpu(const Tensor& grad_y, const Tensor& x, const std::vector<Tensor>& weights,
                                            const std::vector<Tensor>& biases, int64_t activation,
                                            int64_t output_activation, int64_t factors, bool need_x, bool need_params) {
  Mlp mlp = make_mlp(make_mlp_params(x, weights, biases, activation, output_activation, factors));
  set_grad_y(grad_y, x, mlp.p);
  return run_backward(kernels().mlp_backward, MlpPass::kBackward, mlp, x, need_x, need_params);
}

// The cotangent [N, in] of grad_x pulled back to grad_y [N, out] (or [0, out]), x and parameters as above.
std::tuple<Tensor, Tensor, Tensor> mlp_backward_backward_cpu(const Tensor& cotangent, const Tensor& grad_y,
                                                             const Tensor& x, const std::vector<Tensor>& weights,
                                                             const std::vector<Tensor>& biases, int64_t activation,
                                                             int64_t output_activation, bool need_grad_y, bool need_x,
                                                             bool need_params) {
  Mlp mlp = make_mlp(
      make_mlp_params(x, weights, biases, activation, output_activation, static_cast<int64_t>(MlpFactors::kReal)));
  MlpParams& p = mlp.p;
  set_grad_y(grad_y, x, p);
  check_shape(cotangent, "cotangent", {p.n_rows, x.size(1)});
  check_dtype(cotangent, "cotangent", x.scalar_type());
  STD_TORCH_CHECK(cotangent.is_contiguous(), "`cotangent` must be contiguous");
  p.cotangent = cotangent.const_data_ptr();
  Tensor grad_grad_y = empty(x, {need_grad_y ? p.n_rows : 0, grad_y.size(1)});
  if (need_grad_y) p.grad_grad_y = grad_grad_y.mutable_data_ptr();
  auto [grad_x, grad_params] = run_backward(kernels().mlp_second, MlpPass::kSecond, mlp, x, need_x, need_params);
  return {grad_grad_y, grad_x, grad_params};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) {
  m.impl("mlp", TORCH_BOX(&mlp_cpu));
  m.impl("mlp_backward", TORCH_BOX(&mlp_backward_cpu));
  m.impl("mlp_backward_backward", TORCH_BOX(&mlp_backward_backward_cpu));
}

}  // namespace hashgrid
