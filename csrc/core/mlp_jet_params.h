// What the kernels of mlp_jet take: a network and curves through each of its inputs.
#pragma once

#include <cstdint>

#include "core/mlp_params.h"

namespace hashgrid {

// What is carried: values, first derivatives along every direction, and second ones, each by itself or in sums over the
// directions, of which there may be fewer: one for the Laplacian.
struct JetShape {
  int64_t n_directions;
  int64_t n_seconds;      // on CUDA 0, too
  int64_t n_slabs;        // 1 + n_directions + n_seconds
  const void* operators;  // [n_seconds, n_directions], weights of the sums; null: n_seconds = n_directions, no sums
};

// A slab is a block's matrix of values or of one of the derivatives. Slabs of a block follow each other in the order of
// JetShape, [n_slabs, points of the block, columns padded to kMlpColumnPad]. Offsets in bytes.
struct MlpJetParams {
  MlpParams mlp;  // n_rows counts points, x [n_rows, n_in] to y [n_rows, n_out]; grad_y may be null: zero
  JetShape shape;
  const void* directions;     // [n_rows, n_directions, n_in], first derivatives of x
  const void* accelerations;  // [n_rows, n_seconds, n_in], its second ones, in the same sums; null: zero
  void* first;                // [n_rows, n_directions, n_out]; a backward on CUDA writes it, too, unless it is null
  void* second;               // [n_rows, n_seconds, n_out]

  const void* grad_first;    // [n_rows, n_directions, n_out]; null: zero
  const void* grad_second;   // [n_rows, n_seconds, n_out]; null: zero
  void* grad_directions;     // [n_rows, n_directions, n_in] or null
  void* grad_accelerations;  // [n_rows, n_seconds, n_in] or null

  int64_t input[kMaxMlpLayers];  // in `scratch`: slabs of a layer's inputs
  int64_t sums[kMaxMlpLayers];   // in `scratch`: slabs of its pre-activations, with the companion (activation_jet.h) in
                                 // place of the values
  int64_t staging[2];            // in `scratch`: slabs of the widest layer
};

}  // namespace hashgrid
