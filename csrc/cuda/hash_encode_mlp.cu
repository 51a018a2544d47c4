// A hash grid and the network behind it as one kernel, without gradients: features go from the table to the tensor
// cores in registers (mlp_tiles.cuh), as many bytes less as they have going out and coming back: 256 per point with 16
// levels of 2 features.
//
// A lane's factors are pairs of neighbouring columns, and a pair of columns is a pair of features of one level: each
// lane encodes the points of its rows at the levels of its columns, and nothing is exchanged. Values are rounded where
// the two ops on their own would round them, so that the result has the same bits.
#include "cuda/hash_encode.cuh"
#include "cuda/mlp_tiles.cuh"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kRowTiles = 2;  // of a warp: two share each load of weights

// ---- features of a warp's points -----------------------------------------------------------------------------------

// The levels as a block keeps them: lanes of a warp are at four levels at a time, for which constant memory would take
// turns.
__device__ inline const GridLevel* share_levels(const HashEncodeParams& grid) {
  __shared__ GridLevel levels[kMaxLevels];
  for (int l = static_cast<int>(threadIdx.x); l < grid.n_levels; l += static_cast<int>(blockDim.x)) {
    levels[l] = grid.levels[l];
  }
  __syncthreads();
  return levels;
}

// Features of points `first` and on, as factors; zeros outside.
template <typename Element, class Half, int kDims, int kTiles>
__device__ inline void encode_factors(const HashEncodeParams& grid, const GridLevel* levels, int64_t first,
                                      Factors<Half, kTiles, kRowTiles>* factors) {
  GridPoint<float, kDims> points[kRowTiles][2];
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t n = first + m * kTile + row_of(2 * h);
      points[m][h] = load_point<float, kDims>(grid, n < grid.n_points ? n : first);
    }
  }
  const int width = grid.n_levels * grid.n_features;
  // Half a tile per turn, 8 columns: it comes last, and the others move up, as a register cannot be chosen by a number
  // known at run time.
  uint32_t halves[2 * kTiles][kRowTiles][2] = {};
#pragma unroll 1
  for (int turn = 0; turn < 2 * kTiles; ++turn) {
#pragma unroll
    for (int k = 0; k + 1 < 2 * kTiles; ++k) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int h = 0; h < 2; ++h) halves[k][m][h] = halves[k + 1][m][h];
      }
    }
    const int column = turn * 8 + lane_index() % 4 * 2;
    const bool inside = column < width;
    const int l = inside ? column / grid.n_features : 0;
    const int feature = inside ? column - l * grid.n_features : 0;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float pair[2] = {};
        if (inside) interpolate<float, Element>(grid, l, levels[l], points[m][h], grid.n_features, feature, pair);
        halves[2 * kTiles - 1][m][h] = pack_pair<Half>(pair[0], pair[1]);
      }
    }
    __syncwarp();
  }
#pragma unroll
  for (int k = 0; k < kTiles; ++k) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) factors->words[k][m][i] = halves[2 * k + i / 2][m][i % 2];
    }
  }
}

// ---- kernel ------------------------------------------------------------------------------------------------------

template <typename Element, class Half, int kDims, int kTiles, bool kReLU>
__device__ inline void encode_and_pass(const HashEncodeParams& grid, const MlpParams& p) {
  const GridLevel* levels = share_levels(grid);
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kForwardWarps + warp_index()) * (kRowTiles * kTile);
  if (first >= p.n_rows) return;
  Factors<Half, kTiles, kRowTiles> factors;
  encode_factors<Element, Half, kDims>(grid, levels, first, &factors);
  pass_hidden_layers<Half, kTiles, kRowTiles, kReLU>(p, &factors);
  write_last_layer(p, first, factors);
}

// Warp: 32 points through grid and layers, each at most kTiles * 16 wide. kReLU: of the hidden layers.
template <typename Element, class Half, int kDims, int kTiles, bool kReLU>
__global__ void __launch_bounds__(kForwardWarps* kWarpSize, 2)
    hash_encode_mlp_kernel(HASHGRID_PARAMS HashEncodeParams grid, HASHGRID_PARAMS MlpParams p) {
  if constexpr (kHasMma) encode_and_pass<Element, Half, kDims, kTiles, kReLU>(grid, p);
}

// ---- choice of an instance ---------------------------------------------------------------------------------------

template <typename Element, class Half, int kDims, int kTiles>
void launch_of(const HashEncodeParams& grid, const MlpParams& p, cudaStream_t stream) {
  const LaunchShape shape = blocks_of_warps(p.n_rows, kRowTiles);
  if (p.activation == Activation::kReLU) {
    HASHGRID_LAUNCH_TOGETHER((hash_encode_mlp_kernel<Element, Half, kDims, kTiles, true>), shape, stream, grid, p);
  } else {
    HASHGRID_LAUNCH_TOGETHER((hash_encode_mlp_kernel<Element, Half, kDims, kTiles, false>), shape, stream, grid, p);
  }
}

template <typename Element, class Half>
void launch_of_types(const HashEncodeParams& grid, const MlpParams& p, cudaStream_t stream) {
  const bool narrow = widest_of(p) <= kMaxFusedWidth / 2;
  if (grid.n_dims == 2)
    return narrow ? launch_of<Element, Half, 2, 4>(grid, p, stream) : launch_of<Element, Half, 2, 8>(grid, p, stream);
  narrow ? launch_of<Element, Half, 3, 4>(grid, p, stream) : launch_of<Element, Half, 3, 8>(grid, p, stream);
}

template <class Half>
void launch_of_factors(const HashEncodeParams& grid, const MlpParams& p, cudaStream_t stream) {
  if (grid.table_dtype == DType::kFloat32) return launch_of_types<float, Half>(grid, p, stream);
  launch_of_types<Half, Half>(grid, p, stream);
}

}  // namespace HASHGRID_ISA

using namespace HASHGRID_ISA;

namespace {

DType dtype_of(MlpFactors factors) { return factors == MlpFactors::kFloat16 ? DType::kFloat16 : DType::kBFloat16; }

}  // namespace

bool has_hash_encode_mlp(const HashEncodeParams& grid, const MlpParams& p) {
  return grid.dtype == DType::kFloat32 && (grid.n_dims == 2 || grid.n_dims == 3) && grid.n_features % 2 == 0 &&
         (grid.table_dtype == DType::kFloat32 || grid.table_dtype == dtype_of(p.factors)) && has_fused_layers(p);
}

int64_t plan_hash_encode_mlp(MlpParams& p) {
  p.halves = true;
  return lay_out_packed(p, false);
}

void launch_hash_encode_mlp(const HashEncodeParams& grid, const MlpParams& p, cudaStream_t stream) {
  launch_pack(p, stream);
  if (p.factors == MlpFactors::kFloat16) return launch_of_factors<Float16>(grid, p, stream);
  launch_of_factors<BFloat16>(grid, p, stream);
}

}  // namespace hashgrid
