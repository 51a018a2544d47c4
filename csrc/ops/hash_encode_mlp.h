// hash_encode_mlp: what the CPU and the CUDA ops fill in alike.
#pragma once

#include "core/mlp_params.h"
#include "ops/hash_encode.h"
#include "ops/mlp.h"

namespace hashgrid {

// The network behind `grid`; its inputs are no tensor.
inline MlpParams make_mlp_params(const HashEncodeParams& grid, const Tensor& positions,
                                 const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
                                 int64_t activation, int64_t output_activation, int64_t factors) {
  return make_mlp_params(grid.n_points, int64_t{grid.n_levels} * grid.n_features, positions.scalar_type(), grid.dtype,
                         weights, biases, activation, output_activation, factors);
}

}  // namespace hashgrid
