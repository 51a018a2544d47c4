// What each kernel needs, as plain structs: pointers, sizes, options. No torch, no ownership, no methods.
#pragma once

#include <cstdint>

#include "core/levels.h"

namespace hashgrid {

constexpr int kMaxFeatures = 8;  // per level
constexpr int kMaxCorners = 1 << kMaxDims;
constexpr int kMaxShDegree = 8;
constexpr int kMaxFrequencies = 64;
constexpr int kMaxCascades = 16;
constexpr int kMarchBrick = 4;        // cells along the side of a brick
constexpr int kMaxBrickDistance = 3;  // what is farther away counts as this far

enum class DType : int32_t { kFloat32, kFloat64, kFloat16, kBFloat16 };
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
};

struct ShEncodeParams {
  int64_t n_points;
  int32_t degree;          // 1..kMaxShDegree
  DType dtype;             // kFloat32 or kFloat64
  const void* directions;  // [n_points, 3]
  void* y;                 // [n_points, degree^2]
  const void* grad_y;      // [n_points, degree^2]
  void* grad_directions;   // [n_points, 3]
};

struct FrequencyEncodeParams {
  int64_t n_inputs;               // points times dimensions
  int32_t n_frequencies;          // 1..kMaxFrequencies
  DType dtype;                    // kFloat32 or kFloat64
  const void* x;                  // [n_inputs]
  void* y;                        // [n_inputs, n_frequencies, 2] sine, cosine
  const void* grad_y;             // [n_inputs, n_frequencies, 2]
  void* grad_x;                   // [n_inputs]
  float scales[kMaxFrequencies];  // 2^k
};

struct AdamStepParams {
  int64_t n_rows;
  int64_t row_size;    // elements per row, the last dimension
  DType dtype;         // of parameter, gradient and moments: kFloat32 or kFloat64
  DType shadow_dtype;  // kFloat16 or kBFloat16
  bool skip_zero;      // rows without gradient stay as they are; one step counter per row
  bool zero_grad;      // consumed gradients are overwritten with zeros
  double lr, beta1, beta2, eps, weight_decay, ema_decay;
  int32_t global_step;              // CPU: number of this step, from 1
  const int32_t* global_step_data;  // CUDA: [1] the same, read on the device
  void* param;                      // [n_rows, row_size]
  void* grad;                       // [n_rows, row_size]
  void* exp_avg;                    // [n_rows, row_size]
  void* exp_avg_sq;                 // [n_rows, row_size]
  void* ema;                        // [n_rows, row_size] or null
  uint16_t* shadow;                 // [n_rows, row_size] or null
  int32_t* steps;                   // [n_rows] if skip_zero, else [1]
  int32_t* ema_last;                // shaped like steps, or null
  // fp32 rows look these up instead of raising to a power; the last value holds for every larger index.
  const float* bias_corrections;  // [n_bias_corrections], by step count
  const float* ema_keeps;         // [n_ema_keeps], ema_decay^i
  int32_t n_bias_corrections;
  int32_t n_ema_keeps;
  const void* lr_tensor;  // [1]; CUDA reads it on the device, or `lr` where this is null
  DType lr_dtype;         // kFloat32 or kFloat64
  double* shared_rates;   // CUDA: [2] unless skip_zero: learning rate times bias correction, weight of the old average
};

constexpr int kMaxAdamList = 16;

// Parameters that are updated together; they share dtype, rates and options, none has `skip_zero`.
struct AdamStepList {
  int32_t n;
  AdamStepParams of[kMaxAdamList];
};

// Sums over rays on CUDA take this many rays per block. Their workspace holds a sum per block, then the total, then a
// word that is not 0 if some ray does not lie where it should.
constexpr int64_t kScanChunk = 1024;

struct RayAabbParams {
  int64_t n_rays;
  double near, far;
  DType dtype;         // of every array: kFloat32 or kFloat64
  const void* rays_o;  // [n_rays, 3]
  const void* rays_d;  // [n_rays, 3]
  const void* aabb;    // [6], low corner, high corner
  void* t_min;         // [n_rays]
  void* t_max;         // [n_rays]
};

