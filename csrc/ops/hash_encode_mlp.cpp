// hash_encode_mlp: features go from the levels' workspace to the network a few rows at a time, while they are in the
// cache. Positions are [n_points, n_dims] here; the Python side flattens batches.
#include "ops/hash_encode_mlp.h"

#include "ops/hash_encode_cpu.h"
#include "ops/mlp_cpu.h"

namespace hashgrid {
namespace {

constexpr int64_t kUnitBlocks = 8;  // blocks of the network per unit: 1024 rows of 32 features are 128 KB

// Rows of the result for the points of `grid`, whose levels are in its workspace.
void pass_points(const HashEncodeParams& grid, const Mlp& mlp, void* y) {
  const int64_t unit_rows = kUnitBlocks * mlp.p.n_block, row = static_cast<int64_t>(grid.n_levels) * grid.n_features;
  const int64_t n_out = mlp.p.layers[mlp.p.n_layers - 1].n_out;
  const int64_t feature_bytes = round_up(unit_rows * row * mlp.element, 64);
  parallel_units((grid.n_points + unit_rows - 1) / unit_rows, 1, [&](int64_t begin, int64_t end) {
    thread_local Scratch scratch;
    char* memory = static_cast<char*>(scratch.at_least(feature_bytes + mlp.scratch_bytes));
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t first = unit * unit_rows;
      const int64_t count = std::min(unit_rows, grid.n_points - first);
      HashEncodeParams points = slice_points(grid, first, count);
      points.level_features = advance(grid.level_features, first * grid.n_features * int64_t{sizeof(float)});
      points.y = memory;
      kernels().hash_encode_finish_forward(points, 0, count);
      MlpParams p = mlp.p;
      p.n_rows = count;
      p.n_blocks = (count + p.n_block - 1) / p.n_block;
      p.x = memory;
      p.y = static_cast<char*>(y) + first * n_out * mlp.element;
      p.scratch = memory + feature_bytes;
      kernels().mlp_forward(p, 0, p.n_blocks);
    }
  });
}

Tensor hash_encode_mlp_cpu(const Tensor& positions, const Tensor& table, const std::optional<Tensor>& level_weights,
                           const std::vector<double>& scales, const std::vector<int64_t>& geometry,
                           int64_t interpolation, int64_t bounds, const std::vector<Tensor>& weights,
                           const std::vector<Tensor>& biases, int64_t activation, int64_t output_activation,
                           int64_t factors) {
  const HashEncodeParams grid =
      make_hash_encode_params(positions, table, level_weights, {scales, geometry}, interpolation, bounds);
  Mlp mlp = make_mlp(make_mlp_params(grid, positions, weights, biases, activation, output_activation, factors));
  const int64_t n_out = mlp.p.layers[mlp.p.n_layers - 1].n_out;
  Tensor y = empty(positions, {grid.n_points, n_out});
  if (grid.n_points == 0) return y;
  advise_huge_pages(y.mutable_data_ptr(), y.numel() * mlp.element);
  choose_block(mlp, MlpPass::kForward, false);
  pack_weights(mlp, positions, true, false);
  char* rows = static_cast<char*>(y.mutable_data_ptr());
  for_each_block(grid, [&](HashEncodeParams& block) {
    encode_levels(block);
    pass_points(block, mlp, rows);
    rows += block.n_points * n_out * mlp.element;
  });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) { m.impl("hash_encode_mlp", TORCH_BOX(&hash_encode_mlp_cpu)); }

}  // namespace hashgrid
