// Whether a fused op has a kernel for networks and a grid: what Python asks before it calls one. It describes them in
// numbers, as tensors that a compiler traces have no data; the answer is that of the functions the ops check by.
#pragma once

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "ops/hash_encode.h"
#include "ops/mlp.h"

namespace hashgrid {

struct FusedShape {
  std::vector<int64_t> dtypes;  // DType of every tensor but the table; -1: one that no kernel takes
  int64_t width;                // inputs of the first layer
  std::vector<int64_t> sizes;   // [n_layers, 2], the shapes (out, in) of all weights
  int64_t n_density_layers;     // those of the first network, of two; 0: there is one network
  int64_t n_ray_features;
  int64_t output_activation;  // an Activation
  int64_t factors;            // an MlpFactors
  std::vector<int64_t> grid;  // dimensions, features per level, whether axes differ, DType of the table; empty: no grid
};

// What kernels are chosen by, of networks; nothing where no op takes them.
inline std::optional<MlpParams> networks_of(const FusedShape& shape) {
  const int64_t n_layers = static_cast<int64_t>(shape.sizes.size()) / 2;
  const int64_t n_density = shape.n_density_layers;
  if (shape.dtypes.empty() || shape.sizes.size() % 2 != 0 || !takes_layers(n_layers)) return std::nullopt;
  if (n_density < 0 || n_density >= n_layers || shape.n_ray_features < 0) return std::nullopt;
  if (!takes_activation(shape.output_activation) || !takes_factors(shape.factors)) return std::nullopt;
  for (const int64_t dtype : shape.dtypes) {
    if (dtype != shape.dtypes[0]) return std::nullopt;
  }
  MlpParams p = {};
  p.dtype = static_cast<DType>(shape.dtypes[0]);
  p.factors = static_cast<MlpFactors>(shape.factors);
  p.output_activation = static_cast<Activation>(shape.output_activation);
  p.n_layers = static_cast<int32_t>(n_layers);
  p.n_density_layers = static_cast<int32_t>(n_density);
  p.n_ray_features = shape.n_ray_features;
  if ((p.dtype != DType::kFloat32 && p.dtype != DType::kFloat64) || !takes_products(p.dtype, p.factors)) {
    return std::nullopt;
  }
  int64_t width = shape.width;
  for (int64_t l = 0; l < n_layers; ++l) {
    if (n_density > 0 && l == n_density) width += shape.n_ray_features;
    const int64_t n_out = shape.sizes[2 * l], n_in = shape.sizes[2 * l + 1];
    if (n_in != width || !takes_width(n_in) || !takes_width(n_out)) return std::nullopt;
    p.layers[l].n_in = static_cast<int32_t>(n_in);
    p.layers[l].n_out = static_cast<int32_t>(n_out);
    width = n_out;
  }
  return p;
}

// The same of the grid in front of them, in the dtype of `networks`.
inline std::optional<GridParams> grid_of(const FusedShape& shape, const MlpParams& networks) {
  if (shape.grid.size() != 4 || shape.grid[3] < 0) return std::nullopt;
  GridParams grid = {};
  grid.n_dims = static_cast<int32_t>(shape.grid[0]);
  grid.n_features = static_cast<int32_t>(shape.grid[1]);
  grid.per_axis = shape.grid[2] != 0;
  grid.dtype = networks.dtype;
  grid.table_dtype = static_cast<DType>(shape.grid[3]);
  if (!takes_dims(shape.grid[0]) || !takes_features(shape.grid[1]) || !takes_table(grid.dtype, grid.table_dtype)) {
    return std::nullopt;
  }
  return grid;
}

// Defined by each extension module. `device` is the index of a GPU, -1 of the current one.
bool supports(const std::string& op, int64_t device, const FusedShape& shape);

}  // namespace hashgrid
