// hash_encode: what the CPU and the CUDA ops check and fill in alike.
#pragma once

#include "core/hash_encode_params.h"
#include "ops/checks.h"
#include "ops/levels.h"

namespace hashgrid {

inline HashEncodeParams make_hash_encode_params(const Tensor& positions, const Tensor& table,
                                                const std::optional<Tensor>& level_weights, const Levels& levels,
                                                int64_t interpolation, int64_t bounds) {
  HashEncodeParams p = {};
  STD_TORCH_CHECK(positions.dim() == 2 && positions.size(1) >= 1 && positions.size(1) <= kMaxDims,
                  "`positions` must have shape [N, D] with D in 1..7, got ", shape_of(positions));
  STD_TORCH_CHECK(table.dim() == 2, "`table` must have shape [n_entries, F], got ", shape_of(table));
  p.n_points = positions.size(0);
  p.n_dims = static_cast<int32_t>(positions.size(1));
  p.n_entries = table.size(0);
  p.n_features = static_cast<int32_t>(table.size(1));
  STD_TORCH_CHECK(p.n_features == 1 || p.n_features == 2 || p.n_features == 4 || p.n_features == 8,
                  "`table` must have 1, 2, 4 or 8 features per entry, got ", table.size(1));
  p.dtype = real_dtype_of(positions, "positions");
  p.table_dtype = dtype_of(table, "table");
  STD_TORCH_CHECK((p.dtype == DType::kFloat64) == (p.table_dtype == DType::kFloat64),
                  "`positions` and `table` must both be float64 or neither, got ", name_of(positions.scalar_type()),
                  " and ", name_of(table.scalar_type()));
  STD_TORCH_CHECK(positions.is_contiguous() && table.is_contiguous(), "`positions` and `table` must be contiguous");
  STD_TORCH_CHECK(interpolation >= 0 && interpolation <= 2, "`interpolation` must be 0, 1 or 2, got ", interpolation);
  STD_TORCH_CHECK(bounds >= 0 && bounds <= 2, "`bounds` must be 0, 1 or 2, got ", bounds);
  p.interpolation = static_cast<Interpolation>(interpolation);
  p.bounds = static_cast<Bounds>(bounds);

  set_levels(levels, p);
  if (level_weights.has_value()) {
    check_shape(*level_weights, "level_weights", {p.n_levels});
    check_dtype(*level_weights, "level_weights", positions.scalar_type());
    STD_TORCH_CHECK(level_weights->is_contiguous(), "`level_weights` must be contiguous");
    p.level_weights = level_weights->const_data_ptr();
  }
  p.positions = positions.const_data_ptr();
  p.table = table.const_data_ptr();
  return p;
}

inline void check_grad_y(const Tensor& grad_y, const Tensor& positions, const HashEncodeParams& p) {
  check_shape(grad_y, "grad_y", {p.n_points, static_cast<int64_t>(p.n_levels) * p.n_features});
  check_dtype(grad_y, "grad_y", positions.scalar_type());
  STD_TORCH_CHECK(grad_y.is_contiguous(), "`grad_y` must be contiguous");
}

// Cotangents of (grad_positions, grad_table, grad_level_weights); one that is missing is zero.
inline void set_cotangents(const std::optional<Tensor>& grad_grad_positions,
                           const std::optional<Tensor>& grad_grad_table,
                           const std::optional<Tensor>& grad_grad_level_weights, const Tensor& positions,
                           HashEncodeParams& p) {
  const auto checked = [&](const std::optional<Tensor>& tensor, const char* name,
                           const std::vector<int64_t>& shape) -> const void* {
    if (!tensor.has_value()) return nullptr;
    check_shape(*tensor, name, shape);
    check_dtype(*tensor, name, positions.scalar_type());
    STD_TORCH_CHECK(tensor->is_contiguous(), "`", name, "` must be contiguous");
    return tensor->const_data_ptr();
  };
  p.grad_grad_positions = checked(grad_grad_positions, "grad_grad_positions", {p.n_points, p.n_dims});
  p.grad_grad_table = checked(grad_grad_table, "grad_grad_table", {p.n_entries, p.n_features});
  p.grad_grad_level_weights = checked(grad_grad_level_weights, "grad_grad_level_weights", {p.n_levels});
}

}  // namespace hashgrid
