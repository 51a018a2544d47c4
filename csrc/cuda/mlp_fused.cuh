// The MLP on tensor cores, fused: forward, and the backward, which computes the forward again, keeps each layer's
// factors in shared memory and sums up parameter gradients per block; derivatives that need the value before the
// activation take that product a second time, which is cheaper than fp32 copies in shared memory and gives the same
// bits.
#pragma once

#include "cuda/radiance_tiles.cuh"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kTileSums = 256;      // of a stored tile of sums
constexpr int kMaxFusedRows = 128;  // of a block
// Blocks of a launch: at width 64, sm_90 has room for three on each of 128 multiprocessors, for two with both networks
// of a field. sm_80 has room for two and sm_86 for one, by shared memory, sm_100 for two, by registers.
constexpr int kMaxFusedPartials = 384;
constexpr int kMaxJoinedPartials = 256;
// Rows of a partial sum, at least. With the number of rows this fixes the order of sums, on all cards whose shared
// memory has room for as many warps.
constexpr int kRowsPerPartial = 128;

// ---- fused forward -----------------------------------------------------------------------------------------------

// Body of mlp_fused_forward_kernel, on its own so that it is left out where there are no such instructions.
template <class Half, int kTiles, int kM, bool kReLU>
__device__ inline void fused_forward(const MlpParams& p) {
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kForwardWarps + warp_index()) * (kM * kTile);
  if (first >= p.n_rows) return;
  Factors<Half, kTiles, kM> factors;
  load_user_factors(UserRows(p.x, first, p.n_rows, p.layers[0].n_in), &factors);
  pass_hidden_layers<Half, kTiles, kM, kReLU>(p, 0, p.n_layers - 1, &factors);
  write_last_layer(p, first, factors);
}

// Warp: kM * 16 rows of x [n_rows, n_in] through all layers, each at most kTiles * 16 wide, to rows of y [n_rows,
// n_out]. A row's factors stay in the registers of its warp; warps share packed weights in the L1 cache and nothing
// else. Sums over a layer's inputs are fp32, in the order of tiles of 16 and as the tensor cores add within one;
// factors are rounded. kReLU: of the hidden layers.
template <class Half, int kTiles, int kM, bool kReLU>
__global__ void __launch_bounds__(kForwardWarps* kWarpSize, forward_blocks(kTiles))
    mlp_fused_forward_kernel(HASHGRID_PARAMS MlpParams p) {
  if constexpr (kHasMma) fused_forward<Half, kTiles, kM, kReLU>(p);
}

// ---- fused backward ----------------------------------------------------------------------------------------------

// A matrix of factors in shared memory, [row tiles, n_tiles] stored tiles. Word i of a lane's four lies at
// [i, lane]: a lane writes without bank conflicts, and each quarter is a matrix of 8 rows of 16 bytes, for
// load_transposed.
struct StoredFactors {
  uint32_t* words;
  int n_tiles;

  __device__ uint32_t* tile(int row_tile, int tile) const { return words + (row_tile * n_tiles + tile) * kTileWords; }
};

__device__ inline StoredFactors stored_factors(unsigned char* shared, int64_t offset, int width) {
  return {reinterpret_cast<uint32_t*>(shared + offset), tiles_of(width)};
}

// A lane reads back what it has written itself, so that no barrier is needed.
template <int kM>
__device__ inline void store_tile(const StoredFactors& stored, int tile, const uint32_t (&words)[kM][4]) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    uint32_t* to = stored.tile(warp_index() * kM + m, tile) + lane_index();
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i * kWarpSize] = words[m][i];
  }
}

template <int kM>
__device__ inline void load_tile(const StoredFactors& stored, int tile, uint32_t (&words)[kM][4]) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    const uint32_t* from = stored.tile(warp_index() * kM + m, tile) + lane_index();
#pragma unroll
    for (int i = 0; i < 4; ++i) words[m][i] = from[i * kWarpSize];
  }
}

// All tiles of a warp's rows.
template <class Half, int kTiles, int kM>
__device__ inline void load_factors(const StoredFactors& stored, Factors<Half, kTiles, kM>* factors) {
#pragma unroll
  for (int k = 0; k < kTiles; ++k) {
    if (k < stored.n_tiles) load_tile(stored, k, factors->words[k]);
  }
}

