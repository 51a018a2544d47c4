// hash_encode_jet: checks, allocation and launch. Positions are [n_points, n_dims] here; the Python side flattens
// batches.
#include "ops/hash_encode_jet.h"
#include "ops/hash_encode_cpu.h"

namespace hashgrid {
namespace {

constexpr int64_t kJetGrain = 256;   // points per unit
constexpr int64_t kMinJetUnits = 8;  // of the table's gradient: a single level still feeds as many threads

std::tuple<Tensor, Tensor, Tensor> hash_encode_jet_cpu(const Tensor& positions, const Tensor& directions,
                                                       const Tensor& table, const std::vector<double>& scales,
                                                       const std::vector<int64_t>& geometry, int64_t interpolation,
                                                       int64_t bounds) {
  HashEncodeJetParams p =
      make_hash_encode_jet_params(positions, directions, table, {scales, geometry}, interpolation, bounds);
  auto results = make_jet_results(positions, p);
  parallel_units(p.grid.n_points, kJetGrain,
                 [&](int64_t begin, int64_t end) { kernels().hash_encode_jet_forward(p, begin, end); });
  return results;
}

// Gradients of positions, directions and table; what was not asked for has no rows.
std::tuple<Tensor, Tensor, Tensor> hash_encode_jet_backward_cpu(
    const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_first,
    const std::optional<Tensor>& grad_second, const Tensor& positions, const Tensor& directions, const Tensor& table,
    const std::vector<double>& scales, const std::vector<int64_t>& geometry, int64_t interpolation, int64_t bounds,
    bool need_positions, bool need_directions, bool need_table, bool /*deterministic*/) {
  HashEncodeJetParams p =
      make_hash_encode_jet_params(positions, directions, table, {scales, geometry}, interpolation, bounds);
  set_jet_gradients(grad_y, grad_first, grad_second, positions, p);
  Tensor grad_positions = empty(positions, {need_positions ? p.grid.n_points : 0, p.grid.n_dims});
  Tensor grad_directions = empty(positions, {need_directions ? p.grid.n_points : 0, p.n_directions, p.grid.n_dims});
  Tensor grad_table = empty(positions, {need_table ? p.grid.n_entries : 0, p.grid.n_features});
  if (need_positions) p.grid.grad_positions = grad_positions.mutable_data_ptr();
  if (need_directions) p.grad_directions = grad_directions.mutable_data_ptr();
  if (need_positions || need_directions) {
    parallel_units(p.grid.n_points, kJetGrain,
                   [&](int64_t begin, int64_t end) { kernels().hash_encode_jet_backward_points(p, begin, end); });
  }
  if (need_table) {
    torch::stable::zero_(grad_table);  // levels need not cover it
    p.grid.grad_table = grad_table.mutable_data_ptr();
    p.grid.n_shards = static_cast<int32_t>((kMinJetUnits + p.grid.n_levels - 1) / p.grid.n_levels);
    parallel_units(int64_t{p.grid.n_levels} * p.grid.n_shards, 1,
                   [&](int64_t begin, int64_t end) { kernels().hash_encode_jet_backward_table(p, begin, end); });
  }
  return {grad_positions, grad_directions, grad_table};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) {
  m.impl("hash_encode_jet", TORCH_BOX(&hash_encode_jet_cpu));
  m.impl("hash_encode_jet_backward", TORCH_BOX(&hash_encode_jet_backward_cpu));
}

}  // namespace hashgrid
