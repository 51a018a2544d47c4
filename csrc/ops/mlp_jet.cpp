// mlp_jet: checks, block sizes, allocation and launch. Inputs are [n_points, n_in] here; the Python side flattens
// batches.
#include "ops/mlp_jet.h"
#include "ops/mlp_cpu.h"

namespace hashgrid {
namespace {

constexpr int64_t kJetBlockBytes = 2 * kBlockBytes;  // of a block's matrices: inside L2, with tall enough products

// Matrices of a block of `n_points`, of which there are n_slabs slabs. Returns their size in bytes.
int64_t lay_out_jets(const Mlp& mlp, int64_t n_points, bool backward, MlpJetParams& p) {
  const int64_t column = p.shape.n_slabs * n_points * mlp.element;
  const int last = p.mlp.n_layers - 1;
  MlpLayout scratch;
  int64_t widest = 0;
  for (int l = 0; l <= last; ++l) widest = std::max({widest, mlp.width_in(l), mlp.width_out(l)});
  // A forward alternates between two inputs and needs no sums but the last; a backward keeps all.
  int64_t alternate[3] = {-1, -1, -1};
  for (int64_t& matrix : alternate) {
    if (!backward) matrix = scratch.add(widest * column);
  }
  for (int l = 0; l <= last; ++l) {
    p.input[l] = backward ? scratch.add(mlp.width_in(l) * column) : alternate[l % 2];
    p.sums[l] = backward ? scratch.add(mlp.width_out(l) * column) : alternate[2];
  }
  if (backward) {
    for (int64_t& staging : p.staging) staging = scratch.add(widest * column);
  } else {
    p.staging[0] = alternate[1 - last % 2];  // outputs may lie where the inputs of the layer before the last did
  }
  return scratch.size;
}

void choose_jet_block(Mlp& mlp, bool backward, MlpJetParams& p) {
  const int64_t per_point = lay_out_jets(mlp, kMlpRowPad, backward, p) / kMlpRowPad;
  const int64_t n_points =
      std::min(kMaxBlock, std::max<int64_t>(kMlpRowPad, kJetBlockBytes / per_point)) / kMlpRowPad * kMlpRowPad;
  mlp.scratch_bytes = lay_out_jets(mlp, n_points, backward, p);
  mlp.p.n_block = static_cast<int32_t>(n_points);
  mlp.p.n_blocks = (mlp.p.n_rows + n_points - 1) / n_points;
}

void run_jets(RangeKernel<MlpJetParams> kernel, const Mlp& mlp, const MlpJetParams& params, int64_t units) {
  parallel_units(units, 1, [&](int64_t begin, int64_t end) {
    MlpJetParams p = params;
    p.mlp = mlp.p;
    thread_local Scratch scratch;
    p.mlp.scratch = scratch.at_least(mlp.scratch_bytes);
    kernel(p, begin, end);
  });
}

std::tuple<Tensor, Tensor, Tensor> mlp_jet_cpu(const Tensor& x, const Tensor& directions,
                                               const std::optional<Tensor>& accelerations,
                                               const std::optional<Tensor>& operators,
                                               const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
                                               int64_t activation, int64_t output_activation) {
  MlpJetParams p =
      make_mlp_jet_params(x, directions, accelerations, operators, weights, biases, activation, output_activation);
  auto results = make_jet_results(x, p);
  if (p.mlp.n_rows == 0) return results;
  Mlp mlp = make_mlp(p.mlp);
  choose_jet_block(mlp, false, p);
  pack_weights(mlp, x, true, false);
  run_jets(kernels().mlp_jet_forward, mlp, p, mlp.p.n_blocks);
  return results;
}

// Gradients of x, directions, accelerations and of all parameters in one buffer: weights, then biases, in layer order.
std::tuple<Tensor, Tensor, Tensor, Tensor> mlp_jet_backward_cpu(
    const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_first,
    const std::optional<Tensor>& grad_second, const Tensor& x, const Tensor& directions,
    const std::optional<Tensor>& accelerations, const std::optional<Tensor>& operators,
    const std::vector<Tensor>& weights, const std::vector<Tensor>& biases, int64_t activation,
    int64_t output_activation, bool need_x, bool need_directions, bool need_accelerations, bool need_params) {
  MlpJetParams p =
      make_mlp_jet_params(x, directions, accelerations, operators, weights, biases, activation, output_activation);
  set_jet_gradients(grad_y, grad_first, grad_second, x, p);
  MlpJetGradients grads = make_jet_gradients(x, need_x, need_directions, need_accelerations, need_params, p);
  Mlp mlp = make_mlp(p.mlp);
  choose_jet_block(mlp, true, p);
  const int64_t n_outputs = lay_out_partials(mlp, mlp.p.n_rows * p.shape.n_slabs);
  if (need_params) mlp.p.partials = allocate(x, mlp.p.partial_size * mlp.p.n_partials, mlp.keep);
  const bool needed = need_x || need_directions || need_accelerations || need_params;
  if (mlp.p.n_rows > 0 && needed) pack_weights(mlp, x, true, true);
  run_jets(kernels().mlp_jet_backward, mlp, p, needed ? mlp.p.n_partials : 0);
  if (need_params) {
    parallel_units(n_outputs, kReduceGrain,
                   [&](int64_t begin, int64_t end) { kernels().mlp_reduce(mlp.p, begin, end); });
  }
  return {grads.x, grads.directions, grads.accelerations, grads.params};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) {
  m.impl("mlp_jet", TORCH_BOX(&mlp_jet_cpu));
  m.impl("mlp_jet_backward", TORCH_BOX(&mlp_jet_backward_cpu));
}

}  // namespace hashgrid
