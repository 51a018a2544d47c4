// The MLP on tensor cores (sm_80 and later), fused: 16-bit factors, fp32 sums, widths up to 128.
//
// A warp takes 16 or 32 rows through all layers in registers (mma.cuh: sums are laid out as the next product's
// factors). Weights are packed once per call in the order in which lanes read them, and stay in the L1 cache. The
// backward computes the forward again, keeps each layer's factors in shared memory and sums up parameter gradients per
// block; derivatives that need the value before the activation take that product a second time, which is cheaper than
// fp32 copies in shared memory and gives the same bits.
#pragma once

#include "cuda/mlp.cuh"
#include "cuda/mma.cuh"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kTile = 16;             // rows and columns of a tile of factors
constexpr int kTileWords = 128;       // of a stored tile of factors: 4 matrices of 8 x 8, two values to a word
constexpr int kTileSums = 256;        // of a stored tile of sums
constexpr int kMaxFusedWidth = 128;   // factors and sums of a warp's rows have to fit into registers
constexpr int kForwardWarps = 4;      // of a block; they share nothing but the L1 cache
constexpr int kMaxFusedRows = 128;    // of a block
constexpr int kRowsPerPartial = 128;  // at least; with the number of rows this fixes the order of sums on every card
constexpr int kPackThreads = 128;

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

// Every value becomes use(value), four per turn, in which the others move up: a register cannot be chosen by a number
// known at run time. Unrolled, the activations that call functions were half of the compile time.
template <int kM, typename Use>
__device__ inline void in_turns(Sums<kM>* sums, Use use) {
  constexpr int kPerTurn = 4, kAll = kM * 8;
#pragma unroll 1
  for (int turn = 0; turn < kAll / kPerTurn; ++turn) {
    float done[kPerTurn];
#pragma unroll
    for (int i = 0; i < kPerTurn; ++i) done[i] = use(sums->values[0][i]);
#pragma unroll
    for (int i = 0; i < kAll; ++i) {
      const int from = i + kPerTurn;
      sums->values[i / 8][i % 8] = from < kAll ? sums->values[from / 8 % kM][from % 8] : done[from % kPerTurn];
    }
  }
}

// Values before the activation become those behind it.
template <int kM>
__device__ inline void activate_sums(Activation activation, Sums<kM>* sums) {
  with_activation(activation, [&](auto tag) {
    if constexpr (tag.value == Activation::kReLU || tag.value == Activation::kLeakyReLU) {
#pragma unroll
      for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int v = 0; v < 8; ++v) sums->values[m][v] = activate(sums->values[m][v], tag.value);
      }
    } else {
      in_turns(sums, [&](float z) { return activate(z, tag.value); });
    }
  });
  if (!derivative_reads_sign(activation)) __syncwarp();
}

// Gradients behind the activation become those before it. `source` holds its inputs and is lost; for activations that
// keep the sign, what has the sign of the inputs.
template <int kM>
__device__ inline void pull_back_sums(Activation activation, Sums<kM>* source, Sums<kM>* grad) {
  with_activation(activation, [&](auto tag) {
    constexpr bool kSign = tag.value == Activation::kReLU || tag.value == Activation::kLeakyReLU;
    if constexpr (!kSign) {
      in_turns(source, [&](float z) {
        return activation_derivative(derivative_reads_input(tag.value) ? z : activate(z, tag.value), tag.value);
      });
    }
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int v = 0; v < 8; ++v) {
        const float g = grad->values[m][v], s = source->values[m][v];
        grad->values[m][v] = kSign ? pull_back(g, s, tag.value) : g * s;
      }
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
template <class Half, int kM>
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
    packed.values[i] = p.factors == MlpFactors::kFloat16 ? pack_pair<Float16>(pair[0], pair[1])
                                                         : pack_pair<BFloat16>(pair[0], pair[1]);
  }
  char* memory = static_cast<char*>(p.packed);
  reinterpret_cast<PackedWeights*>(memory + offset)[unit] = packed;
  if (transposed || unit >= tiles_of(n_columns) * kTile) return;
  const bool has_bias = layer.bias != nullptr && unit < n_columns;
  reinterpret_cast<float*>(memory + layer.packed_bias)[unit] =
      has_bias ? static_cast<const float*>(layer.bias)[unit] : 0.0f;
}

