// What the kernels of hash_encode take, and those of other ops that read a grid (GridParams).
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/levels.h"

namespace hashgrid {

constexpr int kMaxFeatures = 8;  // per level
constexpr int kMaxCorners = 1 << kMaxDims;

enum class Interpolation : int32_t { kLinear, kSmoothstep, kNearest };
enum class Bounds : int32_t { kClamp, kZero, kNone };

// What reading features of a grid takes.
struct GridParams {
  int64_t n_points;
  int64_t n_entries;
  int32_t n_dims;
  int32_t n_levels;
  int32_t n_features;
  float shift;  // added to scale * x
  DType dtype;  // of positions, outputs and gradients: kFloat32 or kFloat64
  DType table_dtype;
  Interpolation interpolation;
  Bounds bounds;
  bool per_axis;                 // scales and resolutions are those of HashEncodeParams::axes
  GridLevel levels[kMaxLevels];  // with `per_axis`, of the first axis
  const void* positions;         // [n_points, n_dims]
  const void* table;             // [n_entries, n_features]
  const void* level_weights;     // [n_levels] or null: all ones
};

struct HashEncodeParams : GridParams {
  GridAxes axes;  // with `per_axis`
  void* y;        // [n_points, n_levels * n_features]

  const void* grad_y;         // [n_points, n_levels * n_features]
  void* grad_positions;       // [n_points, n_dims] or null
  void* grad_table;           // [n_entries, n_features] or null
  double* grad_level_chunks;  // [n_chunks, n_levels] or null: partial sums of the level weight gradient

  // Second order: cotangents of the three gradients above (null: zero) and what they are pulled back to (null: not
  // needed).
  const void* grad_grad_positions;      // [n_points, n_dims]
  const void* grad_grad_table;          // [n_entries, n_features]
  const void* grad_grad_level_weights;  // [n_levels]
  void* grad_grad_y;                    // [n_points, n_levels * n_features]

  // Workspace of CUDA. With `fixed`, table gradients are summed in integers, which no order changes: contributions are
  // scaled by a power of two that keeps the sum of all of them below 2^62.
  int64_t* fixed;            // [n_entries, n_features] zeros, or null: sums as they come
  uint32_t* largest;         // [1] zero; receives the bits of the largest contribution's magnitude, in fp32
  void* grad_level_weights;  // [n_levels] sum of the chunks

  // Workspace of the CPU; from current_level on, fp32 only.
  bool accumulate;            // add to grad_table instead of overwriting it
  int32_t n_shards;           // backward: each level's table is split into this many ranges of entries
  int32_t current_level;      // backward to positions: the level this pass adds
  int64_t soa_stride;         // n_points rounded up to a multiple of every vector width
  float* soa_positions;       // [n_dims, soa_stride], bounds applied, 0 where not finite
  float* soa_grad_positions;  // [n_dims, soa_stride]
  int64_t level_stride;       // floats from one level's features to the next
  float* level_features;      // [n_levels, n_points, n_features]: of y, or of grad_y with level weights applied
  float* soa_cotangents;      // [n_dims, soa_stride] of grad_positions, 0 where bounds cut the gradient; or null
  float* second_features;     // [n_levels, n_points, n_features] of grad_grad_y, before level weights
  float* first_features;      // as level_features: a grad_y of the first order, whose table gradient joins; or null
};

}  // namespace hashgrid
