// What kernels on tensor cores share (sm_80 and later): the rows of a warp as tiles in registers, and their way through
// the layers of a network. 16-bit factors, fp32 sums, widths up to 128.
//
// A warp takes 16 or 32 rows through all layers in registers (mma.cuh: sums are laid out as the next product's
// factors). Weights are packed once per call in the order in which lanes read them, and stay in the L1 cache.
#pragma once

#include "cuda/mlp.cuh"
#include "cuda/mma.cuh"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kTile = 16;            // rows and columns of a tile of factors
constexpr int kTileWords = 128;      // of a stored tile of factors: 4 matrices of 8 x 8, two values to a word
constexpr int kMaxFusedWidth = 128;  // factors and sums of a warp's rows have to fit into registers
constexpr int kForwardWarps = 4;     // of a block; they share nothing but the L1 cache
// Blocks of a multiprocessor: 12 warps up to 64 wide, as with 128 registers for 16 some architectures spill a few.
constexpr int forward_blocks(int tiles) { return tiles <= 4 ? 3 : 2; }

__host__ __device__ inline int tiles_of(int width) { return (width + kTile - 1) / kTile; }

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
template <class Half, int kTiles, int kM>
struct Factors {
  uint32_t words[kTiles][kM][4];
};

// Activations that call functions, out of line: inlined, in a loop over four values at a time, they were a third of the
// machine code of the radiance kernels.
__device__ HASHGRID_CALLED float activate_by_call(float z, Activation activation) { return activate(z, activation); }

__device__ HASHGRID_CALLED float derivative_by_call(float z, Activation activation) {
  return activation_derivative(derivative_reads_input(activation) ? z : activate(z, activation), activation);
}

// Every value becomes use(value, m, v).
template <int kM, typename Use>
__device__ inline void for_each_sum(Sums<kM>* sums, Use use) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int v = 0; v < 8; ++v) sums->values[m][v] = use(sums->values[m][v], m, v);
  }
}

// Values before the activation become those behind it.
template <int kM>
__device__ inline void activate_sums(Activation activation, Sums<kM>* sums) {
  if (activation == Activation::kNone) return;
  if (activation == Activation::kReLU) {
    return for_each_sum(sums, [](float z, int, int) { return activate(z, Activation::kReLU); });
  }
  if (activation == Activation::kLeakyReLU) {
    return for_each_sum(sums, [](float z, int, int) { return activate(z, Activation::kLeakyReLU); });
  }
  for_each_sum(sums, [&](float z, int, int) { return activate_by_call(z, activation); });
  __syncwarp();
}

// Gradients behind the activation become those before it. `source` holds its inputs; for activations that keep the
// sign, what has the sign of the inputs.
template <int kM>
__device__ inline void pull_back_sums(Activation activation, const Sums<kM>& source, Sums<kM>* grad) {
  if (activation == Activation::kNone) return;
  const auto pull_back_all = [&](Activation known) {
    for_each_sum(grad, [&](float g, int m, int v) { return pull_back(g, source.values[m][v], known); });
  };
  if (activation == Activation::kReLU) return pull_back_all(Activation::kReLU);
  if (activation == Activation::kLeakyReLU) return pull_back_all(Activation::kLeakyReLU);
  for_each_sum(grad, [&](float g, int m, int v) { return g * derivative_by_call(source.values[m][v], activation); });
  __syncwarp();
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
template <class Half, int kM>
__device__ inline void pack_sums(const Sums<kM>& sums, uint32_t (&words)[kM][4]) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int i = 0; i < 4; ++i) words[m][i] = pack_pair<Half>(sums.values[m][2 * i], sums.values[m][2 * i + 1]);
  }
}

// The same behind a ReLU.
template <class Half, int kM>
__device__ inline void pack_relu_sums(const Sums<kM>& sums, uint32_t (&words)[kM][4]) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      words[m][i] = pack_relu_pair<Half>(sums.values[m][2 * i], sums.values[m][2 * i + 1]);
    }
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

  // Whether kM tiles, one below the other, lie inside: most do, and need a fifth of the instructions.
  template <int kM>
  __device__ bool has_whole(int tile) const {
    return in_pairs && first + kM * kTile <= n_rows && (tile + 1) * kTile <= n_columns;
  }

  // Where value v of this lane's sums m of such a tile is.
  __device__ float* pair(int tile, int m, int v) const {
    return data + (first + lane_index() / 4) * n_columns + tile * kTile + lane_index() % 4 * 2 +
           (m * kTile + 8 * (v / 2 % 2)) * n_columns + 8 * (v / 4);
  }
};

