// Multilayer perceptron on CUDA, two ways:
//
// Fused, for bfloat16 factors on tensor cores (sm_80 and later) and widths up to 128. A warp takes 16 or 32 rows
// through all layers in registers (mma.cuh: sums are laid out as the next product's factors). Weights are packed once
// per call in the order in which lanes read them, and stay in the L1 cache. The backward computes the forward again,
// keeps each layer's factors in shared memory and sums up parameter gradients per block; derivatives that need the
// value before the activation take that product a second time, which is cheaper than fp32 copies in shared memory and
// gives the same bits.
//
// Plain, for fp32, fp64 and everything else: one tiled product per layer over a chunk of rows, in global memory.
//
// Both add partial sums of parameter gradients in a fixed order, so that results have the same bits in every run.
#include "cuda/launch.cuh"

#include <algorithm>

#include "core/activation.h"
#include "cuda/mma.cuh"

namespace hashgrid {
namespace HASHGRID_ISA {

typedef BFloat16 Half;  // of the fused kernels' factors

constexpr int kTile = 16;            // rows and columns of a tile of factors
constexpr int kTileWords = 128;      // of a stored tile of factors: 4 matrices of 8 x 8, two values to a word
constexpr int kTileSums = 256;       // of a stored tile of sums
constexpr int kMaxFusedWidth = 128;  // factors and sums of a warp's rows have to fit into registers
constexpr int kForwardWarps = 4;     // of a block; they share nothing but the L1 cache
constexpr int kMaxFusedRows = 128;   // of a block
constexpr int kMaxPartials = 256;    // blocks of the fused backward: two for each of 128 multiprocessors
constexpr int kRowsPerPartial = 128; // at least; with the number of rows this fixes the order of sums on every card
constexpr int kSliceRows = 256;      // at least, of the plain backward's partial sums
constexpr int64_t kMaxPartialBytes = int64_t{1} << 26;  // of all partial sums together
constexpr int64_t kMaxChunkBytes = int64_t{1} << 26;    // of the plain kernels' matrices
constexpr int kThreads = 256;
constexpr int kPackThreads = 128;
constexpr int kProductTile = 64;     // rows and columns of a plain product per block
constexpr int kProductDepth = 16;    // of both factors in shared memory at a time
constexpr int kReduceGroups = 8;     // warps that sum up side by side

__host__ __device__ inline int tiles_of(int width) { return (width + kTile - 1) / kTile; }

__device__ inline int lane_index() { return static_cast<int>(threadIdx.x) % kWarpSize; }
__device__ inline int warp_index() { return static_cast<int>(threadIdx.x) / kWarpSize; }

// ---- activations -------------------------------------------------------------------------------------------------

template <Activation kActivation>
struct ActivationTag {
  static constexpr Activation value = kActivation;
};

// use(ActivationTag): the branch is taken once for all values of a lane.
template <typename Use>
__device__ inline void with_activation(Activation activation, Use use) {
  switch (activation) {
    case Activation::kReLU:
      return use(ActivationTag<Activation::kReLU>());
    case Activation::kLeakyReLU:
      return use(ActivationTag<Activation::kLeakyReLU>());
    case Activation::kSiLU:
      return use(ActivationTag<Activation::kSiLU>());
    case Activation::kSoftplus:
      return use(ActivationTag<Activation::kSoftplus>());
    case Activation::kSigmoid:
      return use(ActivationTag<Activation::kSigmoid>());
    case Activation::kTanh:
      return use(ActivationTag<Activation::kTanh>());
    case Activation::kExp:
      return use(ActivationTag<Activation::kExp>());
    case Activation::kSine:
      return use(ActivationTag<Activation::kSine>());
    default:
      return;
  }
}

// The gradient before an activation from the one behind it. A ReLU selects: where it is zero an infinite gradient ends.
template <typename T>
__device__ inline T pull_back(T grad, T source, Activation activation) {
  if (activation == Activation::kReLU) return source <= T(0) ? T(0) : grad;
  return activation == Activation::kNone ? grad : grad * activation_derivative(source, activation);
}

// The same from the value `z` before the activation.
template <typename T>
__device__ inline T pull_back_from(T z, T grad, Activation activation) {
  return pull_back(grad, derivative_reads_input(activation) ? z : activate(z, activation), activation);
}

// ---- tiles of a warp ---------------------------------------------------------------------------------------------

// kM tiles of sums, one below the other: value v of a lane is at row lane / 4 + 8 * (v / 2 % 2) and column
// 8 * (v / 4) + lane % 4 * 2 + v % 2 of its tile.
template <int kM>
struct Sums {
  float values[kM][8];
};

__device__ inline int row_of(int v) { return lane_index() / 4 + 8 * (v / 2 % 2); }
__device__ inline int column_of(int v) { return 8 * (v / 4) + lane_index() % 4 * 2 + v % 2; }

// A warp's rows of a matrix of factors: kTiles tiles side by side, of which the first few are used. Every index into it
// has to be known at compile time, or it moves from registers to memory.
template <int kTiles, int kM>
struct Factors {
  uint32_t words[kTiles][kM][4];
};

// Values before the activation become those behind it.
template <int kM>
__device__ inline void activate_sums(Activation activation, Sums<kM>* sums) {
  with_activation(activation, [&](auto tag) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int v = 0; v < 8; ++v) sums->values[m][v] = activate(sums->values[m][v], tag.value);
    }
  });
  if (!derivative_reads_sign(activation)) __syncwarp();
}

// Gradients behind the activation become those before it, where its input was `z`.
template <int kM>
__device__ inline void pull_back_sums(Activation activation, const Sums<kM>& z, Sums<kM>* grad) {
  with_activation(activation, [&](auto tag) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int v = 0; v < 8; ++v) grad->values[m][v] = pull_back_from(z.values[m][v], grad->values[m][v], tag.value);
    }
  });
  if (!derivative_reads_sign(activation)) __syncwarp();
}

// Zeroes what lies outside the batch or the layer: there, 0 * inf would put NaN into sums. n_rows and n_columns are
// left from the tiles' first row and column on.
template <int kM>
__device__ inline void clear_outside(int64_t n_rows, int n_columns, Sums<kM>* sums) {
  if (n_rows >= kM * kTile && n_columns >= kTile) return;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int v = 0; v < 8; ++v) {
      if (m * kTile + row_of(v) >= n_rows || column_of(v) >= n_columns) sums->values[m][v] = 0.0f;
    }
  }
}

// Sums of a product, rounded to factors of the next one; see mma.cuh.
template <int kM>
__device__ inline void pack_sums(const Sums<kM>& sums, uint32_t (&words)[kM][4]) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int i = 0; i < 4; ++i) words[m][i] = pack_pair<Half>(sums.values[m][2 * i], sums.values[m][2 * i + 1]);
  }
}

