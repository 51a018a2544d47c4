// What each kernel needs, as plain structs: pointers, sizes, options. No torch, no ownership, no methods.
#pragma once

#include <cstdint>

namespace hashgrid {

constexpr int kMaxDims = 7;
constexpr int kMaxLevels = 64;
constexpr int kMaxCorners = 1 << kMaxDims;

enum class DType : int32_t { kFloat32, kFloat64, kFloat16, kBFloat16 };
enum class Interpolation : int32_t { kLinear, kSmoothstep, kNearest };
enum class Bounds : int32_t { kClamp, kZero, kNone };

// How a raw 32-bit index becomes an entry of its level; all three equal `index % size`.
enum class IndexWrap : int32_t {
  kMask,     // size is a power of two
  kOnce,     // index < 2 * size is known: one conditional subtraction
  kModulo,
};

struct GridLevel {
  float scale;          // cells per unit length
  uint32_t resolution;  // vertices per axis
  uint32_t size;        // entries
  int64_t offset;       // first entry
  bool hashed;
  IndexWrap wrap;
};

struct HashEncodeParams {
  int64_t n_points;
  int64_t n_entries;
  int32_t n_dims;
  int32_t n_levels;
  int32_t n_features;
  int32_t n_shards;  // backward: each level's table is split into this many ranges of entries
  float shift;       // added to scale * x
  DType dtype;       // of positions, outputs and gradients: kFloat32 or kFloat64
  DType table_dtype;
  Interpolation interpolation;
  Bounds bounds;
  GridLevel levels[kMaxLevels];
  const void* positions;      // [n_points, n_dims]
  const void* table;          // [n_entries, n_features]
  const void* level_weights;  // [n_levels] or null: all ones
  void* y;                    // [n_points, n_levels * n_features]

  const void* grad_y;        // [n_points, n_levels * n_features]
  void* grad_positions;      // [n_points, n_dims] or null
  void* grad_table;          // [n_entries, n_features] or null
  double* grad_level_chunks;  // [n_chunks, n_levels] or null: partial sums of the level weight gradient

  // Second order: cotangents of the three gradients above (null: zero) and what they are pulled back to (null: not needed).
  const void* grad_grad_positions;      // [n_points, n_dims]
  const void* grad_grad_table;          // [n_entries, n_features]
  const void* grad_grad_level_weights;  // [n_levels]
  void* grad_grad_y;                    // [n_points, n_levels * n_features]

  bool accumulate;  // add to grad_table instead of overwriting it

  // Workspace, fp32 only.
  int32_t current_level;      // backward to positions: the level this pass adds
  int64_t soa_stride;         // n_points rounded up to a multiple of every vector width
  float* soa_positions;       // [n_dims, soa_stride], bounds applied, 0 where not finite
  float* soa_grad_positions;  // [n_dims, soa_stride]
  float* level_features;      // [n_levels, n_points, n_features]: of y, or of grad_y with level weights applied
};

struct AdamStepParams {
  int64_t n_rows;
  int64_t row_size;     // elements per row, the last dimension
  DType dtype;          // of parameter, gradient and moments: kFloat32 or kFloat64
  DType shadow_dtype;   // kFloat16 or kBFloat16
  bool skip_zero;       // rows without gradient stay as they are; one step counter per row
  bool zero_grad;       // consumed gradients are overwritten with zeros
  double lr, beta1, beta2, eps, weight_decay, ema_decay;
  int32_t global_step;  // number of this step, from 1
  void* param;          // [n_rows, row_size]
  void* grad;           // [n_rows, row_size]
  void* exp_avg;        // [n_rows, row_size]
  void* exp_avg_sq;     // [n_rows, row_size]
  void* ema;            // [n_rows, row_size] or null
  uint16_t* shadow;     // [n_rows, row_size] or null
  int32_t* steps;       // [n_rows] if skip_zero, else [1]
  int32_t* ema_last;    // shaped like steps, or null
  // fp32 rows look these up instead of raising to a power; the last value holds for every larger index.
  const float* bias_corrections;  // [n_bias_corrections], by step count
  const float* ema_keeps;         // [n_ema_keeps], ema_decay^i
  int32_t n_bias_corrections;
  int32_t n_ema_keeps;
};

}  // namespace hashgrid