// Body of mlp_fused_forward_kernel, on its own so that it is left out where there are no such instructions.
template <class Half, int kTiles, int kM, bool kReLU>
__device__ inline void fused_forward(const MlpParams& p) {
  const int last = p.n_layers - 1;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kForwardWarps + warp_index()) * (kM * kTile);
  if (first >= p.n_rows) return;
  Factors<Half, kTiles, kM> factors;
  load_user_factors(UserRows(p.x, first, p.n_rows, p.layers[0].n_in), &factors);
  for (int l = 0; l < last; ++l) {
    const MlpLayer& layer = p.layers[l];
    const int n_tiles = tiles_of(layer.n_out);
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
      forward_tile(p, layer, tile, factors, &sums);
      activate_sums(kReLU ? Activation::kReLU : p.activation, &sums);
      clear_outside(kM * kTile, layer.n_out - tile * kTile, &sums);
      pack_sums<Half>(sums, next.words[kTiles - 1]);
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
template <class Half, int kTiles, int kM, bool kReLU>
__global__ void __launch_bounds__(kForwardWarps* kWarpSize, 2) mlp_fused_forward_kernel(HASHGRID_PARAMS MlpParams p) {
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
    add_product<Half>(words, load_weights(weights, k), source);
  }
}

// ---- gradients in float16 ----------------------------------------------------------------------------------------
//
// float16 ends at 6e-8 and 65504, gradients do not: those of a mean over 2^18 rows begin at 4e-6. So each row of a
// stored gradient is in a unit of its own, a power of two, which the product's sums are multiplied by: exact, no row
// depends on another, and no loss scale is needed. A unit per tile or block would cost less, but one row of 1e9 would
// then erase those beside it. Gradients of weights sum over rows, which there come into the unit of the block's
// largest: a row 2^24 times smaller drops out, as it would from an fp32 sum.

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

__device__ inline StoredGradient stored_gradient(const MlpParams& p, unsigned char* shared, int slot, int width) {
  return {stored_factors(shared, p.gradient[slot], width), reinterpret_cast<uint32_t*>(shared + p.units[slot])};
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
    if (lane_index() % 4 != 0) return;
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) stored.units[(warp_index() * kM + m) * kTile + row_of(2 * h)] = units.bits[m][h];
    }
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

// Adds transposed(gradient) * input over the block's rows to `sums`, [tiles of n_out, tiles of n_in] tiles. Each warp
// has squares of two by two tiles of its own, always the same, so that no barrier is needed between layers or blocks
// of rows. A tile of sums is stored as [column half, lane, 4]: neither banks nor sectors conflict. Sums over a block's
// rows stay in registers and meet the stored ones once per block, which also keeps rounding errors small.
template <class Half>
__device__ inline void add_weight_gradient(const StoredGradient& stored, const StoredFactors& input, int n_row_tiles,
                                           float* sums) {
  const StoredFactors& gradient = stored.factors;
  const int n_warps = static_cast<int>(blockDim.x) / kWarpSize;
  const int pairs_out = (gradient.n_tiles + 1) / 2, pairs_in = (input.n_tiles + 1) / 2;
  const uint32_t unit_bits = kHasUnits<Half> ? largest_unit(stored, n_row_tiles) : 0;
  const float block_unit = kHasUnits<Half> ? __uint_as_float(unit_bits) : 1.0f;
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
      if constexpr (kHasUnits<Half>) {
        // All rows in the block's unit: register i holds rows 2t and 2t + 1, in every other one 8 more.
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const uint32_t* pair = stored.units + row * kTile + h * 8 + lane_index() % 4 * 2;
          const float inverse = inverse_power(unit_bits);
          const uint32_t ratio =
              pack_pair<Half>(__uint_as_float(pair[0]) * inverse, __uint_as_float(pair[1]) * inverse);
#pragma unroll
          for (int o = 0; o < 2; ++o) {
            g[o][h] = multiply_pair<Half>(g[o][h], ratio);
            g[o][h + 2] = multiply_pair<Half>(g[o][h + 2], ratio);
          }
        }
      }
      // Transposed, the matrices right of the diagonal come before those left of it.
      const uint32_t factors[2][4] = {{g[0][0], g[0][2], g[0][1], g[0][3]}, {g[1][0], g[1][2], g[1][1], g[1][3]}};
      add_product<Half>(factors, {{a[0][0], a[0][1], a[0][2], a[0][3]}}, &total[0]);
      if (second_in) add_product<Half>(factors, {{a[1][0], a[1][1], a[1][2], a[1][3]}}, &total[1]);
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
          for (int v = 0; v < 4; ++v) values[v] += total[i].values[o][half * 4 + v] * block_unit;
          store_row<float, 4>(tile + half * (kTileSums / 2), values);
        }
      }
    }
  }
}