// Row-major user memory [n_rows, n_columns], of which a warp reads or writes rows from `first` on.
struct UserRows {
  float* data;
  int64_t first;
  int64_t n_rows;
  int n_columns;
  bool in_pairs;  // two neighbours are one aligned vector

  __device__ UserRows(const void* data_, int64_t first_, int64_t n_rows_, int n_columns_)
      : data(const_cast<float*>(static_cast<const float*>(data_))),
        first(first_),
        n_rows(n_rows_),
        n_columns(n_columns_),
        in_pairs(n_columns_ % 2 == 0 && reinterpret_cast<uintptr_t>(data_) % 8 == 0) {}
};

// Tile `tile` of each of kM rows of tiles, zeros outside. Four lanes read a sector of 32 bytes.
template <int kM>
__device__ inline void load_sums(const UserRows& user, int tile, Sums<kM>* sums) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int v = 0; v < 8; v += 2) {
      const int64_t row = user.first + m * kTile + row_of(v);
      const int column = tile * kTile + column_of(v);
      float* pair = &sums->values[m][v];
      pair[0] = pair[1] = 0.0f;
      if (row >= user.n_rows || column >= user.n_columns) continue;
      const float* from = user.data + row * user.n_columns + column;
      if (user.in_pairs) {
        load_row<float, 2>(from, pair);
      } else {
        pair[0] = from[0];
        if (column + 1 < user.n_columns) pair[1] = from[1];
      }
    }
  }
  __syncwarp();
}

// Nothing is written outside.
template <int kM>
__device__ inline void store_sums(const UserRows& user, int tile, const Sums<kM>& sums) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int v = 0; v < 8; v += 2) {
      const int64_t row = user.first + m * kTile + row_of(v);
      const int column = tile * kTile + column_of(v);
      if (row >= user.n_rows || column >= user.n_columns) continue;
      float* to = user.data + row * user.n_columns + column;
      if (user.in_pairs) {
        store_row<float, 2>(to, &sums.values[m][v]);
      } else {
        to[0] = sums.values[m][v];
        if (column + 1 < user.n_columns) to[1] = sums.values[m][v + 1];
      }
    }
  }
  __syncwarp();
}

// A warp's rows of x, rounded; zeros outside.
template <int kTiles, int kM>
__device__ inline void load_user_factors(const UserRows& user, Factors<kTiles, kM>* factors) {
  const int n_tiles = tiles_of(user.n_columns);
#pragma unroll
  for (int k = 0; k < kTiles; ++k) {
    Sums<kM> sums = {};
    if (k < n_tiles) load_sums(user, k, &sums);
    pack_sums(sums, factors->words[k]);
  }
}

// ---- products of a warp ------------------------------------------------------------------------------------------

// Weights as one lane reads them: of outputs [tile, 16] and depth [k, 16], words {b0, b1} of columns 0..7, then 8..15.
// Packed as [n_tiles of outputs, n_tiles of depth, lane].
typedef Row<uint32_t, 4> PackedWeights;

template <typename T>
__device__ inline const T* in_packed(const MlpParams& p, int64_t offset) {
  return reinterpret_cast<const T*>(static_cast<const char*>(p.packed) + offset);
}

__device__ inline PackedWeights load_weights(const PackedWeights* weights, int k) {
  const uint4 words = __ldg(reinterpret_cast<const uint4*>(weights) + k * kWarpSize + lane_index());
  return {{words.x, words.y, words.z, words.w}};
}

// Factors [kM * 16 rows, 16] times weights [16, 16 columns].
template <int kM>
__device__ inline void add_product(const uint32_t (&factors)[kM][4], const PackedWeights& weights, Sums<kM>* sums) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    multiply_add<Half>(sums->values[m], factors[m], weights.values[0], weights.values[1]);
    multiply_add<Half>(sums->values[m] + 4, factors[m], weights.values[2], weights.values[3]);
  }
}

// Every sum begins with its column's bias, zeros where there is none.
template <int kM>
__device__ inline void begin_with_bias(const MlpParams& p, const MlpLayer& layer, int tile, Sums<kM>* sums) {
  const float* bias = in_packed<float>(p, layer.packed_bias) + tile * kTile;
#pragma unroll
  for (int v = 0; v < 8; v += 2) {
    float pair[2];
    load_row<float, 2>(bias + column_of(v), pair);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      sums->values[m][v] = pair[0];
      sums->values[m][v + 1] = pair[1];
    }
  }
}

// Adds the product of `factors` with one tile of outputs; n_depth <= kTiles tiles.
template <int kTiles, int kM>
__device__ inline void multiply(const Factors<kTiles, kM>& factors, const PackedWeights* weights, int n_depth,
                                Sums<kM>* sums) {
  if (n_depth == kTiles) {  // without branches, so that all loads begin before the first product
#pragma unroll
    for (int k = 0; k < kTiles; ++k) add_product(factors.words[k], load_weights(weights, k), sums);
    return;
  }
#pragma unroll
  for (int k = 0; k < kTiles; ++k) {
    if (k < n_depth) add_product(factors.words[k], load_weights(weights, k), sums);
  }
}

// What a layer makes of `factors` in one tile of its outputs, before the activation.
template <int kTiles, int kM>
__device__ inline void forward_tile(const MlpParams& p, const MlpLayer& layer, int tile,
                                    const Factors<kTiles, kM>& factors, Sums<kM>* sums) {
  const int n_depth = tiles_of(layer.n_in);
  begin_with_bias(p, layer, tile, sums);
  multiply(factors, in_packed<PackedWeights>(p, layer.packed_weight) + tile * n_depth * kWarpSize, n_depth, sums);
}

// ---- fused forward -----------------------------------------------------------------------------------------------

// Thread: a unit of PackedWeights of layer blockIdx.y / 2; odd blockIdx.y packs the transposed weight, for gradients.
// Values beyond the weight are zero.
__global__ void mlp_pack_kernel(HASHGRID_PARAMS MlpParams p) {
  const MlpLayer& layer = p.layers[blockIdx.y / 2];
  const bool transposed = blockIdx.y % 2 != 0;
  const int64_t offset = transposed ? layer.packed_transposed : layer.packed_weight;
  const int n_columns = transposed ? layer.n_in : layer.n_out;
  const int n_depth = transposed ? layer.n_out : layer.n_in;
  const int unit = static_cast<int>(global_thread());
  if (offset < 0 || unit >= tiles_of(n_columns) * tiles_of(n_depth) * kWarpSize) return;
  const int lane = unit % kWarpSize, tile = unit / kWarpSize;
  const int column = tile / tiles_of(n_depth) * kTile + lane / 4;
  const int depth = tile % tiles_of(n_depth) * kTile + lane % 4 * 2;
  const float* weight = static_cast<const float*>(layer.weight);
  PackedWeights packed;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float pair[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int c = column + 8 * (i / 2), d = depth + 8 * (i % 2) + e;
      const bool inside = c < n_columns && d < n_depth;
      pair[e] = inside ? weight[transposed ? d * layer.n_in + c : c * layer.n_in + d] : 0.0f;
    }
    packed.values[i] = pack_pair<Half>(pair[0], pair[1]);
  }
  char* memory = static_cast<char*>(p.packed);
  reinterpret_cast<PackedWeights*>(memory + offset)[unit] = packed;
  if (transposed || unit >= tiles_of(n_columns) * kTile) return;
  const bool has_bias = layer.bias != nullptr && unit < n_columns;
  reinterpret_cast<float*>(memory + layer.packed_bias)[unit] =
      has_bias ? static_cast<const float*>(layer.bias)[unit] : 0.0f;
}