struct SphereTraceParams {
  int64_t n_points;  // of live rays
  int64_t n_rays;
  double epsilon, step_scale;
  DType dtype;             // of every real array: kFloat32 or kFloat64
  const void* distances;   // [n_points]
  const int64_t* rays;     // [n_points], to which ray a point belongs
  const void* rays_o;      // [n_rays, 3]
  const void* rays_d;      // [n_rays, 3]
  const void* speed;       // [n_rays], length of the direction
  const void* t_max;       // [n_rays]
  void* state;             // [n_rays, 5], TraceState
  uint8_t* status;         // [n_rays], TraceStatus
  int32_t* n_evaluations;  // [n_rays]
  void* positions;         // [n_points, 3], the next points
};

struct MarchRaysParams {
  int64_t n_rays;
  int64_t max_samples_per_ray;
  double step_size, cone_angle, near, far;
  int32_t resolution[3];  // cells per axis
  int32_t n_cascades;
  DType dtype;             // of rays, aabb and distances: kFloat32 or kFloat64
  const int64_t* counter;  // [2] seed and step of the shift of each ray's samples, or null: none
  const void* rays_o;      // [n_rays, 3]
  const void* rays_d;      // [n_rays, 3]
  const void* limits;      // [n_rays, 2] near and far of each ray, or null: those above
  const void* aabb;        // [6], box of cascade 0
  const uint8_t* bits;     // cell g is bit g & 7 of byte g >> 3; on the CPU aligned and padded to words of 4 bytes
  uint8_t* bricks;         // [n_cascades, resolution / kMarchBrick] or null, see core/ray.h; on the CPU padded likewise
  uint8_t* brick_copies;   // workspace: behind the bricks, as much; on the CPU also four rows of them per cascade

  void* t_begin;  // [n_rays] distance of the first step, jitter included
  void* t_stop;   // [n_rays] no step has its middle behind this; inf where a ray has no samples

  // Set per thread: where the next samples go, ray after ray in no particular order.
  void* samples;       // receives t_start of each sample
  void* lane_samples;  // [kMarchGroups, kMaxLanes, lane_capacity] samples of the rays under way
  int64_t lane_capacity;

  const void** ray_samples;  // [n_rays] the samples of each ray within some `samples`
  int64_t* packed_info;      // [n_rays, 2] first sample, number of samples
  void* t_starts;            // [n_samples]
  void* t_ends;              // [n_samples]
  int64_t* ray_indices;      // [n_samples]

  // A result of fixed size: rays are taken in order as long as their samples fit.
  bool fixed;
  int64_t n_samples;             // size of the result
  const int64_t* n_rays_in_use;  // [1] rays behind these have no samples; null: all have
  int64_t* totals;               // [2] samples of all rays, rays whose samples are in the result

  int64_t* scan;  // CUDA: workspace of the sum over rays, see kScanChunk
  int64_t* cut;   // CUDA, fixed: [1] where the samples in the result end
};

// One struct for the values and the gradients, and for their derivatives along (tangent_sigmas, tangent_features):
// with `second_order` every output receives its derivative instead.
struct CompositeParams {
  int64_t n_rays;
  int64_t n_samples;
  int64_t n_features;
  double early_stop_eps;
  DType dtype;  // of every array of reals: kFloat32 or kFloat64
  bool second_order;
  bool are_alphas;               // `sigmas`, their tangents and gradients are of alphas
  const void* sigmas;            // [n_samples]
  const void* features;          // [n_samples, n_features]
  const void* t_starts;          // [n_samples]
  const void* t_ends;            // [n_samples]
  const int64_t* packed_info;    // [n_rays, 2] first sample, number of samples; rays lie back to back
  const void* tangent_sigmas;    // [n_samples] or null: zero
  const void* tangent_features;  // [n_samples, n_features] or null: zero

  void* ray_features;    // [n_rays, n_features]
  void* opacities;       // [n_rays]
  void* depths;          // [n_rays]
  void* weights;         // [n_samples]
  void* distortion;      // [n_rays]
  void* transmittances;  // [n_samples] or null