// What the derivative of a hidden activation is computed from, in tile `tile` of the outputs of layer l - 1: the
// factors of layer l where their sign says all, else the value before the activation, computed again from stored
// factors.
template <class Half, int kM>
__device__ inline void load_source(const MlpParams& p, Activation activation, unsigned char* shared, int l, int tile,
                                   Sums<kM>* source) {
  if (derivative_reads_sign(activation)) {
    uint32_t words[kM][4];
    load_tile(stored_factors(shared, p.layers[l].input, p.layers[l].n_in), tile, words);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        source->values[m][2 * i] = low_of<Half>(words[m][i]);
        source->values[m][2 * i + 1] = high_of<Half>(words[m][i]);
      }
    }
    return;
  }
  const MlpLayer& below = p.layers[l - 1];
  const StoredFactors stored = stored_factors(shared, below.input, below.n_in);
  const PackedWeights* weights = in_packed<PackedWeights>(p, below.packed_weight) + tile * stored.n_tiles * kWarpSize;
  begin_with_bias(p, below, tile, source);
  for (int k = 0; k < stored.n_tiles; ++k) {
    uint32_t words[kM][4];
    load_tile(stored, k, words);
    add_product<Half>(words, load_weights(weights, k), source);
  }
}

// ---- gradients in float16 ----------------------------------------------------------------------------------------
//
// float16 ends at 6e-8 and 65504, gradients do not: those of a mean over 2^18 rows begin at 4e-6. So each row of a
// stored gradient is in a unit of its own, a power of two, which the product's sums are multiplied by: exact, no row
// depends on another, and no loss scale is needed. A unit per tile or block would cost less, but one row of 1e9 would
// then erase those beside it. Gradients of weights sum over rows, which there come into the unit of the block's
// largest: a row 2^22 times smaller than the largest may drop out, also where no larger one meets it in a sum.

template <class Half>
constexpr bool kHasUnits = std::is_same_v<Half, Float16>;

// A row's first values are below 2^13 units, all less than 2^15: later ones may be 4 times larger before the unit has
// to grow, and 2^-14, below which float16 loses bits, is 2^26 times smaller.
constexpr int kUnitBits = 12;
constexpr float kMaxUnits = 32768.0f;
constexpr uint32_t kMinUnit = uint32_t{1} << 23;  // 2^-126, of rows of zeros

// Of a warp's rows, those that row_of gives a lane: bits of a power of two.
template <int kM>
struct RowUnits {
  uint32_t bits[kM][2];

  __device__ RowUnits() {
#pragma unroll
    for (int m = 0; m < kM; ++m) bits[m][0] = bits[m][1] = kMinUnit;
  }
};

__device__ inline float inverse_power(uint32_t bits) { return __uint_as_float((uint32_t{254} << 23) - bits); }

// Gradients of tile `tile` in their rows' units. Where a row outgrows its unit, it gets a larger one, and tiles stored
// before follow; to know a row's largest value beforehand would take all its tiles in registers, 64 more at width 64.
template <class Half, int kM>
__device__ inline void scale_rows(const StoredFactors& stored, int tile, Sums<kM>* grad, RowUnits<kM>* units) {
  bool any_grown = false;
  float shrink[kM][2];
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float top = 0.0f;
#pragma unroll
      for (int v = 0; v < 8; ++v) {
        // Infinity times 0 is NaN, which fmaxf passes over: the finite values of such a row stay what they are.
        const float x = grad->values[m][v];
        if (v / 2 % 2 == h) top = fmaxf(top, fmaf(x, 0.0f, fabsf(x)));
      }
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
      const uint32_t before = units->bits[m][h];
      const bool grown = top >= kMaxUnits * __uint_as_float(before);
      if (grown) units->bits[m][h] = (__float_as_uint(top) & 0x7f800000u) - (uint32_t{kUnitBits} << 23);
      shrink[m][h] = __uint_as_float(before) * inverse_power(units->bits[m][h]);
      any_grown = any_grown || grown;
#pragma unroll
      for (int v = 0; v < 8; ++v) {
        if (v / 2 % 2 == h) grad->values[m][v] *= inverse_power(units->bits[m][h]);
      }
    }
  }
  if (tile == 0 || !__any_sync(0xffffffffu, any_grown)) return;
  for (int t = 0; t < tile; ++t) {
    uint32_t words[kM][4];
    load_tile(stored, t, words);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        words[m][i] = multiply_pair<Half>(words[m][i], pack_pair<Half>(shrink[m][i % 2], shrink[m][i % 2]));
      }
    }
    store_tile(stored, t, words);
  }
}

// A gradient in shared memory: factors and the units of the block's rows.
struct StoredGradient {
  StoredFactors factors;
  uint32_t* units;  // [n_block] bits of a power of two, if kHasUnits
};

// The gradient of layer l's sums. It takes the place of the factors that became of them, those of layer l + 1; only the
// last layer's has memory of its own. Units alternate between two places.
__device__ inline StoredGradient stored_gradient(const MlpParams& p, unsigned char* shared, int l) {
  const int64_t offset = l + 1 < p.n_layers ? p.layers[l + 1].input : p.gradient[0];
  return {stored_factors(shared, offset, p.layers[l].n_out), reinterpret_cast<uint32_t*>(shared + p.units[l % 2])};
}