// Tile `tile` of each of kM rows of tiles, zeros outside. Four lanes read a sector of 32 bytes.
template <int kM>
__device__ inline void load_sums(const UserRows& user, int tile, Sums<kM>* sums) {
  if (user.has_whole<kM>(tile)) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int v = 0; v < 8; v += 2) load_row<float, 2>(user.pair(tile, m, v), &sums->values[m][v]);
    }
    return;
  }
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
  if (user.has_whole<kM>(tile)) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int v = 0; v < 8; v += 2) store_row<float, 2>(user.pair(tile, m, v), &sums.values[m][v]);
    }
    return;
  }
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
template <class Half, int kTiles, int kM>
__device__ inline void load_user_factors(const UserRows& user, Factors<Half, kTiles, kM>* factors) {
  const int n_tiles = tiles_of(user.n_columns);
#pragma unroll
  for (int k = 0; k < kTiles; ++k) {
    Sums<kM> sums = {};
    if (k < n_tiles) load_sums(user, k, &sums);
    pack_sums<Half>(sums, factors->words[k]);
  }
}

// Column `column` < 8 of a tile of sums, brought to the lanes that stand for its rows.
template <int kM>
__device__ inline float column_to_lanes(const Sums<kM>& sums, int column) {
  float own = 0.0f;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float value = column % 2 == 0 ? sums.values[m][2 * h] : sums.values[m][2 * h + 1];
      const float other = value_of_lane(value, lane_index() % 8 * 4 + column / 2);
      if (lane_index() / 8 == 2 * m + h) own = other;
    }
  }
  return own;
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
template <class Half, int kM>
__device__ inline void add_product(const uint32_t (&factors)[kM][4], const PackedWeights& weights, Sums<kM>* sums) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    multiply_add<Half>(sums->values[m], factors[m], weights.values[0], weights.values[1]);
    multiply_add<Half>(sums->values[m] + 4, factors[m], weights.values[2], weights.values[3]);
  }
}

// Every sum begins with its column's bias, if there is one.
template <int kM>
__device__ inline void begin_with_bias(const MlpParams& p, const MlpLayer& layer, int tile, Sums<kM>* sums) {
  if (layer.bias == nullptr) {
    *sums = {};
    return;
  }
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
template <class Half, int kTiles, int kM>
__device__ inline void multiply(const Factors<Half, kTiles, kM>& factors, const PackedWeights* weights, int n_depth,
                                Sums<kM>* sums) {
  if (n_depth == kTiles) {  // without branches, so that all loads begin before the first product
#pragma unroll
    for (int k = 0; k < kTiles; ++k) add_product<Half>(factors.words[k], load_weights(weights, k), sums);
    return;
  }
#pragma unroll
  for (int k = 0; k < kTiles; ++k) {
    if (k < n_depth) add_product<Half>(factors.words[k], load_weights(weights, k), sums);
  }
}

// What a layer makes of `factors` in one tile of its outputs, before the activation.
template <class Half, int kTiles, int kM>
__device__ inline void forward_tile(const MlpParams& p, const MlpLayer& layer, int tile,
                                    const Factors<Half, kTiles, kM>& factors, Sums<kM>* sums) {
  const int n_depth = tiles_of(layer.n_in);
  begin_with_bias(p, layer, tile, sums);
  multiply(factors, in_packed<PackedWeights>(p, layer.packed_weight) + tile * n_depth * kWarpSize, n_depth, sums);
}

// ---- layers of a warp --------------------------------------------------------------------------------------------

// A hidden layer without biases, ReLU behind it, kTiles tiles wide, of kDepth tiles: no branches, and a sixth of the
// instructions of the general way.
template <class Half, int kTiles, int kM, int kDepth>
__device__ inline void pass_whole_layer(const PackedWeights* weights, Factors<Half, kTiles, kM>* factors) {
  Factors<Half, kTiles, kM> next;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    Sums<kM> sums = {};
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      add_product<Half>(factors->words[k], load_weights(weights, tile * kDepth + k), &sums);
    }
    pack_relu_sums<Half>(sums, next.words[tile]);
  }
  *factors = next;
}