// Body of mlp_fused_forward_kernel, on its own so that it is left out where there are no such instructions.
template <int kTiles, int kM, bool kReLU>
__device__ inline void fused_forward(const MlpParams& p) {
  const int last = p.n_layers - 1;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kForwardWarps + warp_index()) * (kM * kTile);
  if (first >= p.n_rows) return;
  Factors<kTiles, kM> factors;
  load_user_factors(UserRows(p.x, first, p.n_rows, p.layers[0].n_in), &factors);
  for (int l = 0; l < last; ++l) {
    const MlpLayer& layer = p.layers[l];
    const int n_tiles = tiles_of(layer.n_out);
    // A register cannot be chosen by a number known at run time: each turn puts its tile last and moves the others up.
    Factors<kTiles, kM> next = {};
#pragma unroll(kReLU ? kTiles : 1)
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int k = 0; k + 1 < kTiles; ++k) {
#pragma unroll
        for (int m = 0; m < kM; ++m) {
#pragma unroll
          for (int i = 0; i < 4; ++i) next.words[k][m][i] = next.words[k + 1][m][i];
        }
      }
      if (tile >= n_tiles) continue;
      Sums<kM> sums;
      forward_tile(p, layer, tile, factors, &sums);
      activate_sums(kReLU ? Activation::kReLU : p.activation, &sums);
      clear_outside(kM * kTile, layer.n_out - tile * kTile, &sums);
      pack_sums(sums, next.words[kTiles - 1]);
    }
    factors = next;
  }
  const MlpLayer& layer = p.layers[last];
  const UserRows y(p.y, first, p.n_rows, layer.n_out);
#pragma unroll 1
  for (int tile = 0; tile < tiles_of(layer.n_out); ++tile) {
    Sums<kM> sums;
    forward_tile(p, layer, tile, factors, &sums);
    activate_sums(p.output_activation, &sums);
    store_sums(y, tile, sums);
  }
}

// Warp: kM * 16 rows through all layers, each at most kTiles * 16 wide; warps know nothing of each other. kReLU: of the
// hidden layers, whose loops then unroll; other activations are too long for that. Sums fp32, factors rounded.
template <int kTiles, int kM, bool kReLU>
__global__ void __launch_bounds__(kForwardWarps* kWarpSize, 2) mlp_fused_forward_kernel(HASHGRID_PARAMS MlpParams p) {
  if constexpr (kHasMma) fused_forward<kTiles, kM, kReLU>(p);
}

// ---- fused backward ----------------------------------------------------------------------------------------------

// A matrix of factors in shared memory, [row tiles, n_tiles] stored tiles. Word i of a lane's four lies at
// [i, lane]: a lane writes without bank conflicts, and each quarter is a matrix of 8 rows of 16 bytes, for
// load_transposed.
struct StoredFactors {
  uint32_t* words;
  int n_tiles;

  __device__ uint32_t* tile(int row_tile, int tile) const {
    return words + (row_tile * n_tiles + tile) * kTileWords;
  }
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
template <int kTiles, int kM>
__device__ inline void load_factors(const StoredFactors& stored, Factors<kTiles, kM>* factors) {
#pragma unroll
  for (int k = 0; k < kTiles; ++k) {
    if (k < stored.n_tiles) load_tile(stored, k, factors->words[k]);
  }
}

// What the derivative of a hidden activation is computed from, in tile `tile` of the outputs of layer l - 1: the
// factors of layer l where their sign says all, else the value before the activation, computed again from stored
// factors. pull_back_from takes either: such an activation keeps the sign of its own outputs.
template <int kM>
__device__ inline void load_source(const MlpParams& p, unsigned char* shared, int l, int tile, Sums<kM>* source) {
  if (derivative_reads_sign(p.activation)) {
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
    add_product(words, load_weights(weights, k), source);
  }
}

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

// Adds transposed(gradient) * input over the block's rows to `sums`, [tiles of n_out, tiles of n_in] tiles. Each warp
// has squares of two by two tiles of its own, always the same, so that no barrier is needed between layers or blocks
// of rows. A tile of sums is stored as [column half, lane, 4]: neither banks nor sectors conflict. Sums over a block's
// rows stay in registers and meet the stored ones once per block, which also keeps rounding errors small.
__device__ inline void add_weight_gradient(const StoredFactors& gradient, const StoredFactors& input, int n_row_tiles,
                                           float* sums) {
  const int n_warps = static_cast<int>(blockDim.x) / kWarpSize;
  const int pairs_out = (gradient.n_tiles + 1) / 2, pairs_in = (input.n_tiles + 1) / 2;
  for (int unit = warp_index(); unit < pairs_out * pairs_in; unit += n_warps) {
    const int out = unit % pairs_out * 2, in = unit / pairs_out * 2;
    const bool second_out = out + 1 < gradient.n_tiles, second_in = in + 1 < input.n_tiles;
    Sums<2> total[2] = {};  // [in][out]
    for (int row = 0; row < n_row_tiles; ++row) {
      uint32_t g[2][4] = {}, a[2][4] = {};
      load_transposed(gradient.tile(row, out), g[0]);
      load_transposed(input.tile(row, in), a[0]);
      if (second_out) load_transposed(gradient.tile(row, out + 1), g[1]);
      if (second_in) load_transposed(input.tile(row, in + 1), a[1]);
      // Transposed, the matrices right of the diagonal come before those left of it.
      const uint32_t factors[2][4] = {{g[0][0], g[0][2], g[0][1], g[0][3]}, {g[1][0], g[1][2], g[1][1], g[1][3]}};
      add_product(factors, {{a[0][0], a[0][1], a[0][2], a[0][3]}}, &total[0]);
      if (second_in) add_product(factors, {{a[1][0], a[1][1], a[1][2], a[1][3]}}, &total[1]);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int o = 0; o < 2; ++o) {
        if ((i > 0 && !second_in) || (o > 0 && !second_out)) continue;
        float* tile = sums + ((out + o) * input.n_tiles + in + i) * kTileSums + lane_index() * 4;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float values[4];
          load_row<float, 4>(tile + half * (kTileSums / 2), values);
#pragma unroll
          for (int v = 0; v < 4; ++v) values[v] += total[i].values[o][half * 4 + v];
          store_row<float, 4>(tile + half * (kTileSums / 2), values);
        }
      }
    }
  }
}

