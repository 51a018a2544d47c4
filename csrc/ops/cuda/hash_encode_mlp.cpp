// hash_encode_mlp on CUDA: checks, allocation and launch. Positions are [n_points, n_dims]; the Python side flattens
// batches.
#include "ops/cuda/device.h"
#include "ops/hash_encode_mlp.h"

namespace hashgrid {
namespace {

// What no kernel does in one: the kernels of the two ops.
void launch_separately(HashEncodeParams grid, MlpParams p, const Tensor& positions, cudaStream_t stream) {
  Tensor features = empty(positions, {grid.n_points, int64_t{grid.n_levels} * grid.n_features});
  grid.y = features.mutable_data_ptr();
  p.x = grid.y;
  launch_hash_encode_forward(grid, stream);
  const MlpWorkspace sizes = plan_mlp(p, false, false);
  Workspace workspace;
  p.packed = workspace.add(positions, sizes.packed);
  p.scratch = workspace.add(positions, sizes.scratch);
  launch_mlp_forward(p, stream);
}

Tensor hash_encode_mlp_cuda(const Tensor& positions, const Tensor& any_table,
                            const std::optional<Tensor>& level_weights, const std::vector<double>& scales,
                            const std::vector<int64_t>& geometry, int64_t interpolation, int64_t bounds,
                            const std::vector<Tensor>& weights, const std::vector<Tensor>& biases, int64_t activation,
                            int64_t output_activation, int64_t factors) {
  const DeviceScope device(positions);
  device.check(any_table, "table");
  const Tensor table = aligned(any_table);
  device.check(level_weights, "level_weights");
  device.check(weights, "weights");
  device.check(biases, "biases");
  const HashEncodeParams grid =
      make_hash_encode_params(positions, table, level_weights, {scales, geometry}, interpolation, bounds);
  MlpParams p = make_mlp_params(grid, positions, weights, biases, activation, output_activation, factors);
  Tensor y = empty(positions, {p.n_rows, p.layers[p.n_layers - 1].n_out});
  p.y = y.mutable_data_ptr();
  if (p.n_rows == 0) return y;
  if (!has_hash_encode_mlp(grid, p)) {
    launch_separately(grid, p, positions, device.stream());
    return y;
  }
  Workspace workspace;
  p.packed = workspace.add(positions, plan_mlp(p, false, false).packed);
  launch_hash_encode_mlp(grid, p, device.stream());
  return y;
}

}  // namespace

HASHGRID_CUDA_LIBRARY(m) { m.impl("hash_encode_mlp", TORCH_BOX(&hash_encode_mlp_cuda)); }

}  // namespace hashgrid
