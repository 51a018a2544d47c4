// hash_encode: checks, allocation and launch. Positions are [n_points, n_dims] here; the Python side flattens batches.
#include "ops/hash_encode_cpu.h"

namespace hashgrid {
namespace {

// (level, shard) units to have at least: a single level still feeds 8 threads. Each shard of a level finds the corners
// of all points again, so levels are only split where there are few.
constexpr int64_t kMinTableUnits = 8;

// Heaviest levels first: the finest come last in the table and touch the most memory.
void run_table_units(RangeKernel<HashEncodeParams> kernel, HashEncodeParams p) {
  p.n_shards = static_cast<int32_t>((kMinTableUnits + p.n_levels - 1) / p.n_levels);
  const int64_t n_units = static_cast<int64_t>(p.n_levels) * p.n_shards;
  parallel_units(n_units, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) kernel(p, n_units - 1 - unit, n_units - unit);
  });
}

// Adds up soa_grad_positions, one level after the other: a chunk's sum keeps the order of the levels.
void run_levels(RangeKernel<HashEncodeParams> kernel, HashEncodeParams& p) {
  // Nearest has no gradient.
  const int n_levels = p.interpolation == Interpolation::kNearest ? 0 : p.n_levels;
  for (p.current_level = 0; p.current_level < n_levels; ++p.current_level) {
    parallel_units(n_level_chunks(p), 1, [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
  }
}

void backward_positions(HashEncodeParams& p) {
  if (p.dtype == DType::kFloat32) run_levels(kernels().hash_encode_backward_positions, p);
  run_points(kernels().hash_encode_finish_backward_positions, p);
}

// A table gradient with every row the units will not write set to zero.
Tensor empty_table_gradient(const Tensor& positions, const HashEncodeParams& p) {
  Tensor grad = empty(positions, {p.n_entries, p.n_features});
  int64_t covered = 0;
  for (int l = 0; l < p.n_levels; ++l) covered += p.levels[l].size;
  advise_huge_pages(grad.mutable_data_ptr(), grad.numel() * (p.dtype == DType::kFloat64 ? 8 : 4));
  if (covered != p.n_entries) torch::stable::zero_(grad);
  return grad;
}

int64_t n_weight_chunks(const HashEncodeParams& p) { return (p.n_points + kLevelWeightChunk - 1) / kLevelWeightChunk; }

// Chunks are added in order, whatever thread filled them.
Tensor sum_level_chunks(const Tensor& positions, const std::vector<double>& chunks, const HashEncodeParams& p) {
  Tensor out = empty(positions, {p.n_levels});
  for (int l = 0; l < p.n_levels; ++l) {
    double total = 0.0;
    for (int64_t c = 0; c < n_weight_chunks(p); ++c) total += chunks[c * p.n_levels + l];
    if (p.dtype == DType::kFloat64) {
      static_cast<double*>(out.mutable_data_ptr())[l] = total;
    } else {
      static_cast<float*>(out.mutable_data_ptr())[l] = static_cast<float>(total);
    }
  }
  return out;
}

Tensor hash_encode_cpu(const Tensor& positions, const Tensor& table, const std::optional<Tensor>& level_weights,
                       const std::vector<double>& scales, const std::vector<int64_t>& geometry, int64_t interpolation,
                       int64_t bounds) {
  HashEncodeParams p =
      make_hash_encode_params(positions, table, level_weights, {scales, geometry}, interpolation, bounds);
  Tensor y = empty(positions, {p.n_points, static_cast<int64_t>(p.n_levels) * p.n_features});
  advise_huge_pages(y.mutable_data_ptr(), y.numel() * (p.dtype == DType::kFloat64 ? 8 : 4));
  p.y = y.mutable_data_ptr();
  for_each_block(p, [](HashEncodeParams& block) {
    encode_levels(block);
    run_points(kernels().hash_encode_finish_forward, block);
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> hash_encode_backward_cpu(
    const Tensor& grad_y, const Tensor& positions, const Tensor& table, const std::optional<Tensor>& level_weights,
    const std::vector<double>& scales, const std::vector<int64_t>& geometry, int64_t interpolation, int64_t bounds,
    bool need_positions, bool need_table, bool need_level_weights, bool /*deterministic*/) {
  HashEncodeParams p =
      make_hash_encode_params(positions, table, level_weights, {scales, geometry}, interpolation, bounds);
  check_grad_y(grad_y, positions, p);
  p.grad_y = grad_y.const_data_ptr();
  Tensor grad_positions = empty(positions, {need_positions ? p.n_points : 0, p.n_dims});
  Tensor grad_table = need_table ? empty_table_gradient(positions, p) : empty(positions, {0, p.n_features});
  Tensor grad_level_weights = empty(positions, {0});
  if (need_positions) p.grad_positions = grad_positions.mutable_data_ptr();
  if (need_table) p.grad_table = grad_table.mutable_data_ptr();
  if (need_positions || need_table) {
    for_each_block(p, [&](HashEncodeParams& block) {
      prepare(block, {/*cotangents=*/false, /*grad_positions=*/need_positions, /*second=*/false});
      if (need_positions) backward_positions(block);
      if (need_table) run_table_units(kernels().hash_encode_backward_table, block);
    });
  }
  if (need_level_weights) {
    std::vector<double> chunks(n_weight_chunks(p) * p.n_levels);
    p.grad_level_chunks = chunks.data();
    parallel_units(n_weight_chunks(p), 1,
                   [&](int64_t begin, int64_t end) { kernels().hash_encode_backward_level_weights(p, begin, end); });
    grad_level_weights = sum_level_chunks(positions, chunks, p);
  }
  return {grad_positions, grad_table, grad_level_weights};
}

// Adds the table gradient to `grad_table`, which a trainer keeps from step to step: no fresh pages, no zeroing pass.
// With a cotangent of the position gradient it is the second order's, and that of `grad_features`, another grad_y,
// joins it.
void hash_encode_accumulate_table_gradient_cpu(Tensor grad_table, const std::optional<Tensor>& grad_grad_positions,
                                               const std::optional<Tensor>& grad_features, const Tensor& grad_y,
                                               const Tensor& positions, const std::optional<Tensor>& level_weights,
                                               const std::vector<double>& scales, const std::vector<int64_t>& geometry,
                                               int64_t interpolation, int64_t bounds, bool /*deterministic*/) {
  HashEncodeParams p =
      make_hash_encode_params(positions, grad_table, level_weights, {scales, geometry}, interpolation, bounds);
  check_dtype(grad_table, "grad_table", positions.scalar_type());
  check_grad_y(grad_y, positions, p);
  set_cotangents(grad_grad_positions, std::nullopt, std::nullopt, positions, p);
  const bool second = grad_grad_positions.has_value();
  p.grad_y = grad_y.const_data_ptr();
  p.grad_table = grad_table.mutable_data_ptr();
  p.accumulate = true;
  HashEncodeParams first = p;
  if (grad_features.has_value()) first.grad_y = check_grad_y(*grad_features, positions, p, "grad_features");
  const bool joins = second && grad_features.has_value();
  const bool apart = joins && (p.dtype == DType::kFloat64 || p.interpolation == Interpolation::kNearest);
  if (apart) {
    for_each_block(first, [&](HashEncodeParams& block) {
      prepare(block);
      run_table_units(kernels().hash_encode_backward_table, block);
    });
  }
  if (second && p.interpolation == Interpolation::kNearest) return;
  const char* features = static_cast<const char*>(first.grad_y);
  for_each_block(p, [&](HashEncodeParams& block) {
    prepare(block, {/*cotangents=*/second, /*grad_positions=*/false, /*second=*/joins && !apart});
    if (joins && !apart) {
      HashEncodeParams other = block;
      other.grad_y = features;
      other.level_features = block.first_features = block.second_features;
      run_points(kernels().hash_encode_prepare, other);
      features += block.n_points * block.n_levels * block.n_features * int64_t{sizeof(float)};
    }
    run_table_units(second ? kernels().hash_encode_second_table : kernels().hash_encode_backward_table, block);
  });
}

// Cotangents of (grad_positions, grad_table, grad_level_weights), each optional, pulled back to
// (grad_y, positions, table, level_weights).
std::tuple<Tensor, Tensor, Tensor, Tensor> hash_encode_backward_backward_cpu(
    const std::optional<Tensor>& grad_grad_positions, const std::optional<Tensor>& grad_grad_table,
    const std::optional<Tensor>& grad_grad_level_weights, const Tensor& grad_y, const Tensor& positions,
    const Tensor& table, const std::optional<Tensor>& level_weights, const std::vector<double>& scales,
    const std::vector<int64_t>& geometry, int64_t interpolation, int64_t bounds, bool need_positions, bool need_table,
    bool need_level_weights, bool /*deterministic*/) {
  HashEncodeParams p =
      make_hash_encode_params(positions, table, level_weights, {scales, geometry}, interpolation, bounds);
  check_grad_y(grad_y, positions, p);
  p.grad_y = grad_y.const_data_ptr();
  set_cotangents(grad_grad_positions, grad_grad_table, grad_grad_level_weights, positions, p);
  Tensor grad_grad_y = empty(positions, {p.n_points, static_cast<int64_t>(p.n_levels) * p.n_features});
  Tensor grad_positions = empty(positions, {need_positions ? p.n_points : 0, p.n_dims});
  Tensor grad_table = need_table ? empty_table_gradient(positions, p) : empty(positions, {0, p.n_features});
  Tensor grad_level_weights = empty(positions, {0});
  p.grad_grad_y = grad_grad_y.mutable_data_ptr();
  if (need_positions) p.grad_positions = grad_positions.mutable_data_ptr();
  std::vector<double> chunks(need_level_weights ? n_weight_chunks(p) * p.n_levels : 0);
  p.grad_level_chunks = need_level_weights ? chunks.data() : nullptr;
  if (need_table) p.grad_table = grad_table.mutable_data_ptr();
  // What an eikonal loss asks for; all else is rare and takes the scalar kernels.
  const bool positions_only = p.grad_grad_positions != nullptr && p.grad_grad_table == nullptr &&
                              p.grad_grad_level_weights == nullptr && !need_level_weights;
  if (positions_only && p.dtype == DType::kFloat32 && p.interpolation != Interpolation::kNearest) {
    for_each_block(p, [&](HashEncodeParams& block) {
      prepare(block, {/*cotangents=*/true, /*grad_positions=*/true, /*second=*/true});
      run_levels(kernels().hash_encode_second_level, block);
      run_points(kernels().hash_encode_finish_second, block);
      if (need_table) run_table_units(kernels().hash_encode_second_table, block);
    });
  } else {
    parallel_units(n_weight_chunks(p), 1,
                   [&](int64_t begin, int64_t end) { kernels().hash_encode_second_points(p, begin, end); });
    if (need_table) run_table_units(kernels().hash_encode_second_table, p);
  }
  if (need_level_weights) grad_level_weights = sum_level_chunks(positions, chunks, p);
  return {grad_grad_y, grad_positions, grad_table, grad_level_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) {
  m.impl("hash_encode", TORCH_BOX(&hash_encode_cpu));
  m.impl("hash_encode_backward", TORCH_BOX(&hash_encode_backward_cpu));
  m.impl("hash_encode_accumulate_table_gradient", TORCH_BOX(&hash_encode_accumulate_table_gradient_cpu));
  m.impl("hash_encode_backward_backward", TORCH_BOX(&hash_encode_backward_backward_cpu));
}

}  // namespace hashgrid