// Layers l = 0..last of a warp's rows; their factors go to shared memory. Returns the last layer's in `factors`.
template <int kTiles, int kM>
__device__ inline void forward_again(const MlpParams& p, unsigned char* shared, int64_t first,
                                     Factors<kTiles, kM>* factors) {
  load_user_factors(UserRows(p.x, first, p.n_rows, p.layers[0].n_in), factors);
  const StoredFactors inputs = stored_factors(shared, p.layers[0].input, p.layers[0].n_in);
#pragma unroll
  for (int k = 0; k < kTiles; ++k) {
    if (k < inputs.n_tiles) store_tile(inputs, k, factors->words[k]);
  }
  for (int l = 0; l + 1 < p.n_layers; ++l) {
    const MlpLayer& layer = p.layers[l];
    const StoredFactors outputs = stored_factors(shared, p.layers[l + 1].input, layer.n_out);
#pragma unroll 1
    for (int tile = 0; tile < outputs.n_tiles; ++tile) {
      Sums<kM> sums;
      forward_tile(p, layer, tile, *factors, &sums);
      activate_sums(p.activation, &sums);
      clear_outside(p.n_rows - first, layer.n_out - tile * kTile, &sums);
      uint32_t words[kM][4];
      pack_sums(sums, words);
      store_tile(outputs, tile, words);
    }
    load_factors(outputs, factors);
  }
}

// The gradient of the last layer's sums, to shared memory; `factors` are the layer's.
template <int kTiles, int kM>
__device__ inline void begin_gradient(const MlpParams& p, unsigned char* shared, int64_t first,
                                      const Factors<kTiles, kM>& factors) {
  const MlpLayer& layer = p.layers[p.n_layers - 1];
  const UserRows grad_y(p.grad_y, first, p.n_rows, layer.n_out);
  const StoredFactors gradient = stored_factors(shared, p.gradient[0], layer.n_out);
#pragma unroll 1
  for (int tile = 0; tile < gradient.n_tiles; ++tile) {
    Sums<kM> grad;
    load_sums(grad_y, tile, &grad);
    if (p.output_activation != Activation::kNone) {
      Sums<kM> z;
      forward_tile(p, layer, tile, factors, &z);
      pull_back_sums(p.output_activation, z, &grad);
      clear_outside(p.n_rows - first, layer.n_out - tile * kTile, &grad);
    }
    add_bias_gradient(p, shared, p.n_layers - 1, tile, grad);
    uint32_t words[kM][4];
    pack_sums(grad, words);
    store_tile(gradient, tile, words);
  }
}

// The gradient of layer l's sums, in shared memory, pulled back to those of layer l - 1, or to x.
template <int kTiles, int kM>
__device__ inline void pull_gradient(const MlpParams& p, unsigned char* shared, int l, int slot, int64_t first) {
  const MlpLayer& layer = p.layers[l];
  const StoredFactors gradient = stored_factors(shared, p.gradient[slot], layer.n_out);
  const StoredFactors next = stored_factors(shared, p.gradient[1 - slot], layer.n_in);
  const PackedWeights* weights = in_packed<PackedWeights>(p, layer.packed_transposed);
  Factors<kTiles, kM> factors = {};
  load_factors(gradient, &factors);
#pragma unroll 1
  for (int tile = 0; tile < next.n_tiles; ++tile) {
    Sums<kM> grad = {};
    multiply(factors, weights + tile * gradient.n_tiles * kWarpSize, gradient.n_tiles, &grad);
    if (l == 0) {
      store_sums(UserRows(p.grad_x, first, p.n_rows, layer.n_in), tile, grad);
      continue;
    }
    if (p.activation != Activation::kNone) {
      Sums<kM> source;
      load_source(p, shared, l, tile, &source);
      pull_back_sums(p.activation, source, &grad);
    }
    clear_outside(p.n_rows - first, layer.n_in - tile * kTile, &grad);
    add_bias_gradient(p, shared, l - 1, tile, grad);
    uint32_t words[kM][4];
    pack_sums(grad, words);
    store_tile(next, tile, words);
  }
}

// Body of mlp_fused_backward_kernel. One barrier per layer is enough with two slots for gradients: behind it, one slot
// is complete and only read, the other no longer read and written for the next layer.
template <int kTiles, int kM>
__device__ inline void fused_backward(const MlpParams& p) {
  HASHGRID_DYNAMIC_SHARED(unsigned char, shared);
  const int last = p.n_layers - 1;
  const int64_t n_weight_sums = p.partial_size - p.n_bias_sums;
  float* partial = static_cast<float*>(p.partials);
  if (partial != nullptr) partial += blockIdx.x * p.partial_size;
  float* sums = p.sums >= 0 ? reinterpret_cast<float*>(shared + p.sums) : partial;
  float* bias_sums = reinterpret_cast<float*>(shared + p.bias_sums);
  if (partial != nullptr) {
    for (int64_t i = threadIdx.x; i < n_weight_sums; i += blockDim.x) sums[i] = 0.0f;
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
      Factors<kTiles, kM> factors = {};
      forward_again(p, shared, first, &factors);
      begin_gradient(p, shared, first, factors);
    }
    int slot = 0;
    for (int l = last; l >= 0; --l) {
      const MlpLayer& layer = p.layers[l];
      __syncthreads();  // the gradient is complete; the other slot is no longer read
      if (partial != nullptr) {
        add_weight_gradient(stored_factors(shared, p.gradient[slot], layer.n_out),
                            stored_factors(shared, layer.input, layer.n_in), n_row_tiles, sums + layer.grad_weight);
      }
      if (active && (l > 0 || p.grad_x != nullptr)) pull_gradient<kTiles, kM>(p, shared, l, slot, first);
      slot = 1 - slot;
    }
  }
  if (partial == nullptr) return;
  __syncthreads();
  if (p.sums >= 0) {
    for (int64_t i = threadIdx.x; i < n_weight_sums; i += blockDim.x) partial[i] = sums[i];
  }
  for (int64_t i = threadIdx.x; i < p.n_bias_sums; i += blockDim.x) {
    float total = 0.0f;
    for (int warp = 0; warp < p.n_warps; ++warp) total += bias_sums[warp * p.n_bias_sums + i];
    partial[n_weight_sums + i] = total;
  }
}

// Block: a range of blocks of n_block rows, one after the other; warp w takes rows w * kM * 16 and on of each. Shared
// memory: every layer's factors, two gradients, sums of the parameter gradients (see MlpParams). Sums are fp32, factors
// rounded, among them the gradients before each product; bias gradients sum what is not rounded.
template <int kTiles, int kM>
__global__ void __launch_bounds__(kMaxFusedRows / (kM * kTile) * kWarpSize, 1)
    mlp_fused_backward_kernel(HASHGRID_PARAMS MlpParams p) {
  if constexpr (kHasMma) fused_backward<kTiles, kM>(p);
}

// ---- sum of partial sums -----------------------------------------------------------------------------------------

