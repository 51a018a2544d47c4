// What the kernels of mlp take, and those of other ops that run networks.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace hashgrid {

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
  void* y;               // [n_rows, n_out]; a backward without `halves` writes it, too, unless it is null
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

  // Second order, kReal factors, of the CPU; CUDA's is a case of MlpJetParams.
  const void* cotangent;      // [n_rows, n_in], of grad_x
  const void* grad_values;    // [n_rows, n_out], of y, whose gradients join those of the second order; or null
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