// Rounds and stores a tile of gradients, with Float16 in units: `grad` is lost.
template <class Half, int kM>
__device__ inline void store_gradient(const StoredGradient& stored, int tile, Sums<kM>* grad, RowUnits<kM>* units) {
  if constexpr (kHasUnits<Half>) scale_rows<Half>(stored.factors, tile, grad, units);
  uint32_t words[kM][4];
  pack_sums<Half>(*grad, words);
  store_tile(stored.factors, tile, words);
}

// After the last tile. All four lanes of a row know its unit, one writes it.
template <class Half, int kM>
__device__ inline void store_units(const StoredGradient& stored, const RowUnits<kM>& units) {
  if constexpr (kHasUnits<Half>) {
    if (lane_index() % 4 == 0) {
#pragma unroll
      for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int h = 0; h < 2; ++h) stored.units[(warp_index() * kM + m) * kTile + row_of(2 * h)] = units.bits[m][h];
      }
    }
    __syncwarp();
  }
}

// Sums of the product of a stored gradient, taken out of its rows' units.
template <class Half, int kM>
__device__ inline void apply_units(const StoredGradient& stored, Sums<kM>* sums) {
  if constexpr (kHasUnits<Half>) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int v = 0; v < 8; ++v) {
        sums->values[m][v] *= __uint_as_float(stored.units[(warp_index() * kM + m) * kTile + row_of(v)]);
      }
    }
  }
}

// The largest unit of a block's rows, the same in every warp.
__device__ inline uint32_t largest_unit(const StoredGradient& stored, int n_row_tiles) {
  uint32_t largest = kMinUnit;
  for (int row = lane_index(); row < n_row_tiles * kTile; row += kWarpSize) {
    largest = stored.units[row] > largest ? stored.units[row] : largest;
  }
#pragma unroll
  for (int step = 1; step < kWarpSize; step *= 2) {
    const uint32_t other = __shfl_xor_sync(0xffffffffu, largest, step);
    largest = other > largest ? other : largest;
  }
  return largest;
}

// ---- gradients of the parameters ---------------------------------------------------------------------------------