// Where element i of a fused partial sum belongs among the parameters; -1: padding.
__device__ inline int64_t parameter_of(const MlpParams& p, int64_t i) {
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

// Block: 32 elements of the partial sums; every kReduceGroups-th partial sum is added to one of kReduceGroups sums, and
// these in order. The plain kernels' partial sums lie as the parameters do.
template <typename T, bool kFused>
__global__ void mlp_reduce_kernel(HASHGRID_PARAMS MlpParams p) {
  __shared__ T sums[kReduceGroups][kWarpSize];
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kWarpSize + lane_index();
  const T* partials = static_cast<const T*>(p.partials);
  T total = T(0);
  if (i < p.partial_size) {
#pragma unroll 4
    for (int64_t k = warp_index(); k < p.n_partials; k += kReduceGroups) total += partials[k * p.partial_size + i];
  }
  sums[warp_index()][lane_index()] = total;
  __syncthreads();
  if (warp_index() != 0 || i >= p.partial_size) return;
  for (int group = 1; group < kReduceGroups; ++group) total += sums[group][lane_index()];
  const int64_t target = kFused ? parameter_of(p, i) : i;
  if (target >= 0) static_cast<T*>(p.grad_params)[target] = total;
}

// ---- plain -------------------------------------------------------------------------------------------------------

enum class ProductKind { kForward, kBack, kWeights };

// result [n_rows, n_columns] = sum over n_depth of a * b:
//
//                  rows      columns   depth        a                           b
//     kForward     rows      outputs   inputs       [rows, depth] activations   [columns, depth] weight
//     kBack        rows      inputs    outputs      [rows, depth] gradient      [depth, columns] weight
//     kWeights     outputs   inputs    rows         [depth, rows] gradient      [depth, columns] activations
template <typename T>
struct Product {
  int64_t n_rows, n_columns, n_depth;
  const T* a;
  const T* b;
  T* result;
  bool round;              // a and b to bfloat16
  Activation activation;   // kForward: applied; kBack: pulled back through. Its derivative reads a sign.
  const T* bias;           // kForward: [n_columns] or null
  const T* outputs;        // kBack: [n_rows, n_columns], of the activation
  int64_t n_slice;         // kWeights: depth per slice blockIdx.z
  int64_t slice_size;      // kWeights: from the result of a slice to that of the next
  bool accumulate;         // kWeights: adds to the result
};

// Factors are rounded as they are read, so that all matrices in memory stay as they are.
__device__ inline float rounded(float x, bool round) { return round ? round_to_bfloat16(x) : x; }
__device__ inline double rounded(double x, bool) { return x; }

// Block: a square of kProductTile rows and columns, 4 x 4 to a thread; both factors pass through shared memory,
// kProductDepth at a time, transposed so that a thread reads its four in one vector. Sums in T.
template <typename T, ProductKind kKind>
__global__ void __launch_bounds__(kThreads) mlp_product_kernel(HASHGRID_PARAMS Product<T> q) {
  constexpr int kStride = kProductTile + 4, kSide = 4, kPerSide = kProductTile / kSide;
  alignas(32) __shared__ T a_tile[kProductDepth][kStride];
  alignas(32) __shared__ T b_tile[kProductDepth][kStride];
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kProductTile;
  const int64_t first_column = static_cast<int64_t>(blockIdx.y) * kProductTile;
  int64_t begin = 0, end = q.n_depth;
  if (kKind == ProductKind::kWeights) {
    begin = static_cast<int64_t>(blockIdx.z) * q.n_slice;
    end = begin + q.n_slice < q.n_depth ? begin + q.n_slice : q.n_depth;
  }
  const int row = static_cast<int>(threadIdx.x) / kPerSide * kSide;
  const int column = static_cast<int>(threadIdx.x) % kPerSide * kSide;
  T sum[kSide][kSide] = {};
  for (int64_t depth = begin; depth < end; depth += kProductDepth) {
#pragma unroll
    for (int i = 0; i < kProductTile * kProductDepth / kThreads; ++i) {
      // Neighbouring threads read neighbouring values.
      const int e = i * kThreads + static_cast<int>(threadIdx.x);
      const int by_depth[2] = {e % kProductDepth, e / kProductDepth};
      const int by_column[2] = {e / kProductTile, e % kProductTile};
      const int* of_a = kKind == ProductKind::kWeights ? by_column : by_depth;
      const int* of_b = kKind == ProductKind::kForward ? by_depth : by_column;
      const int64_t a_depth = depth + of_a[0], a_row = first_row + of_a[1];
      const int64_t b_depth = depth + of_b[0], b_column = first_column + of_b[1];
      T a = T(0), b = T(0);
      if (a_depth < end && a_row < q.n_rows) {
        a = q.a[kKind == ProductKind::kWeights ? a_depth * q.n_rows + a_row : a_row * q.n_depth + a_depth];
      }
      if (b_depth < end && b_column < q.n_columns) {
        b = q.b[kKind == ProductKind::kForward ? b_column * q.n_depth + b_depth : b_depth * q.n_columns + b_column];
      }
      a_tile[of_a[0]][of_a[1]] = rounded(a, q.round);
      b_tile[of_b[0]][of_b[1]] = rounded(b, q.round);
    }
    __syncthreads();
#pragma unroll
    for (int d = 0; d < kProductDepth; ++d) {
      T a[kSide], b[kSide];
      load_row<T, kSide>(&a_tile[d][row], a);
      load_row<T, kSide>(&b_tile[d][column], b);
#pragma unroll
      for (int i = 0; i < kSide; ++i) {
#pragma unroll
        for (int j = 0; j < kSide; ++j) sum[i][j] += a[i] * b[j];
      }
    }
    __syncthreads();
  }
  T* result = q.result + (kKind == ProductKind::kWeights ? blockIdx.z * q.slice_size : 0);
#pragma unroll
  for (int i = 0; i < kSide; ++i) {
#pragma unroll
    for (int j = 0; j < kSide; ++j) {
      const int64_t r = first_row + row + i, c = first_column + column + j, at = r * q.n_columns + c;
      if (r >= q.n_rows || c >= q.n_columns) continue;
      T value = sum[i][j];
      if (kKind == ProductKind::kForward) {
        if (q.bias != nullptr) value += q.bias[c];
        if (q.activation == Activation::kReLU) value = activate(value, Activation::kReLU);
        if (q.activation == Activation::kLeakyReLU) value = activate(value, Activation::kLeakyReLU);
      } else if (kKind == ProductKind::kBack) {
        if (q.activation == Activation::kReLU) value = pull_back(value, q.outputs[at], Activation::kReLU);
        if (q.activation == Activation::kLeakyReLU) value = pull_back(value, q.outputs[at], Activation::kLeakyReLU);
      } else if (q.accumulate) {
        value += result[at];
      }
      result[at] = value;
    }
  }
}

// Thread: one value. `z` and `y` may be the same.
template <typename T>
__global__ void mlp_activate_kernel(const T* z, T* y, int64_t n, Activation activation) {
  const int64_t i = global_thread();
  if (i < n) y[i] = activate(z[i], activation);
}

// Thread: one value. `source` holds what comes before the activation if `from_input`, else what its derivative reads.
template <typename T>
__global__ void mlp_derivative_kernel(const T* grad, const T* source, T* result, int64_t n, Activation activation,
                                      bool from_input) {
  const int64_t i = global_thread();
  if (i >= n) return;
  result[i] = from_input ? pull_back_from(source[i], grad[i], activation) : pull_back(grad[i], source[i], activation);
}

// Block: 32 columns of slice blockIdx.y of a gradient [n_rows, n_columns], summed over the slice's rows: every
// kReduceGroups-th row by a warp, then these sums in order.
template <typename T>
__global__ void mlp_bias_gradient_kernel(const T* gradient, int64_t n_rows, int64_t n_columns, int64_t n_slice,
                                         T* result, int64_t slice_size, bool accumulate) {
  __shared__ T sums[kReduceGroups][kWarpSize];
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarpSize + lane_index();
  const int64_t begin = blockIdx.y * n_slice, end = begin + n_slice < n_rows ? begin + n_slice : n_rows;
  T total = T(0);
  if (column < n_columns) {
#pragma unroll 4
    for (int64_t row = begin + warp_index(); row < end; row += kReduceGroups) {
      total += gradient[row * n_columns + column];
    }
  }
  sums[warp_index()][lane_index()] = total;
  __syncthreads();
  if (warp_index() != 0 || column >= n_columns) return;
  for (int group = 1; group < kReduceGroups; ++group) total += sums[group][lane_index()];
  T* to = result + blockIdx.y * slice_size + column;
  *to = accumulate ? *to + total : total;
}

// ---- layout of workspaces ----------------------------------------------------------------------------------------

// Lays matrices out one after the other, each aligned for vectors and whole sectors.
struct MlpLayout {
  int64_t size = 0;

  int64_t add(int64_t bytes) {
    const int64_t offset = size;
    size += divide_up(bytes, 256) * 256;
    return offset;
  }
};

// The largest number of inputs or outputs.
int widest_of(const MlpParams& p) {
  int widest = p.layers[0].n_in;
  for (int l = 0; l < p.n_layers; ++l) widest = std::max(widest, p.layers[l].n_out);
  return widest;
}

// Row tiles per warp of the fused backward. Two share each load of weights; wide layers leave registers for one.
int backward_row_tiles(const MlpParams& p) { return widest_of(p) <= kMaxFusedWidth / 2 ? 2 : 1; }

// Shared memory of the fused backward, with p.n_warps warps.
void lay_out_fused_block(MlpParams& p, bool need_params, bool shared_sums) {
  MlpLayout shared;
  p.n_block = p.n_warps * backward_row_tiles(p) * kTile;
  const int row_tiles = p.n_block / kTile;
  int widest_out = 0;
  for (int l = 0; l < p.n_layers; ++l) {
    MlpLayer& layer = p.layers[l];
    layer.input = shared.add(row_tiles * tiles_of(layer.n_in) * kTileWords * int64_t{4});
    widest_out = std::max(widest_out, tiles_of(layer.n_out));
  }
  for (int64_t& gradient : p.gradient) gradient = shared.add(row_tiles * widest_out * kTileWords * int64_t{4});
  p.sums = need_params && shared_sums ? shared.add((p.partial_size - p.n_bias_sums) * 4) : -1;
  p.bias_sums = need_params && p.n_bias_sums > 0 ? shared.add(p.n_warps * p.n_bias_sums * 4) : -1;
  p.shared_bytes = shared.size;
}

// Workspace: packed weights and partial sums. Activations need none.
MlpWorkspace plan_fused(MlpParams& p, bool backward, bool need_params) {
  MlpLayout packed;
  int64_t weight_sums = 0;
  for (int l = 0; l < p.n_layers; ++l) {
    MlpLayer& layer = p.layers[l];
    const int64_t tiles = int64_t{tiles_of(layer.n_in)} * tiles_of(layer.n_out);
    layer.packed_weight = packed.add(tiles * kTileWords * 4);
    layer.packed_transposed = backward ? packed.add(tiles * kTileWords * 4) : -1;
    layer.packed_bias = packed.add(tiles_of(layer.n_out) * kTile * 4);
    layer.grad_weight = weight_sums;
    weight_sums += tiles * kTileSums;
  }
  if (!backward) return {packed.size, 0, 0};
  p.n_bias_sums = 0;
  for (int l = 0; l < p.n_layers; ++l) {
    p.layers[l].grad_bias = weight_sums + p.n_bias_sums;
    if (p.layers[l].bias != nullptr) p.n_bias_sums += tiles_of(p.layers[l].n_out) * kTile;
  }
  p.partial_size = weight_sums + p.n_bias_sums;
  // As many warps as shared memory has room for; without the sums only if one warp beside them is too much.
  const int limit = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
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
  if (!need_params) return {packed.size, 0, 0};
  p.n_partials = std::min<int64_t>(kMaxPartials, divide_up(p.n_rows, kRowsPerPartial));
  p.n_partials = std::min(p.n_partials, std::max<int64_t>(4, kMaxPartialBytes / (p.partial_size * 4)));
  return {packed.size, 0, p.n_partials * p.partial_size * 4};
}

// Matrices of a chunk of n_block rows in global memory. Returns their size in bytes.
int64_t lay_out_chunk(MlpParams& p, int64_t n_block, bool backward) {
  const int64_t column = n_block * (p.dtype == DType::kFloat64 ? 8 : 4);
  MlpLayout scratch;
  int64_t widest = 0, alternate[2] = {-1, -1};
  for (int l = 0; l + 1 < p.n_layers; ++l) widest = std::max<int64_t>(widest, p.layers[l].n_out);
  for (int l = 0; l + 1 < p.n_layers; ++l) {
    // A forward alternates between two inputs; a backward keeps all.
    if (!backward && alternate[l % 2] < 0) alternate[l % 2] = scratch.add(widest * column);
    p.layers[l + 1].input = backward ? scratch.add(p.layers[l].n_out * column) : alternate[l % 2];
    const bool separate = backward && derivative_reads_input(p.activation);
    p.layers[l].source = separate ? scratch.add(p.layers[l].n_out * column) : -1;
  }
  widest = std::max<int64_t>(widest, p.layers[p.n_layers - 1].n_out);
  for (int64_t& staging : p.staging) staging = backward ? scratch.add(widest * column) : -1;
  return scratch.size;
}

// Workspace: a chunk's matrices and partial sums. Chunks and slices follow from the problem alone, hence the bits too.
MlpWorkspace plan_plain(MlpParams& p, bool backward, bool need_params) {
  const int64_t element = p.dtype == DType::kFloat64 ? 8 : 4;
  const int64_t per_tile = std::max<int64_t>(1, lay_out_chunk(p, kProductTile, backward));
  const int64_t tiles = std::max<int64_t>(1, std::min(divide_up(p.n_rows, kProductTile), kMaxChunkBytes / per_tile));
  const int64_t n_block = std::min<int64_t>(tiles * kProductTile, int64_t{1} << 30);
  p.n_block = static_cast<int32_t>(n_block);
  p.n_blocks = divide_up(p.n_rows, n_block);
  MlpWorkspace workspace = {0, lay_out_chunk(p, n_block, backward), 0};
  if (!backward || !need_params) return workspace;
  int64_t n_weights = 0, n_biases = 0;
  for (int l = 0; l < p.n_layers; ++l) {
    p.layers[l].grad_weight = n_weights;
    n_weights += int64_t{p.layers[l].n_in} * p.layers[l].n_out;
  }
  for (int l = 0; l < p.n_layers; ++l) {
    p.layers[l].grad_bias = n_weights + n_biases;
    if (p.layers[l].bias != nullptr) n_biases += p.layers[l].n_out;
  }
  p.partial_size = n_weights + n_biases;
  const int64_t fitting = std::max<int64_t>(1, kMaxPartialBytes / (p.partial_size * element));
  p.n_partials = std::min({divide_up(n_block, kSliceRows), fitting, int64_t{kMaxPartials}});
  p.n_slice = divide_up(n_block, p.n_partials);
  workspace.partials = p.n_partials * p.partial_size * element;
  return workspace;
}

// ---- launchers ---------------------------------------------------------------------------------------------------

// One grid for all layers, as wide as the largest needs.
void launch_pack(const MlpParams& p, cudaStream_t stream) {
  int64_t units = 0;
  for (int l = 0; l < p.n_layers; ++l) {
    units = std::max<int64_t>(units, tiles_of(p.layers[l].n_in) * tiles_of(p.layers[l].n_out) * kWarpSize);
  }
  HASHGRID_LAUNCH(mlp_pack_kernel, blocks_of(units, kPackThreads, static_cast<unsigned>(2 * p.n_layers)), stream, p);
}

template <int kTiles, int kM>
void launch_fused_forward(const MlpParams& p, cudaStream_t stream) {
  LaunchShape shape = blocks_of(p.n_rows, kForwardWarps * kM * kTile);
  shape.block = dim3(kForwardWarps * kWarpSize);
  if (p.activation == Activation::kReLU) {
    HASHGRID_LAUNCH_TOGETHER((mlp_fused_forward_kernel<kTiles, kM, true>), shape, stream, p);
  } else {
    HASHGRID_LAUNCH_TOGETHER((mlp_fused_forward_kernel<kTiles, kM, false>), shape, stream, p);
  }
}

template <int kTiles, int kM>
void launch_fused_backward(const MlpParams& p, cudaStream_t stream) {
  check_cuda(cudaFuncSetAttribute(mlp_fused_backward_kernel<kTiles, kM>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(p.shared_bytes)),
             "cudaFuncSetAttribute");
  LaunchShape shape = blocks_of(p.n_partials, 1, 1, static_cast<size_t>(p.shared_bytes));
  shape.block = dim3(static_cast<unsigned>(p.n_warps * kWarpSize));
  HASHGRID_LAUNCH_TOGETHER((mlp_fused_backward_kernel<kTiles, kM>), shape, stream, p);
}

template <typename T>
T* in_scratch(const MlpParams& p, int64_t offset) {
  return reinterpret_cast<T*>(static_cast<char*>(p.scratch) + offset);
}

// n_slices: of kWeights, else 1.
template <ProductKind kKind, typename T>
void launch_product(const Product<T>& q, int64_t n_slices, cudaStream_t stream) {
  LaunchShape shape = blocks_of(q.n_rows, kProductTile, static_cast<unsigned>(divide_up(q.n_columns, kProductTile)));
  shape.grid.z = static_cast<unsigned>(n_slices);
  shape.block = dim3(kThreads);
  HASHGRID_LAUNCH_TOGETHER((mlp_product_kernel<T, kKind>), shape, stream, q);
}

template <typename T>
void launch_activate(const T* z, T* y, int64_t n, Activation activation, cudaStream_t stream) {
  HASHGRID_LAUNCH(mlp_activate_kernel<T>, blocks_of(n, kThreads), stream, z, y, n, activation);
}

template <typename T>
void launch_derivative(const T* grad, const T* source, T* result, int64_t n, Activation activation, bool from_input,
                       cudaStream_t stream) {
  HASHGRID_LAUNCH(mlp_derivative_kernel<T>, blocks_of(n, kThreads), stream, grad, source, result, n, activation,
                  from_input);
}

// A layer's sums or, where that costs no more than a comparison, its outputs.
template <typename T>
void launch_layer(const MlpParams& p, int l, int64_t n_rows, const T* input, Activation activation, T* result,
                  cudaStream_t stream) {
  const MlpLayer& layer = p.layers[l];
  Product<T> q = {};
  q.n_rows = n_rows;
  q.n_columns = layer.n_out;
  q.n_depth = layer.n_in;
  q.a = input;
  q.b = static_cast<const T*>(layer.weight);
  q.bias = static_cast<const T*>(layer.bias);
  q.result = result;
  q.round = p.factors != MlpFactors::kReal;
  q.activation = derivative_reads_sign(activation) ? activation : Activation::kNone;
  launch_product<ProductKind::kForward>(q, 1, stream);
}

// Hidden layers of a chunk; inputs[l] receives those of layer l.
template <typename T>
void launch_hidden_layers(const MlpParams& p, int64_t first, int64_t n_rows, const T** inputs, cudaStream_t stream) {
  inputs[0] = static_cast<const T*>(p.x) + first * p.layers[0].n_in;
  for (int l = 0; l + 1 < p.n_layers; ++l) {
    T* y = in_scratch<T>(p, p.layers[l + 1].input);
    T* z = p.layers[l].source >= 0 ? in_scratch<T>(p, p.layers[l].source) : y;
    launch_layer(p, l, n_rows, inputs[l], p.activation, z, stream);
    if (!derivative_reads_sign(p.activation)) launch_activate(z, y, n_rows * p.layers[l].n_out, p.activation, stream);
    inputs[l + 1] = y;
  }
}

template <typename T>
void launch_plain_forward(const MlpParams& p, cudaStream_t stream) {
  const T* inputs[kMaxMlpLayers];
  const int last = p.n_layers - 1;
  const int64_t n_out = p.layers[last].n_out;
  for (int64_t first = 0; first < p.n_rows; first += p.n_block) {
    const int64_t n_rows = std::min<int64_t>(p.n_block, p.n_rows - first);
    launch_hidden_layers(p, first, n_rows, inputs, stream);
    T* y = static_cast<T*>(p.y) + first * n_out;
    launch_layer(p, last, n_rows, inputs[last], p.output_activation, y, stream);
    if (!derivative_reads_sign(p.output_activation)) {
      launch_activate(y, y, n_rows * n_out, p.output_activation, stream);
    }
  }
}

// Adds a layer's parameter gradients to the partial sums, or begins them.
template <typename T>
void launch_parameter_gradient(const MlpParams& p, int l, int64_t n_rows, const T* gradient, const T* input,
                               bool accumulate, cudaStream_t stream) {
  const MlpLayer& layer = p.layers[l];
  T* partials = static_cast<T*>(p.partials);
  Product<T> q = {};
  q.n_rows = layer.n_out;
  q.n_columns = layer.n_in;
  q.n_depth = n_rows;
  q.a = gradient;
  q.b = input;
  q.result = partials + layer.grad_weight;
  q.round = p.factors != MlpFactors::kReal;
  q.n_slice = p.n_slice;
  q.slice_size = p.partial_size;
  q.accumulate = accumulate;
  launch_product<ProductKind::kWeights>(q, p.n_partials, stream);
  if (layer.bias == nullptr) return;
  LaunchShape shape = blocks_of(layer.n_out, kWarpSize, static_cast<unsigned>(p.n_partials));
  shape.block = dim3(kReduceGroups * kWarpSize);
  HASHGRID_LAUNCH_TOGETHER(mlp_bias_gradient_kernel<T>, shape, stream, gradient, n_rows, int64_t{layer.n_out},
                           p.n_slice, partials + layer.grad_bias, p.partial_size, accumulate);
}

// Chunk by chunk: hidden layers again, then layers from last to first. Each chunk's launches add to the partial sums in
// stream order.
template <typename T>
void launch_plain_backward(const MlpParams& p, cudaStream_t stream) {
  const T* inputs[kMaxMlpLayers];
  const int last = p.n_layers - 1;
  const int64_t n_out = p.layers[last].n_out;
  for (int64_t first = 0; first < p.n_rows; first += p.n_block) {
    const int64_t n_rows = std::min<int64_t>(p.n_block, p.n_rows - first);
    launch_hidden_layers(p, first, n_rows, inputs, stream);
    const T* gradient = static_cast<const T*>(p.grad_y) + first * n_out;
    int slot = 0;
    if (p.output_activation != Activation::kNone) {
      T* z = in_scratch<T>(p, p.staging[slot]);
      launch_layer(p, last, n_rows, inputs[last], Activation::kNone, z, stream);
      launch_derivative(gradient, z, z, n_rows * n_out, p.output_activation, true, stream);
      gradient = z;
      slot = 1 - slot;
    }
    for (int l = last; l >= 0; --l) {
      const MlpLayer& layer = p.layers[l];
      if (p.partials != nullptr) launch_parameter_gradient(p, l, n_rows, gradient, inputs[l], first > 0, stream);
      if (l == 0 && p.grad_x == nullptr) break;
      Product<T> q = {};
      q.n_rows = n_rows;
      q.n_columns = layer.n_in;
      q.n_depth = layer.n_out;
      q.a = gradient;
      q.b = static_cast<const T*>(layer.weight);
      q.result = l > 0 ? in_scratch<T>(p, p.staging[slot]) : static_cast<T*>(p.grad_x) + first * layer.n_in;
      q.round = p.factors != MlpFactors::kReal;
      q.activation = l > 0 && derivative_reads_sign(p.activation) ? p.activation : Activation::kNone;
      q.outputs = inputs[l];
      launch_product<ProductKind::kBack>(q, 1, stream);
      if (l > 0 && !derivative_reads_sign(p.activation)) {
        const int64_t source = p.layers[l - 1].source;
        launch_derivative<T>(q.result, source >= 0 ? in_scratch<T>(p, source) : inputs[l], q.result,
                             n_rows * layer.n_in, p.activation, false, stream);
      }
      gradient = q.result;
      slot = 1 - slot;
    }
  }
}

template <typename T, bool kFused>
void launch_reduce(const MlpParams& p, cudaStream_t stream) {
  LaunchShape shape = blocks_of(p.partial_size, kWarpSize);
  shape.block = dim3(kReduceGroups * kWarpSize);
  HASHGRID_LAUNCH_TOGETHER((mlp_reduce_kernel<T, kFused>), shape, stream, p);
}

}  // namespace HASHGRID_ISA

