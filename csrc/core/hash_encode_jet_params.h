// What the kernels of hash_encode_jet take: a grid and lines through each position.
#pragma once

#include <cstdint>

#include "core/hash_encode_params.h"

namespace hashgrid {

struct HashEncodeJetParams {
  HashEncodeParams
      grid;  // positions to y [n_points, n_levels * n_features]; grad_y may be null: zero. No level weights
  int32_t n_directions;
  const void* directions;  // [n_points, n_directions, n_dims]
  void* first;             // [n_points, n_directions, n_levels * n_features]
  void* second;            // [n_points, n_directions, n_levels * n_features]

  const void* grad_first;   // as `first`; null: zero
  const void* grad_second;  // as `second`; null: zero
  void* grad_directions;    // [n_points, n_directions, n_dims] or null
};

}  // namespace hashgrid