// Layers l = 0..last of a warp's rows; their factors go to shared memory. Returns the last layer's in `factors`.
template <class Half, int kTiles, int kM>
__device__ inline void forward_again(const MlpParams& p, unsigned char* shared, int64_t first,
                                     Factors<Half, kTiles, kM>* factors) {
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
      pack_sums<Half>(sums, words);
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
  const StoredGradient gradient = stored_gradient(p, shared, 0, layer.n_out);
  RowUnits<kM> units;
#pragma unroll 1
  for (int tile = 0; tile < gradient.factors.n_tiles; ++tile) {
    Sums<kM> grad;
    load_sums(grad_y, tile, &grad);
    if (p.output_activation != Activation::kNone) {
      Sums<kM> z;
      forward_tile(p, layer, tile, factors, &z);
      pull_back_sums(p.output_activation, &z, &grad);
      clear_outside(p.n_rows - first, layer.n_out - tile * kTile, &grad);
    }
    add_bias_gradient(p, shared, p.n_layers - 1, tile, grad);
    store_gradient<Half>(gradient, tile, &grad, &units);
  }
  store_units<Half>(gradient, units);
}

// The gradient of layer l's sums, in shared memory, pulled back to those of layer l - 1, or to x.
template <class Half, int kTiles, int kM>
__device__ inline void pull_gradient(const MlpParams& p, unsigned char* shared, int l, int slot, int64_t first) {
  const MlpLayer& layer = p.layers[l];
  const StoredGradient gradient = stored_gradient(p, shared, slot, layer.n_out);
  const StoredGradient next = stored_gradient(p, shared, 1 - slot, layer.n_in);
  const PackedWeights* weights = in_packed<PackedWeights>(p, layer.packed_transposed);
  Factors<Half, kTiles, kM> factors = {};
  load_factors(gradient.factors, &factors);
  const int n_depth = gradient.factors.n_tiles;
  RowUnits<kM> units;
#pragma unroll 1
  for (int tile = 0; tile < next.factors.n_tiles; ++tile) {
    Sums<kM> grad = {};
    multiply(factors, weights + tile * n_depth * kWarpSize, n_depth, &grad);
    apply_units<Half>(gradient, &grad);
    if (l == 0) {
      store_sums(UserRows(p.grad_x, first, p.n_rows, layer.n_in), tile, grad);
      continue;
    }
    if (p.activation != Activation::kNone) {
      Sums<kM> source;
      load_source<Half>(p, shared, l, tile, &source);
      pull_back_sums(p.activation, &source, &grad);
    }
    clear_outside(p.n_rows - first, layer.n_in - tile * kTile, &grad);
    add_bias_gradient(p, shared, l - 1, tile, grad);
    store_gradient<Half>(next, tile, &grad, &units);
  }
  if (l > 0) store_units<Half>(next, units);
}