using namespace HASHGRID_ISA;

MlpWorkspace plan_mlp(MlpParams& p, bool backward, bool need_params) {
  if (p.factors == MlpFactors::kRounded && widest_of(p) <= kMaxFusedWidth &&
      device_attribute(cudaDevAttrComputeCapabilityMajor) >= 8) {
    p.factors = MlpFactors::kBFloat16;
    return plan_fused(p, backward, need_params);
  }
  return plan_plain(p, backward, need_params);
}

void launch_mlp_forward(const MlpParams& p, cudaStream_t stream) {
  if (p.n_rows == 0) return;
  if (p.factors != MlpFactors::kBFloat16) {
    if (p.dtype == DType::kFloat64) return launch_plain_forward<double>(p, stream);
    return launch_plain_forward<float>(p, stream);
  }
  launch_pack(p, stream);
  const int tiles = tiles_of(widest_of(p));
  if (tiles <= 2) return launch_fused_forward<2, 2>(p, stream);
  if (tiles <= 4) return launch_fused_forward<4, 2>(p, stream);
  launch_fused_forward<8, 2>(p, stream);
}

void launch_mlp_backward(const MlpParams& p, cudaStream_t stream) {
  if (p.grad_x == nullptr && p.grad_params == nullptr) return;
  const bool fused = p.factors == MlpFactors::kBFloat16, wide = p.dtype == DType::kFloat64;
  if (p.n_rows == 0) {
    if (p.grad_params == nullptr) return;
    int64_t n = 0;
    for (int l = 0; l < p.n_layers; ++l) {
      n += int64_t{p.layers[l].n_out} * (p.layers[l].n_in + (p.layers[l].bias != nullptr ? 1 : 0));
    }
    check_cuda(cudaMemsetAsync(p.grad_params, 0, static_cast<size_t>(n * (wide ? 8 : 4)), stream), "cudaMemsetAsync");
    return;
  }
  if (fused) {
    launch_pack(p, stream);
    const int tiles = tiles_of(widest_of(p));
    if (tiles <= 2) {
      launch_fused_backward<2, 2>(p, stream);
    } else if (tiles <= 4) {
      launch_fused_backward<4, 2>(p, stream);
    } else {
      launch_fused_backward<8, 1>(p, stream);
    }
    if (p.grad_params != nullptr) launch_reduce<float, true>(p, stream);
    return;
  }
  if (wide) {
    launch_plain_backward<double>(p, stream);
    if (p.grad_params != nullptr) launch_reduce<double, false>(p, stream);
  } else {
    launch_plain_backward<float>(p, stream);
    if (p.grad_params != nullptr) launch_reduce<float, false>(p, stream);
  }
}

}  // namespace hashgrid
