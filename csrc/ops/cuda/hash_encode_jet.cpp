// hash_encode_jet on CUDA: checks, allocation and launch. Positions are [n_points, n_dims]; the Python side flattens
// batches.
#include "ops/hash_encode_jet.h"
#include "ops/cuda/device.h"

namespace hashgrid {
namespace {

std::tuple<Tensor, Tensor, Tensor> hash_encode_jet_cuda(const Tensor& positions, const Tensor& directions,
                                                        const Tensor& table, const std::vector<double>& scales,
                                                        const std::vector<int64_t>& geometry, int64_t interpolation,
                                                        int64_t bounds) {
  const DeviceScope device(positions);
  device.check(directions, "directions");
  device.check(table, "table");
  HashEncodeJetParams p =
      make_hash_encode_jet_params(positions, directions, table, {scales, geometry}, interpolation, bounds);
  auto results = make_jet_results(positions, p);
  launch_hash_encode_jet_forward(p, device.stream());
  return results;
}

// Gradients of positions, directions and table; what was not asked for has no rows.
std::tuple<Tensor, Tensor, Tensor> hash_encode_jet_backward_cuda(
    const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_first,
    const std::optional<Tensor>& grad_second, const Tensor& positions, const Tensor& directions, const Tensor& table,
    const std::vector<double>& scales, const std::vector<int64_t>& geometry, int64_t interpolation, int64_t bounds,
    bool need_positions, bool need_directions, bool need_table, bool deterministic) {
  STD_TORCH_CHECK(!(deterministic && need_table),
                  "hash_encode_jet sums the gradient of `table` in any order on CUDA, but deterministic algorithms are "
                  "asked for; use the CPU or torch.use_deterministic_algorithms(False)");
  const DeviceScope device(positions);
  device.check(grad_y, "grad_y");
  device.check(grad_first, "grad_first");
  device.check(grad_second, "grad_second");
  device.check(directions, "directions");
  device.check(table, "table");
  HashEncodeJetParams p =
      make_hash_encode_jet_params(positions, directions, table, {scales, geometry}, interpolation, bounds);
  set_jet_gradients(grad_y, grad_first, grad_second, positions, p);
  Tensor grad_positions = empty(positions, {need_positions ? p.grid.n_points : 0, p.grid.n_dims});
  Tensor grad_directions = empty(positions, {need_directions ? p.grid.n_points : 0, p.n_directions, p.grid.n_dims});
  Tensor grad_table = torch::stable::new_zeros(positions, {need_table ? p.grid.n_entries : 0, p.grid.n_features});
  if (need_positions) p.grid.grad_positions = grad_positions.mutable_data_ptr();
  if (need_directions) p.grad_directions = grad_directions.mutable_data_ptr();
  if (need_positions || need_directions) launch_hash_encode_jet_backward_points(p, device.stream());
  if (need_table) {
    p.grid.grad_table = grad_table.mutable_data_ptr();
    launch_hash_encode_jet_backward_table(p, device.stream());
  }
  return {grad_positions, grad_directions, grad_table};
}

}  // namespace

HASHGRID_CUDA_LIBRARY(m) {
  m.impl("hash_encode_jet", TORCH_BOX(&hash_encode_jet_cuda));
  m.impl("hash_encode_jet_backward", TORCH_BOX(&hash_encode_jet_backward_cuda));
}

}  // namespace hashgrid
