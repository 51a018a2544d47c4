// What the kernels of mlp_jet take: a network and curves through each of its inputs.
#pragma once

#include <cstdint>

#include "core/mlp_params.h"

namespace hashgrid {

// A slab is a block's matrix of values, of first or of second derivatives along one direction. Slabs of a block follow
// each other, [1 + 2 n_directions, points of the block, columns padded to kMlpColumnPad]: values, first derivatives
// along every direction, second ones. Offsets in bytes; -1: no such matrix.
struct MlpJetParams {
  MlpParams mlp;  // n_rows counts points, x [n_rows, n_in] to y [n_rows, n_out]; grad_y may be null: zero
  int32_t n_directions;
  const void* directions;     // [n_rows, n_directions, n_in], first derivatives of x
  const void* accelerations;  // the same, second derivatives of x; null: zero
  void* first;                // [n_rows, n_directions, n_out]
  void* second;               // [n_rows, n_directions, n_out]

  const void* grad_first;    // [n_rows, n_directions, n_out]; null: zero
  const void* grad_second;   // [n_rows, n_directions, n_out]; null: zero
  void* grad_directions;     // [n_rows, n_directions, n_in] or null
  void* grad_accelerations;  // [n_rows, n_directions, n_in] or null

  int64_t input[kMaxMlpLayers];  // in `scratch`: slabs of a layer's inputs
  int64_t sums[kMaxMlpLayers];   // in `scratch`: slabs of its pre-activations, with the companion (activation_jet.h) in
                                 // place of the values
  int64_t staging[2];            // in `scratch`: slabs of the widest layer
};

}  // namespace hashgrid