  const void* grad_ray_features;  // as the outputs, each null: zero
  const void* grad_opacities;
  const void* grad_depths;
  const void* grad_weights;
  const void* grad_distortion;
  const void* grad_transmittances;
  void* grad_sigmas;    // [n_samples]
  void* grad_features;  // [n_samples, n_features]

  // Set per thread.
  void* scratch;             // [kCompositeRows, scratch_capacity], twice that with second_order
  int64_t scratch_capacity;  // at least the longest ray, and a vector of padding

  void* saved;  // CUDA, backward: [2, n_samples] transmittance and spread, twice that with second_order
};

struct VisibleSamplesParams {
  int64_t n_rays;
  int64_t n_samples;
  double early_stop_eps;
  DType dtype;                 // of every array of reals: kFloat32 or kFloat64
  const void* sigmas;          // [n_samples]
  const void* t_starts;        // [n_samples]
  const void* t_ends;          // [n_samples]
  const int64_t* packed_info;  // [n_rays, 2] first sample, number of samples
  int64_t* kept_info;          // [n_rays, 2] the same of the samples kept
  int64_t* index;              // [n_kept] the samples kept
  int64_t* scan;               // CUDA: workspace of the sum over rays, see kScanChunk
};

// Besides those of visible_samples: kept_info and index are those of the window.
struct WindowSamplesParams : VisibleSamplesParams {
  int64_t begin, end;  // samples of a ray, counted from its first one
  const void* rays_o;  // [n_rays, 3]
  const void* rays_d;  // [n_rays, 3]
  void* positions;     // [n_kept, 3]
};

struct FmaProbeParams {
  int64_t n_rounds;
  float factor, summand;
  float* sink;   // [n_units]
  double* flop;  // [n_units] done
};

struct CounterUniformParams {
  int64_t n;
  const int64_t* counter;  // [2] seed, step
  const int64_t* index;    // [n]
  float* u;                // [n]
};

struct SamplePositionsParams {
  int64_t n_samples;
  int64_t n_rays;
  DType dtype;                 // of every array of reals: kFloat32 or kFloat64
  const void* rays_o;          // [n_rays, 3]
  const void* rays_d;          // [n_rays, 3]
  const int64_t* ray_indices;  // [n_samples]
  const void* t_starts;        // [n_samples]
  const void* t_ends;          // [n_samples]
  void* positions;             // [n_samples, 3]
};

// Views of a scene, row by row in `data`, each with a camera.
struct SampleRaysParams {
  int64_t n_rays;
  int64_t n_pixels;
  int64_t n_views;
  int64_t first_step;       // of the search for a pixel's view: the largest power of two below n_views, or 0
  int32_t n_channels;       // 3 or 4
  const int64_t* counter;   // [2] seed, step
  const uint8_t* data;      // [n_pixels, n_channels]
  const int64_t* offsets;   // [n_views + 1], first pixel of each view
  const int64_t* sizes;     // [n_views, 2] width, height
  const float* c2w;         // [n_views, 3, 4]
  const float* intrinsics;  // [n_views, 4] fx, fy, cx, cy
  int64_t n_plane_points;
  const float* plane_points;  // [n_plane_points, 2] where rays meet the plane at distance 1, or null: by the intrinsics
  const int64_t* plane_rows;  // [n_views, 2] first point of each view, points per row of pixels
  float* rays_o;              // [n_rays, 3]
  float* rays_d;              // [n_rays, 3]
  float* rgba;                // [n_rays, 4]
  float* noise;               // [n_rays, 3]
};

// Rays through a radiance field: samples of the rays, their densities and colours, compositing.
struct RenderRaysParams {
  MarchRaysParams march;  // rays and occupancy grid, fp32; nothing of what it writes
  float early_stop_eps;
  const float* field_aabb;  // [6] box of the field's grid
  float* colors;            // [n_rays, 3]
  float* opacities;         // [n_rays]
  float* depths;            // [n_rays]
  uint64_t* next_ray;       // [1] zero: the rays that have been taken
  uint64_t* n_evaluated;    // [1] zero: receives the number of samples
};