// Takes the factors of a warp's rows through layers begin..end-1, all of them hidden. kReLU: the activation, whose
// loops then unroll; others are too long for that.
template <class Half, int kTiles, int kM, bool kReLU>
__device__ inline void pass_hidden_layers(const MlpParams& p, int begin, int end, Factors<Half, kTiles, kM>* factors) {
  for (int l = begin; l < end; ++l) {
    const MlpLayer& layer = p.layers[l];
    const int n_tiles = tiles_of(layer.n_out);
    if constexpr (kReLU && kTiles <= 4) {
      const int n_depth = tiles_of(layer.n_in);
      const bool whole = layer.n_out == kTiles * kTile && layer.bias == nullptr;
      if (whole && (n_depth == kTiles || 2 * n_depth == kTiles)) {
        const PackedWeights* weights = in_packed<PackedWeights>(p, layer.packed_weight);
        if (n_depth == kTiles) {
          pass_whole_layer<Half, kTiles, kM, kTiles>(weights, factors);
        } else {
          pass_whole_layer<Half, kTiles, kM, kTiles / 2>(weights, factors);
        }
        continue;
      }
    }
    // A register cannot be chosen by a number known at run time: each turn puts its tile last and moves the others up.
    Factors<Half, kTiles, kM> next = {};
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
      forward_tile(p, layer, tile, *factors, &sums);
      activate_sums(kReLU ? Activation::kReLU : p.activation, &sums);
      clear_outside(kM * kTile, layer.n_out - tile * kTile, &sums);
      pack_sums<Half>(sums, next.words[kTiles - 1]);
    }
    *factors = next;
  }
}

// The last layer, to rows of y from `first` on.
template <class Half, int kTiles, int kM>
__device__ inline void write_last_layer(const MlpParams& p, int64_t first, const Factors<Half, kTiles, kM>& factors) {
  const MlpLayer& layer = p.layers[p.n_layers - 1];
  const UserRows y(p.y, first, p.n_rows, layer.n_out);
#pragma unroll 1
  for (int tile = 0; tile < tiles_of(layer.n_out); ++tile) {
    Sums<kM> sums;
    forward_tile(p, layer, tile, factors, &sums);
    activate_sums(p.output_activation, &sums);
    store_sums(y, tile, sums);
  }
}

// ---- launches ----------------------------------------------------------------------------------------------------

// sm_75 has float16 products of half this depth, and none of bfloat16: there both run in fp32, rounded alike.
inline bool has_fused_layers(const MlpParams& p) {
  return p.factors != MlpFactors::kReal && widest_of(p) <= kMaxFusedWidth && has_tensor_cores();
}

// Where packed weights and biases lie; returns their bytes.
inline int64_t lay_out_packed(MlpParams& p, bool backward) {
  MlpLayout packed;
  for (int l = 0; l < p.n_layers; ++l) {
    MlpLayer& layer = p.layers[l];
    const int64_t bytes = int64_t{tiles_of(layer.n_in)} * tiles_of(layer.n_out) * kTileWords * 4;
    layer.packed_weight = packed.add(bytes);
    layer.packed_transposed = backward ? packed.add(bytes) : -1;
    layer.packed_bias = packed.add(tiles_of(layer.n_out) * kTile * 4);
  }
  return packed.size;
}

// Packs weights and biases, for kernels launched after it; see PackedWeights.
void launch_pack(const MlpParams& p, cudaStream_t stream);

// Blocks of kForwardWarps, each warp with kM tiles of rows.
inline LaunchShape blocks_of_warps(int64_t n_rows, int row_tiles) {
  LaunchShape shape = blocks_of(n_rows, kForwardWarps * row_tiles * kTile);
  shape.block = dim3(kForwardWarps * kWarpSize);
  return shape;
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
