// hash_encode on CUDA: checks, allocation and launch. Positions are [n_points, n_dims]; the Python side flattens
// batches.
#include "ops/hash_encode.h"

#include <algorithm>

#include "ops/cuda/device.h"

namespace hashgrid {
namespace {

void make_deterministic(const Tensor& positions, HashEncodeParams& p, Workspace& workspace) {
  p.fixed = static_cast<int64_t*>(workspace.zeros(positions, {p.n_entries, p.n_features}, ScalarType::Long));
  p.largest = static_cast<uint32_t*>(workspace.zeros(positions, {1}, ScalarType::Int));
}

Tensor level_weight_gradient(const Tensor& positions, HashEncodeParams& p, Workspace& workspace) {
  Tensor grad = empty(positions, {p.n_levels});
  p.grad_level_weights = grad.mutable_data_ptr();
  const int64_t n_chunks =
      std::max<int64_t>(1, hash_encode_level_chunks(p.n_points));  // an empty tensor has no pointer
  p.grad_level_chunks = static_cast<double*>(workspace.zeros(positions, {n_chunks, p.n_levels}, ScalarType::Double));
  return grad;
}

Tensor hash_encode_cuda(const Tensor& positions, const Tensor& any_table, const std::optional<Tensor>& level_weights,
                        const std::vector<double>& scales, const std::vector<int64_t>& geometry, int64_t interpolation,
                        int64_t bounds) {
  const DeviceScope device(positions);
  device.check(any_table, "table");
  const Tensor table = aligned(any_table);
  device.check(level_weights, "level_weights");
  HashEncodeParams p =
      make_hash_encode_params(positions, table, level_weights, {scales, geometry}, interpolation, bounds);
  Tensor y = empty(positions, {p.n_points, static_cast<int64_t>(p.n_levels) * p.n_features});
  p.y = y.mutable_data_ptr();
  launch_hash_encode_forward(p, device.stream());
  return y;
}

std::tuple<Tensor, Tensor, Tensor> hash_encode_backward_cuda(
    const Tensor& any_grad_y, const Tensor& positions, const Tensor& any_table,
    const std::optional<Tensor>& level_weights, const std::vector<double>& scales, const std::vector<int64_t>& geometry,
    int64_t interpolation, int64_t bounds, bool need_positions, bool need_table, bool need_level_weights,
    bool deterministic) {
  const DeviceScope device(positions);
  device.check(any_grad_y, "grad_y");
  const Tensor grad_y = aligned(any_grad_y);
  device.check(any_table, "table");
  const Tensor table = aligned(any_table);
  device.check(level_weights, "level_weights");
  HashEncodeParams p =
      make_hash_encode_params(positions, table, level_weights, {scales, geometry}, interpolation, bounds);
  check_grad_y(grad_y, positions, p);
  p.grad_y = grad_y.const_data_ptr();
  Workspace workspace;
  Tensor grad_positions = empty(positions, {need_positions ? p.n_points : 0, p.n_dims});
  Tensor grad_table = torch::stable::new_zeros(positions, {need_table ? p.n_entries : 0, p.n_features});
  Tensor grad_level_weights = empty(positions, {0});
  if (need_positions) {
    p.grad_positions = grad_positions.mutable_data_ptr();
    launch_hash_encode_backward_positions(p, device.stream());
  }
  if (need_table) {
    p.grad_table = grad_table.mutable_data_ptr();
    if (deterministic) make_deterministic(positions, p, workspace);
    launch_hash_encode_backward_table(p, device.stream());
  }
  if (need_level_weights) {
    grad_level_weights = level_weight_gradient(positions, p, workspace);
    launch_hash_encode_backward_level_weights(p, device.stream());
  }
  return {grad_positions, grad_table, grad_level_weights};
}

// Adds the table gradient to `grad_table`, which a trainer keeps from step to step.
// Of the second order, with a cotangent of the position gradient, after that of `grad_features`, another grad_y.
void hash_encode_accumulate_table_gradient_cuda(Tensor grad_table, const std::optional<Tensor>& grad_grad_positions,
                                                const std::optional<Tensor>& any_features, const Tensor& any_grad_y,
                                                const Tensor& positions, const std::optional<Tensor>& level_weights,
                                                const std::vector<double>& scales, const std::vector<int64_t>& geometry,
                                                int64_t interpolation, int64_t bounds, bool deterministic) {
  if (grad_grad_positions.has_value() && any_features.has_value()) {
    hash_encode_accumulate_table_gradient_cuda(grad_table, std::nullopt, std::nullopt, *any_features, positions,
                                               level_weights, scales, geometry, interpolation, bounds, deterministic);
  }
  const DeviceScope device(positions);
  device.check(grad_table, "grad_table");
  device.check(grad_grad_positions, "grad_grad_positions");
  device.check(any_grad_y, "grad_y");
  const Tensor grad_y = aligned(any_grad_y);
  device.check(level_weights, "level_weights");
  HashEncodeParams p =
      make_hash_encode_params(positions, grad_table, level_weights, {scales, geometry}, interpolation, bounds);
  check_dtype(grad_table, "grad_table", positions.scalar_type());
  check_grad_y(grad_y, positions, p);
  set_cotangents(grad_grad_positions, std::nullopt, std::nullopt, positions, p);
  p.grad_y = grad_y.const_data_ptr();
  p.grad_table = grad_table.mutable_data_ptr();
  Workspace workspace;
  if (deterministic) make_deterministic(positions, p, workspace);
  const auto launch =
      grad_grad_positions.has_value() ? launch_hash_encode_second_table : launch_hash_encode_backward_table;
  launch(p, device.stream());
}

// Cotangents of (grad_positions, grad_table, grad_level_weights), each optional, pulled back to
// (grad_y, positions, table, level_weights).
std::tuple<Tensor, Tensor, Tensor, Tensor> hash_encode_backward_backward_cuda(
    const std::optional<Tensor>& grad_grad_positions, const std::optional<Tensor>& grad_grad_table,
    const std::optional<Tensor>& grad_grad_level_weights, const Tensor& any_grad_y, const Tensor& positions,
    const Tensor& any_table, const std::optional<Tensor>& level_weights, const std::vector<double>& scales,
    const std::vector<int64_t>& geometry, int64_t interpolation, int64_t bounds, bool need_positions, bool need_table,
    bool need_level_weights, bool deterministic) {
  const DeviceScope device(positions);
  device.check(grad_grad_positions, "grad_grad_positions");
  device.check(grad_grad_table, "grad_grad_table");
  device.check(grad_grad_level_weights, "grad_grad_level_weights");
  device.check(any_grad_y, "grad_y");
  const Tensor grad_y = aligned(any_grad_y);
  device.check(any_table, "table");
  const Tensor table = aligned(any_table);
  device.check(level_weights, "level_weights");
  HashEncodeParams p =
      make_hash_encode_params(positions, table, level_weights, {scales, geometry}, interpolation, bounds);
  check_grad_y(grad_y, positions, p);
  p.grad_y = grad_y.const_data_ptr();
  set_cotangents(grad_grad_positions, grad_grad_table, grad_grad_level_weights, positions, p);
  Workspace workspace;
  Tensor grad_grad_y = empty(positions, {p.n_points, static_cast<int64_t>(p.n_levels) * p.n_features});
  Tensor grad_positions = empty(positions, {need_positions ? p.n_points : 0, p.n_dims});
  Tensor grad_table = torch::stable::new_zeros(positions, {need_table ? p.n_entries : 0, p.n_features});
  Tensor grad_level_weights = empty(positions, {0});
  p.grad_grad_y = grad_grad_y.mutable_data_ptr();
  if (need_positions) p.grad_positions = grad_positions.mutable_data_ptr();
  if (need_level_weights) grad_level_weights = level_weight_gradient(positions, p, workspace);
  launch_hash_encode_second_points(p, device.stream());
  if (need_table) {
    p.grad_table = grad_table.mutable_data_ptr();
    if (deterministic) make_deterministic(positions, p, workspace);
    launch_hash_encode_second_table(p, device.stream());
  }
  return {grad_grad_y, grad_positions, grad_table, grad_level_weights};
}

}  // namespace

HASHGRID_CUDA_LIBRARY(m) {
  m.impl("hash_encode", TORCH_BOX(&hash_encode_cuda));
  m.impl("hash_encode_backward", TORCH_BOX(&hash_encode_backward_cuda));
  m.impl("hash_encode_accumulate_table_gradient", TORCH_BOX(&hash_encode_accumulate_table_gradient_cuda));
  m.impl("hash_encode_backward_backward", TORCH_BOX(&hash_encode_backward_backward_cuda));
}

}  // namespace hashgrid