struct OccupancyPointsParams {
  int64_t n_points;
  int64_t n_cells;         // of the grid
  int32_t resolution[3];   // cells per axis
  DType dtype;             // of aabb and points: kFloat32 or kFloat64
  const int64_t* counter;  // [2] seed and step of the place in a cell, or null: its centre
  const int64_t* cells;    // [n_points]
  const void* aabb;        // [6], box of cascade 0
  void* points;            // [n_points, 3]
  int64_t* invalid_cell;   // [1] set to a member of `cells` that is no cell, if there is one
};

// Densities at points of cells, times the length of a step.
struct OccupancyValuesParams {
  OccupancyPointsParams points;  // fp32; nothing of what it writes
  float step_size;               // of cascade 0; doubled from cascade to cascade
  const float* field_aabb;       // [6] box of the field's grid
  float* values;                 // [n_points]
};

struct OccupancyVisibleParams {
  int64_t n_views;
  int64_t n_cells;
  int32_t resolution[3];  // cells per axis
  int32_t n_cascades;
  const float* planes;  // [n_views, 5, 4] plane[:3] . x + plane[3] >= 0 inside the view
  const float* aabb;    // [6], box of cascade 0
  uint8_t* visible;     // [n_cells] 0 or 1
  int32_t* candidates;  // [n_views] scratch, set per thread
};

// Cells whose densities are summed together: the mean must depend on neither threads nor blocks.
constexpr int64_t kOccupancyChunk = 16384;

struct OccupancyUpdateParams {
  int64_t n_cells;
  int64_t n_samples;
  float decay;
  float threshold;  // CPU
  double max_threshold;
  float* density;         // [n_cells]; negative: no camera sees the cell
  uint8_t* bits;          // [ceil(n_cells / 8)]
  const int64_t* cells;   // [n_samples], unique
  const float* values;    // [n_samples]
  double* chunk_sums;     // [n_chunks] sum over the visible cells of each kOccupancyChunk cells
  int64_t* chunk_counts;  // [n_chunks] number of visible cells
  int64_t* invalid_cell;  // [1] set to a member of `cells` that is no cell, if there is one
  float* mean_threshold;  // CUDA: [1] receives the threshold
};

constexpr int64_t kLossChunk = 256;  // rays whose terms are one partial sum

struct PixelLossParams {
  int64_t n_rays;
  int64_t n_channels;
  DType dtype;             // of every array of reals: kFloat32 or kFloat64
  double beta;             // differences up to this count by their square
  const int64_t* n_used;   // [1] rays that count, or null: all
  const void* colors;      // [n_rays, n_channels], composited
  const void* opacities;   // [n_rays]
  const void* background;  // [n_rays, n_channels]
  const void* targets;     // [n_rays, n_channels]
  void* grad_colors;       // [n_rays, n_channels]
  void* grad_opacities;    // [n_rays]
  double* chunk_losses;    // [n_chunks]
  double* chunk_errors;    // [n_chunks]
  void* loss;              // [1]
  double* means;           // [2] loss, squared error
};

enum class Activation : int32_t { kNone, kReLU, kLeakyReLU, kSiLU, kSoftplus, kSigmoid, kTanh, kExp, kSine };

// What the matrix products multiply; sums are float32, or float64 for kFloat64 tensors. Numbered as the ops' argument
// `factors`, hashgrid.util.choices.FACTORS. float16 ends at 6e-8, where gradients begin: only activations and weights
// are rounded to it; gradients keep its 11 bits and an exponent of their own.
enum class MlpFactors : int32_t { kReal, kBFloat16, kFloat16 };

constexpr int kMaxMlpLayers = 9;   // 8 hidden ones and the output
constexpr int kMlpColumnPad = 16;  // columns of a block's matrices: a multiple of every vector width
constexpr int kMlpRowPad = 8;      // rows: a multiple of every register tile's height

