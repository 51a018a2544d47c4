// hash_encode: what the CPU and the CUDA ops check and fill in alike.
#pragma once

#include "core/hash_encode_params.h"
#include "ops/checks.h"
#include "ops/levels.h"

namespace hashgrid {

// What kernels take on every device; `supports` asks the same.
inline bool takes_dims(int64_t n) { return n >= 1 && n <= kMaxDims; }
inline bool takes_features(int64_t n) { return n == 1 || n == 2 || n == 4 || n == kMaxFeatures; }
inline bool takes_table(DType positions, DType table) {
  return (positions == DType::kFloat64) == (table == DType::kFloat64);
}

inline HashEncodeParams make_hash_encode_params(const Tensor& positions, const Tensor& table,
                                                const std::optional<Tensor>& level_weights, const Levels& levels,
                                                int64_t interpolation, int64_t bounds) {
  HashEncodeParams p = {};
  STD_TORCH_CHECK(positions.dim() == 2 && takes_dims(positions.size(1)),
                  "`positions` must have shape [N, D] with D in 1..7, got ", shape_of(positions));
  STD_TORCH_CHECK(table.dim() == 2, "`table` must have shape [n_entries, F], got ", shape_of(table));
  p.n_points = positions.size(0);
  p.n_dims = static_cast<int32_t>(positions.size(1));
  p.n_entries = table.size(0);
  p.n_features = static_cast<int32_t>(table.size(1));
  STD_TORCH_CHECK(takes_features(table.size(1)), "`table` must have 1, 2, 4 or 8 features per entry, got ",
                  table.size(1));
  p.dtype = real_dtype_of(positions, "positions");
  p.table_dtype = dtype_of(table, "table");
  STD_TORCH_CHECK(takes_table(p.dtype, p.table_dtype), "`positions` and `table` must both be float64 or neither, got ",
                  name_of(positions.scalar_type()), " and ", name_of(table.scalar_type()));
  STD_TORCH_CHECK(positions.is_contiguous() && table.is_contiguous(), "`positions` and `table` must be contiguous");
  STD_TORCH_CHECK(interpolation >= 0 && interpolation <= 2, "`interpolation` must be 0, 1 or 2, got ", interpolation);
  STD_TORCH_CHECK(bounds >= 0 && bounds <= 2, "`bounds` must be 0, 1 or 2, got ", bounds);
  p.interpolation = static_cast<Interpolation>(interpolation);
  p.bounds = static_cast<Bounds>(bounds);

  set_levels(levels, p);
  p.level_weights = checked_data(level_weights, "level_weights", {p.n_levels}, positions.scalar_type());
  p.positions = positions.const_data_ptr();
  p.table = table.const_data_ptr();
  return p;
}

inline const void* check_grad_y(const Tensor& grad_y, const Tensor& positions, const HashEncodeParams& p,
                                const char* name = "grad_y") {
  return checked_data(grad_y, name, {p.n_points, static_cast<int64_t>(p.n_levels) * p.n_features},
                      positions.scalar_type());
}

// Cotangents of (grad_positions, grad_table, grad_level_weights); one that is missing is zero.
inline void set_cotangents(const std::optional<Tensor>& grad_grad_positions,
                           const std::optional<Tensor>& grad_grad_table,
                           const std::optional<Tensor>& grad_grad_level_weights, const Tensor& positions,
                           HashEncodeParams& p) {
  const ScalarType dtype = positions.scalar_type();
  p.grad_grad_positions = checked_data(grad_grad_positions, "grad_grad_positions", {p.n_points, p.n_dims}, dtype);
  p.grad_grad_table = checked_data(grad_grad_table, "grad_grad_table", {p.n_entries, p.n_features}, dtype);
  p.grad_grad_level_weights = checked_data(grad_grad_level_weights, "grad_grad_level_weights", {p.n_levels}, dtype);
}

}  // namespace hashgrid