// Adds a tile's sums over rows to the warp's own sum of the gradient of layer l's bias.
template <int kM>
__device__ inline void add_bias_gradient(const MlpParams& p, unsigned char* shared, int l, int tile,
                                         const Sums<kM>& grad) {
  if (p.bias_sums < 0) return;
  const int64_t first_bias = p.partial_size - p.n_bias_sums;
  float* bias_sums = reinterpret_cast<float*>(shared + p.bias_sums) + warp_index() * p.n_bias_sums +
                     (p.layers[l].grad_bias - first_bias) + tile * kTile;
#pragma unroll
  for (int v = 0; v < 8; ++v) {
    if (v / 2 % 2 != 0) continue;
    float total = 0.0f;
#pragma unroll
    for (int m = 0; m < kM; ++m) total += grad.values[m][v] + grad.values[m][v + 2];
#pragma unroll
    for (int step = 4; step < kWarpSize; step *= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
    if (lane_index() < 4) bias_sums[column_of(v)] += total;
  }
  __syncwarp();
}

// Squares of two by two tiles of a matrix of so many tiles.
__device__ inline int n_squares(int tiles_out, int tiles_in) { return (tiles_out + 1) / 2 * ((tiles_in + 1) / 2); }

// A block's sums of weight gradients: in shared memory, or where that has no room for them in its partial sum. One
// pointer to either would make every access a generic one, which finds out at run time what memory it is in.
struct WeightSums {
  float* shared;
  float* partial;
  bool in_shared;

  __device__ WeightSums from(int64_t i) const { return {shared + i, partial + i, in_shared}; }
};

__device__ inline void add_to_row(const float (&values)[4], float* sums) {
  float total[4];
  load_row<float, 4>(sums, total);
#pragma unroll
  for (int v = 0; v < 4; ++v) total[v] += values[v];
  store_row<float, 4>(sums, total);
}

// Of add_weight_gradient, a warp's square of kOut x kIn tiles from tile (out, in) on. `unit_bits`: of the block.
template <class Half, int kOut, int kIn>
__device__ inline void add_square(const StoredGradient& stored, const StoredFactors& input, int n_row_tiles,
                                  uint32_t unit_bits, int out, int in, const WeightSums& sums) {
  Sums<kOut> total[kIn] = {};
  for (int row = 0; row < n_row_tiles; ++row) {
    uint32_t g[kOut][4], a[kIn][4];
#pragma unroll
    for (int o = 0; o < kOut; ++o) load_transposed<true>(stored.factors.tile(row, out + o), g[o]);
#pragma unroll
    for (int i = 0; i < kIn; ++i) load_transposed<false>(input.tile(row, in + i), a[i]);
    if constexpr (kHasUnits<Half>) {
      // All rows in the block's unit: registers 0 and 1 hold rows 2t and 2t + 1, 2 and 3 those 8 below.
      const float inverse = inverse_power(unit_bits);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint32_t* pair = stored.units + row * kTile + h * 8 + lane_index() % 4 * 2;
        const uint32_t ratio = pack_pair<Half>(__uint_as_float(pair[0]) * inverse, __uint_as_float(pair[1]) * inverse);
#pragma unroll
        for (int o = 0; o < kOut; ++o) {
          g[o][2 * h] = multiply_pair<Half>(g[o][2 * h], ratio);
          g[o][2 * h + 1] = multiply_pair<Half>(g[o][2 * h + 1], ratio);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kIn; ++i) {
      add_product<Half>(g, {{a[i][0], a[i][1], a[i][2], a[i][3]}}, &total[i]);
    }
  }
  const float block_unit = kHasUnits<Half> ? __uint_as_float(unit_bits) : 1.0f;
#pragma unroll
  for (int i = 0; i < kIn; ++i) {
#pragma unroll
    for (int o = 0; o < kOut; ++o) {
      const int tile = ((out + o) * input.n_tiles + in + i) * kTileSums + lane_index() * 4;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float values[4];
#pragma unroll
        for (int v = 0; v < 4; ++v) values[v] = total[i].values[o][half * 4 + v] * block_unit;
        if (sums.in_shared) {
          add_to_row(values, sums.shared + tile + half * (kTileSums / 2));
        } else {
          add_to_row(values, sums.partial + tile + half * (kTileSums / 2));
        }
      }
    }
  }
}

// Adds transposed(gradient) * input over the block's rows to `sums`, [tiles of n_out, tiles of n_in] tiles. Each warp
// has squares of its own, always the same, so that no barrier is needed between layers or blocks of rows; the first
// one is warp `turn`'s, as narrow layers have less than there are warps, each on tensor cores of its own. A tile of
// sums is stored as [column half, lane, 4]: neither banks nor sectors conflict. Sums over a block's rows stay in
// registers and meet the stored ones once per block, which also keeps rounding errors small.
template <class Half>
__device__ inline void add_weight_gradient(const StoredGradient& stored, const StoredFactors& input, int n_row_tiles,
                                           int turn, const WeightSums& sums) {
  const int tiles_out = stored.factors.n_tiles, pairs_out = (tiles_out + 1) / 2;
  const int n_warps = static_cast<int>(blockDim.x) / kWarpSize, squares = n_squares(tiles_out, input.n_tiles);
  const uint32_t unit_bits = kHasUnits<Half> ? largest_unit(stored, n_row_tiles) : 0;
  for (int square = (warp_index() + n_warps - turn % n_warps) % n_warps; square < squares; square += n_warps) {
    const int out = square % pairs_out * 2, in = square / pairs_out * 2;
    const bool two_in = in + 1 < input.n_tiles;
    if (out + 1 < tiles_out) {
      if (two_in) {
        add_square<Half, 2, 2>(stored, input, n_row_tiles, unit_bits, out, in, sums);
      } else {
        add_square<Half, 2, 1>(stored, input, n_row_tiles, unit_bits, out, in, sums);
      }
    } else if (two_in) {
      add_square<Half, 1, 2>(stored, input, n_row_tiles, unit_bits, out, in, sums);
    } else {
      add_square<Half, 1, 1>(stored, input, n_row_tiles, unit_bits, out, in, sums);
    }
  }
}

// ---- between two networks ----------------------------------------------------------------------------------------

// The passage of write_radiance for the backward: the colour network's factors go to shared memory, the logarithms of
// the densities beside them. A lane reads back what it has written itself.
template <class Half, int kM>
__device__ inline void join_networks(const MlpParams& p, unsigned char* shared, int64_t first,
                                     Factors<Half, kRadianceTiles, kM>* factors) {
  Sums<kM> geometry;
  forward_tile(p, p.layers[p.n_density_layers - 1], 0, *factors, &geometry);
  float* log_sigmas = reinterpret_cast<float*>(shared + p.log_sigmas) + warp_index() * kM * kTile;
  with_first_column<kM>(p, first, [&](int64_t row, int m, int v) { log_sigmas[row - first] = geometry.values[m][v]; });
  clear_outside(p.n_rows - first, kTile, &geometry);
  pack_sums<Half>(geometry, factors->words[0]);
  // Rows behind the last are zero like their geometry: what a ray's features make of them alone may be infinite, and
  // gradients of weights, which sum over all rows of a tile, would take 0 * inf from them.
  load_ray_factors(p, RayOfRow{p, first}, p.n_rows - first, factors);
  // Gradients of weights read them, nothing else does: the gradient that takes their place is laid out otherwise, and
  // without the barriers around those gradients a slow warp would write into it.
  if (p.partials == nullptr) return;
  const MlpLayer& next = p.layers[p.n_density_layers];
  const StoredFactors outputs = stored_factors(shared, next.input, next.n_in);
#pragma unroll
  for (int k = 0; k < kRadianceTiles; ++k) {
    if (k < outputs.n_tiles) store_tile(outputs, k, factors->words[k]);
  }
}

// Adds what the gradient of the densities gives the first geometry feature.
template <int kM>
__device__ inline void add_density_gradient(const MlpParams& p, const unsigned char* shared, int64_t first,
                                            Sums<kM>* grad) {
  const float* log_sigmas = reinterpret_cast<const float*>(shared + p.log_sigmas) + warp_index() * kM * kTile;
  with_first_column<kM>(p, first, [&](int64_t row, int m, int v) {
    const float sigma = activate(log_sigmas[row - first], Activation::kExp);
    grad->values[m][v] +=
        static_cast<const float*>(p.grad_sigmas)[row] * activation_derivative(sigma, Activation::kExp);
  });
}

// ---- a warp's rows -----------------------------------------------------------------------------------------------

// Of the hidden layers. Those of two networks are ReLU, so that code for the others is left out.
template <bool kTwo>
__device__ inline Activation hidden_activation(const MlpParams& p) {
  return kTwo ? Activation::kReLU : p.activation;
}

// Layers l = 0..last of a warp's rows; their factors go to shared memory. Returns the last layer's in `factors`. kTwo:
// two networks, see MlpParams::n_density_layers.
template <bool kTwo, class Half, int kTiles, int kM>
__device__ inline void forward_again(const MlpParams& p, unsigned char* shared, int64_t first,
                                     Factors<Half, kTiles, kM>* factors) {
  load_user_factors(UserRows(p.x, first, p.n_rows, p.layers[0].n_in), factors);
  const StoredFactors inputs = stored_factors(shared, p.layers[0].input, p.layers[0].n_in);
#pragma unroll
  for (int k = 0; k < kTiles; ++k) {
    if (k < inputs.n_tiles) store_tile(inputs, k, factors->words[k]);
  }
  for (int l = 0; l + 1 < p.n_layers; ++l) {
    if constexpr (kTwo) {
      if (l + 1 == p.n_density_layers) {
        join_networks(p, shared, first, factors);
        continue;
      }
    }
    const MlpLayer& layer = p.layers[l];
    const StoredFactors outputs = stored_factors(shared, p.layers[l + 1].input, layer.n_out);
    // No sum is outside the layer then, and those of rows behind the last, whose factors are zero, are zero.
    const Activation activation = hidden_activation<kTwo>(p);
    const bool plain_relu = activation == Activation::kReLU && layer.bias == nullptr && layer.n_out % kTile == 0;
#pragma unroll 1
    for (int tile = 0; tile < outputs.n_tiles; ++tile) {
      Sums<kM> sums;
      forward_tile(p, layer, tile, *factors, &sums);
      uint32_t words[kM][4];
      if (plain_relu) {
        pack_relu_sums<Half>(sums, words);
      } else {
        activate_sums(activation, &sums);
        clear_outside(p.n_rows - first, layer.n_out - tile * kTile, &sums);
        pack_sums<Half>(sums, words);
      }
      store_tile(outputs, tile, words);
    }
    load_factors(outputs, factors);
  }
}

// The gradient of the last layer's sums, to shared memory; `factors` are the layer's.
template <class Half, int kTiles, int kM>
__device__ inline void begin_gradient(const MlpParams& p, unsigned char* shared, int64_t first,
                                      const Factors<Half, kTiles, kM>& factors) {
  const MlpLayer& layer = p.layers[p.n_layers - 1];
  const UserRows grad_y(p.grad_y, first, p.n_rows, layer.n_out);
  const StoredGradient gradient = stored_gradient(p, shared, p.n_layers - 1);
  RowUnits<kM> units;
#pragma unroll 1
  for (int tile = 0; tile < gradient.factors.n_tiles; ++tile) {
    Sums<kM> grad;
    load_sums(grad_y, tile, &grad);
    if (p.output_activation != Activation::kNone) {
      Sums<kM> z;
      forward_tile(p, layer, tile, factors, &z);
      pull_back_sums(p.output_activation, z, &grad);
      clear_outside(p.n_rows - first, layer.n_out - tile * kTile, &grad);
    }
    add_bias_gradient(p, shared, p.n_layers - 1, tile, grad);
    store_gradient<Half>(gradient, tile, &grad, &units);
  }
  store_units<Half>(gradient, units);
}

// The gradient of layer l's sums, in shared memory, pulled back to those of layer l - 1, or to x.
template <class Half, int kTiles, int kM, bool kTwo>
__device__ inline void pull_gradient(const MlpParams& p, unsigned char* shared, int l, int64_t first) {
  const MlpLayer& layer = p.layers[l];
  const StoredGradient gradient = stored_gradient(p, shared, l);
  const StoredGradient next = l > 0 ? stored_gradient(p, shared, l - 1) : StoredGradient();
  const PackedWeights* weights = in_packed<PackedWeights>(p, layer.packed_transposed);
  Factors<Half, kTiles, kM> factors = {};
  load_factors(gradient.factors, &factors);
  const int n_depth = gradient.factors.n_tiles;
  const Activation activation = hidden_activation<kTwo>(p);
  const bool between = kTwo && l == p.n_density_layers;
  const int width = between ? kTile : layer.n_in;  // what is known of rays has no gradient
  RowUnits<kM> units;
#pragma unroll 1
  for (int tile = 0; tile < tiles_of(width); ++tile) {
    Sums<kM> grad = {};
    multiply(factors, weights + tile * n_depth * kWarpSize, n_depth, &grad);
    apply_units<Half>(gradient, &grad);
    if (l == 0) {
      store_sums(UserRows(p.grad_x, first, p.n_rows, layer.n_in), tile, grad);
      continue;
    }
    if (between) {
      add_density_gradient(p, shared, first, &grad);
    } else if (activation != Activation::kNone) {
      Sums<kM> source;
      load_source<Half>(p, activation, shared, l, tile, &source);
      pull_back_sums(activation, source, &grad);
    }
    clear_outside(p.n_rows - first, width - tile * kTile, &grad);
    add_bias_gradient(p, shared, l - 1, tile, grad);
    store_gradient<Half>(next, tile, &grad, &units);
  }
  if (l > 0) store_units<Half>(next, units);
}

// Body of mlp_fused_backward_kernel. Two barriers per layer: its gradient is complete before all warps sum up that of
// its weight, and they have done so before the gradient below takes the place of its factors.
template <class Half, int kTiles, int kM, bool kTwo>
__device__ inline void fused_backward(const MlpParams& p) {
  HASHGRID_DYNAMIC_SHARED(unsigned char, shared);
  const int last = p.n_layers - 1;
  const int64_t n_weight_sums = p.partial_size - p.n_bias_sums;
  float* partial = static_cast<float*>(p.partials);
  if (partial != nullptr) partial += blockIdx.x * p.partial_size;
  const WeightSums sums = {reinterpret_cast<float*>(shared + p.sums), partial, p.sums >= 0};
  float* bias_sums = reinterpret_cast<float*>(shared + p.bias_sums);
  if (partial != nullptr) {
    for (int64_t i = threadIdx.x; i < n_weight_sums; i += blockDim.x) {
      if (sums.in_shared) {
        sums.shared[i] = 0.0f;
      } else {
        partial[i] = 0.0f;
      }
    }
    for (int64_t i = threadIdx.x; i < p.n_warps * p.n_bias_sums; i += blockDim.x) bias_sums[i] = 0.0f;
  }
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * p.n_blocks / gridDim.x;
  const int64_t end = (static_cast<int64_t>(blockIdx.x) + 1) * p.n_blocks / gridDim.x;
  for (int64_t block = begin; block < end; ++block) {
    __syncthreads();  // sums are zero; the last block's factors are no longer read
    const int64_t block_first = block * p.n_block, rows_left = p.n_rows - block_first;
    const int n_row_tiles = tiles_of(rows_left < p.n_block ? static_cast<int>(rows_left) : p.n_block);
    const int64_t first = block_first + warp_index() * kM * kTile;
    const bool active = first < p.n_rows;
    if (active) {
      Factors<Half, kTiles, kM> factors = {};
      forward_again<kTwo>(p, shared, first, &factors);
      begin_gradient(p, shared, first, factors);
    }
    int turn = 0;
    for (int l = last; l >= 0; --l) {
      const MlpLayer& layer = p.layers[l];
      if (partial != nullptr) {
        __syncthreads();  // the gradient is complete
        add_weight_gradient<Half>(stored_gradient(p, shared, l), stored_factors(shared, layer.input, layer.n_in),
                                  n_row_tiles, turn, sums.from(layer.grad_weight));
        turn += n_squares(tiles_of(layer.n_out), tiles_of(layer.n_in));
        __syncthreads();  // the factors are no longer read
      }
      if (active && (l > 0 || p.grad_x != nullptr)) pull_gradient<Half, kTiles, kM, kTwo>(p, shared, l, first);
    }
  }
  if (partial == nullptr) return;
  __syncthreads();
  if (sums.in_shared) {
    for (int64_t i = threadIdx.x; i < n_weight_sums; i += blockDim.x) partial[i] = sums.shared[i];
  }
  for (int64_t i = threadIdx.x; i < p.n_bias_sums; i += blockDim.x) {
    float total = 0.0f;
    for (int warp = 0; warp < p.n_warps; ++warp) total += bias_sums[warp * p.n_bias_sums + i];
    partial[n_weight_sums + i] = total;
  }
}

// Block: a range of blocks of n_block rows, one after the other; warp w takes rows w * kM * 16 and on of each. Shared
// memory: every layer's factors, the last gradient, sums of the parameter gradients (see MlpParams). For gradients of
// rows a warp reads what it wrote itself; for those of weights each warp has squares of two by two tiles, of all rows
// of the block. Sums are fp32: of a weight over the rows of a block as tensor cores add, then over the blocks in order;
// of a bias over a warp's rows, then the warps in order; partial sums of blocks of threads are left to
// mlp_reduce_kernel. Factors are rounded, among them the gradients before each product; bias gradients sum what is not
// rounded.
template <class Half, int kTiles, int kM>
__global__ void __launch_bounds__(kMaxFusedRows / (kM * kTile) * kWarpSize, 1)
    mlp_fused_backward_kernel(HASHGRID_PARAMS MlpParams p) {
  if constexpr (kHasMma) fused_backward<Half, kTiles, kM, false>(p);
}

// Partial sums are tiles, see add_weight_gradient; their padding belongs nowhere.
struct FusedTarget {
  __device__ static int64_t of(const MlpParams& p, int64_t i) {
    int64_t weights = 0, biases = 0;
    for (int l = 0; l < p.n_layers; ++l) biases += int64_t{p.layers[l].n_in} * p.layers[l].n_out;
    for (int l = 0; l < p.n_layers; ++l) {
      const MlpLayer& layer = p.layers[l];
      const int tiles_in = tiles_of(layer.n_in), tiles_out = tiles_of(layer.n_out);
      const int64_t of_weight = i - layer.grad_weight, of_bias = i - layer.grad_bias;
      if (of_weight >= 0 && of_weight < tiles_in * tiles_out * kTileSums) {
        const int tile = static_cast<int>(of_weight / kTileSums), in_tile = static_cast<int>(of_weight % kTileSums);
        const int half = in_tile / (kTileSums / 2), lane = in_tile / 4 % kWarpSize, v = in_tile % 4;
        const int out = tile / tiles_in * kTile + lane / 4 + 8 * (v / 2);
        const int in = tile % tiles_in * kTile + half * 8 + lane % 4 * 2 + v % 2;
        return out < layer.n_out && in < layer.n_in ? weights + int64_t{out} * layer.n_in + in : -1;
      }
      if (layer.bias != nullptr && of_bias >= 0 && of_bias < tiles_out * kTile) {
        return of_bias < layer.n_out ? biases + of_bias : -1;
      }
      weights += int64_t{layer.n_in} * layer.n_out;
      biases += layer.bias != nullptr ? layer.n_out : 0;
    }
    return -1;
  }
};

// ---- plan and launch ---------------------------------------------------------------------------------------------

// Row tiles per warp of the fused backward. Two share each load of weights; wide layers leave registers for one.
inline int backward_row_tiles(const MlpParams& p) { return widest_of(p) <= kMaxFusedWidth / 2 ? 2 : 1; }

// Shared memory of the fused backward, with p.n_warps warps.
inline void lay_out_fused_block(MlpParams& p, bool need_params, bool shared_sums) {
  MlpLayout shared;
  p.n_block = p.n_warps * backward_row_tiles(p) * kTile;
  const int row_tiles = p.n_block / kTile;
  const auto add_factors = [&](int width) { return shared.add(row_tiles * tiles_of(width) * kTileWords * int64_t{4}); };
  for (int l = 0; l < p.n_layers; ++l) p.layers[l].input = add_factors(p.layers[l].n_in);
  p.gradient[0] = add_factors(p.layers[p.n_layers - 1].n_out);
  for (int64_t& units : p.units) {
    units = p.factors == MlpFactors::kFloat16 ? shared.add(p.n_block * int64_t{4}) : 0;
  }
  p.log_sigmas = p.n_density_layers > 0 ? shared.add(p.n_block * int64_t{4}) : -1;
  p.sums = need_params && shared_sums ? shared.add((p.partial_size - p.n_bias_sums) * 4) : -1;
  p.bias_sums = need_params && p.n_bias_sums > 0 ? shared.add(p.n_warps * p.n_bias_sums * 4) : -1;
  p.shared_bytes = shared.size;
}

// Workspace: packed weights and partial sums. Activations need none.
inline MlpWorkspace plan_fused(MlpParams& p, bool backward, bool need_params) {
  const int64_t packed = lay_out_packed(p, backward);
  if (!backward) return {packed, 0, 0};
  int64_t weight_sums = 0;
  for (int l = 0; l < p.n_layers; ++l) {
    p.layers[l].grad_weight = weight_sums;
    weight_sums += int64_t{tiles_of(p.layers[l].n_in)} * tiles_of(p.layers[l].n_out) * kTileSums;
  }
  p.n_bias_sums = 0;
  for (int l = 0; l < p.n_layers; ++l) {
    p.layers[l].grad_bias = weight_sums + p.n_bias_sums;
    if (p.layers[l].bias != nullptr) p.n_bias_sums += tiles_of(p.layers[l].n_out) * kTile;
  }
  p.partial_size = weight_sums + p.n_bias_sums;
  // As many warps as shared memory has room for; without the sums only if one warp beside them is too much.
  const int limit = device_attribute<cudaDevAttrMaxSharedMemoryPerBlockOptin>();
  for (const bool shared_sums : {true, false}) {
    for (p.n_warps = kMaxFusedRows / (backward_row_tiles(p) * kTile); p.n_warps >= 1; p.n_warps /= 2) {
      lay_out_fused_block(p, need_params, shared_sums);
      if (p.shared_bytes <= limit) break;
    }
    if (p.n_warps >= 1) break;
  }
  if (p.n_warps < 1) {
    throw std::runtime_error("mlp_backward needs " + std::to_string(p.shared_bytes) +
                             " bytes of shared memory, a block has at most " + std::to_string(limit));
  }
  p.n_blocks = divide_up(p.n_rows, p.n_block);
  p.n_partials = p.n_blocks;
  if (!need_params) return {packed, 0, 0};
  const int64_t n_parts =
      std::max<int64_t>(1, divide_up(p.n_rows, kRowsPerPartial));  // of equal number per partial sum
  const int64_t most = p.n_density_layers > 0 ? kMaxJoinedPartials : kMaxFusedPartials;
  p.n_partials = divide_up(n_parts, divide_up(n_parts, most));
  p.n_partials = std::min(p.n_partials, std::max<int64_t>(4, kMaxPartialBytes / (p.partial_size * 4)));
  return {packed, 0, p.n_partials * p.partial_size * 4};
}

template <class Half, int kTiles, int kM>
void launch_fused_forward_of(const MlpParams& p, cudaStream_t stream) {
  const LaunchShape shape = blocks_of_warps(p.n_rows, kM);
  if (p.activation == Activation::kReLU) {
    HASHGRID_LAUNCH_TOGETHER((mlp_fused_forward_kernel<Half, kTiles, kM, true>), shape, stream, p);
  } else {
    HASHGRID_LAUNCH_TOGETHER((mlp_fused_forward_kernel<Half, kTiles, kM, false>), shape, stream, p);
  }
}

// A block per partial sum, with the shared memory of lay_out_fused_block.
template <auto kKernel>
LaunchShape fused_backward_shape(const MlpParams& p) {
  allow_all_shared_memory<kKernel>();
  LaunchShape shape = blocks_of(p.n_partials, 1, 1, static_cast<size_t>(p.shared_bytes));
  shape.block = dim3(static_cast<unsigned>(p.n_warps * kWarpSize));
  return shape;
}

template <class Half, int kTiles, int kM>
void launch_fused_backward_of(const MlpParams& p, cudaStream_t stream) {
  const LaunchShape shape = fused_backward_shape<mlp_fused_backward_kernel<Half, kTiles, kM>>(p);
  HASHGRID_LAUNCH_TOGETHER((mlp_fused_backward_kernel<Half, kTiles, kM>), shape, stream, p);
}

template <class Half>
void launch_fused_forward(const MlpParams& p, cudaStream_t stream) {
  launch_pack(p, stream);
  const int tiles = tiles_of(widest_of(p));
  if (tiles <= 2) return launch_fused_forward_of<Half, 2, 2>(p, stream);
  if (tiles <= 4) return launch_fused_forward_of<Half, 4, 2>(p, stream);
  launch_fused_forward_of<Half, 8, 2>(p, stream);
}

template <class Half>
void launch_fused_backward(const MlpParams& p, cudaStream_t stream) {
  launch_pack(p, stream);
  const int tiles = tiles_of(widest_of(p));
  if (tiles <= 2) {
    launch_fused_backward_of<Half, 2, 2>(p, stream);
  } else if (tiles <= 4) {
    launch_fused_backward_of<Half, 4, 2>(p, stream);
  } else {
    launch_fused_backward_of<Half, 8, 1>(p, stream);
  }
  if (p.grad_params != nullptr) launch_reduce<float, FusedTarget>(p, stream);
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