// Body of mlp_fused_backward_kernel. One barrier per layer is enough with two slots for gradients: behind it, one slot
// is complete and only read, the other no longer read and written for the next layer.
template <class Half, int kTiles, int kM>
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
      Factors<Half, kTiles, kM> factors = {};
      forward_again(p, shared, first, &factors);
      begin_gradient(p, shared, first, factors);
    }
    int slot = 0;
    for (int l = last; l >= 0; --l) {
      const MlpLayer& layer = p.layers[l];
      __syncthreads();  // the gradient is complete; the other slot is no longer read
      if (partial != nullptr) {
        add_weight_gradient<Half>(stored_gradient(p, shared, slot, layer.n_out),
                                  stored_factors(shared, layer.input, layer.n_in), n_row_tiles,
                                  sums + layer.grad_weight);
      }
      if (active && (l > 0 || p.grad_x != nullptr)) pull_gradient<Half, kTiles, kM>(p, shared, l, slot, first);
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
template <class Half, int kTiles, int kM>
__global__ void __launch_bounds__(kMaxFusedRows / (kM * kTile) * kWarpSize, 1)
    mlp_fused_backward_kernel(HASHGRID_PARAMS MlpParams p) {
  if constexpr (kHasMma) fused_backward<Half, kTiles, kM>(p);
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
  int widest_out = 0;
  for (int l = 0; l < p.n_layers; ++l) {
    MlpLayer& layer = p.layers[l];
    layer.input = shared.add(row_tiles * tiles_of(layer.n_in) * kTileWords * int64_t{4});
    widest_out = std::max(widest_out, tiles_of(layer.n_out));
  }
  for (int slot = 0; slot < 2; ++slot) {
    p.gradient[slot] = shared.add(row_tiles * widest_out * kTileWords * int64_t{4});
    p.units[slot] = p.factors == MlpFactors::kFloat16 ? shared.add(p.n_block * int64_t{4}) : 0;
  }
  p.sums = need_params && shared_sums ? shared.add((p.partial_size - p.n_bias_sums) * 4) : -1;
  p.bias_sums = need_params && p.n_bias_sums > 0 ? shared.add(p.n_warps * p.n_bias_sums * 4) : -1;
  p.shared_bytes = shared.size;
}

// Workspace: packed weights and partial sums. Activations need none.
inline MlpWorkspace plan_fused(MlpParams& p, bool backward, bool need_params) {
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

// One grid for all layers, as wide as the largest needs.
inline void launch_pack(const MlpParams& p, cudaStream_t stream) {
  int64_t units = 0;
  for (int l = 0; l < p.n_layers; ++l) {
    units = std::max<int64_t>(units, tiles_of(p.layers[l].n_in) * tiles_of(p.layers[l].n_out) * kWarpSize);
  }
  HASHGRID_LAUNCH(mlp_pack_kernel, blocks_of(units, kPackThreads, static_cast<unsigned>(2 * p.n_layers)), stream, p);
}

template <class Half, int kTiles, int kM>
void launch_fused_forward_of(const MlpParams& p, cudaStream_t stream) {
  LaunchShape shape = blocks_of(p.n_rows, kForwardWarps * kM * kTile);
  shape.block = dim3(kForwardWarps * kWarpSize);
  if (p.activation == Activation::kReLU) {
    HASHGRID_LAUNCH_TOGETHER((mlp_fused_forward_kernel<Half, kTiles, kM, true>), shape, stream, p);
  } else {
    HASHGRID_LAUNCH_TOGETHER((mlp_fused_forward_kernel<Half, kTiles, kM, false>), shape, stream, p);
  }
}

template <class Half, int kTiles, int kM>
void launch_fused_backward_of(const MlpParams& p, cudaStream_t stream) {
  check_cuda(cudaFuncSetAttribute(mlp_fused_backward_kernel<Half, kTiles, kM>,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(p.shared_bytes)),
             "cudaFuncSetAttribute");
  LaunchShape shape = blocks_of(p.n_partials, 1, 1, static_cast<size_t>(p.shared_bytes));
  shape.block = dim3(static_cast<unsigned>(p.n_warps * kWarpSize));
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