// One layer. Widths in brackets are padded to kMlpColumnPad, rows to kMlpRowPad. Offsets in bytes; -1: no such matrix.
struct MlpLayer {
  int32_t n_in;
  int32_t n_out;
  const void* weight;         // [n_out, n_in]
  const void* bias;           // [n_out] or null
  int64_t packed_weight;      // in `packed`: panels of the transposed weight, for the forward product
  int64_t packed_transposed;  // in `packed`: panels of the weight, for the product that pulls gradients back
  int64_t packed_bias;        // in `packed`: [n_out], zeros without biases
  int64_t input;              // in `scratch`: [n_block, n_in], factors (16 bits each with `halves`)
  int64_t input_pairs;        // in `scratch`: [n_block / 2, n_in, 2] bfloat16, backward with `halves`
  int64_t source;             // in `scratch`: [n_block, n_out], what the derivative of a hidden activation is computed
                              // from where the next layer's input cannot serve
  int64_t grad_weight;        // in a partial sum, elements: [n_out rounded up to kMlpRowPad, n_in]
  int64_t grad_bias;          // in a partial sum, elements: [n_out]
  int64_t tangent;            // in `scratch`, second order: [n_block, n_in], derivative of the input along `cotangent`
  int64_t tangent_source;     // in `scratch`, second order: [n_block, n_out], the same of the pre-activations
};

struct MlpParams {
  int64_t n_rows;
  int32_t n_layers;
  int32_t n_block;  // rows that pass through all layers together, a multiple of kMlpRowPad
  int64_t n_blocks;
  int64_t n_partials;  // backward: ranges of blocks, each with its own sum of the parameter gradients
  DType dtype;         // of every tensor: kFloat32 or kFloat64
  MlpFactors factors;
  bool halves;            // factors are kept and multiplied as 16 bits (AVX512_BF16, tensor cores); else rounded reals
  Activation activation;  // of the hidden layers
  Activation output_activation;  // of the last layer
  MlpLayer layers[kMaxMlpLayers];
  const void* x;         // [n_rows, n_in]
  void* y;               // [n_rows, n_out]
  const void* grad_y;    // [n_rows, n_out]
  void* grad_x;          // [n_rows, n_in] or null
  void* partials;        // [n_partials, partial_size] or null
  int64_t partial_size;  // elements
  void* grad_params;     // weights, then biases, each in layer order and unpadded

  void* packed;               // weights and biases as the products read them
  void* scratch;              // of the calling thread
  int64_t staging[2];         // in `scratch`: [n_block, widest layer], sums of the matrix products
  int64_t gradient[2];        // in `scratch`: [n_block, widest layer] 16-bit factors, `halves` only
  int64_t gradient_pairs[2];  // in `scratch`: [n_block / 2, widest layer, 2] bfloat16, `halves` only

  // Two networks as one, of a radiance field: the first n_density_layers make geometry features, of which the first is
  // the logarithm of a density; they and what is known of the row's ray are the inputs of the other layers.
  int32_t n_density_layers;  // 0: one network
  int64_t n_rays;
  int64_t n_ray_features;
  const void* ray_features;  // [n_rays, n_ray_features]
  const int64_t* rays;       // [n_rows]
  void* sigmas;              // [n_rows]
  const void* grad_sigmas;   // [n_rows]
  int64_t log_sigmas;        // in `scratch`: [n_block], of the forward, which the backward runs again

  // Second order, CPU, kReal factors.
  const void* cotangent;      // [n_rows, n_in], of grad_x
  void* grad_grad_y;          // [n_rows, n_out] or null
  int64_t value_gradient[2];  // in `scratch`: [n_block, widest layer], gradients of values beside those of tangents

  // CUDA. With `halves` `scratch` is the shared memory of a block, all widths are padded to 16, and matrices lie in
  // tiles of 16 x 16; without, it is global memory, nothing is padded, and each partial sum is of `n_slice` rows.
  int32_t n_warps;  // `halves`, backward: warps of a block
  int64_t n_slice;
  int64_t units[2];      // in `scratch`: [n_block] powers of two, kFloat16 backward with `halves`: see mlp_fused.cuh
  int64_t shared_bytes;  // `halves`
  int64_t sums;          // in `scratch`: [partial_size] floats; -1: added up in `partials` itself
  int64_t bias_sums;     // in `scratch`: [n_warps, n_bias_sums] floats; -1: no bias gradients
  int64_t n_bias_sums;
};

}  // namespace hashgrid
