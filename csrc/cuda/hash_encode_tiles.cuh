// Features of a hash grid as the factors of a network's first layer: they go from the table to the tensor cores in
// registers (mlp_tiles.cuh), as many bytes less as they have going out and coming back: 256 per point with 16 levels of
// 2 features.
//
// A lane's factors are pairs of neighbouring columns, and a pair of columns is a pair of features of one level: each
// lane encodes the points of its rows at the levels of its columns, and nothing is exchanged.
#pragma once

#include "cuda/hash_encode.cuh"
#include "cuda/mlp_tiles.cuh"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kRowTiles = 2;  // of a warp: two share each load of weights

// The levels as a block keeps them: lanes of a warp are at four levels at a time, for which constant memory would take
// turns.
__device__ inline const GridLevel* share_levels(const GridParams& grid) {
  __shared__ GridLevel levels[kMaxLevels];
  for (int l = static_cast<int>(threadIdx.x); l < grid.n_levels; l += static_cast<int>(blockDim.x)) {
    levels[l] = grid.levels[l];
  }
  __syncthreads();
  return levels;
}

// Features of a warp's points, as factors; zeros behind the last column. point_of(row) is asked for the lane's rows, by
// all lanes together.
template <typename Element, class Half, int kDims, int kTiles, typename PointOf>
__device__ inline void encode_factors(const GridParams& grid, const GridLevel* levels, PointOf point_of,
                                      Factors<Half, kTiles, kRowTiles>* factors) {
  GridPoint<float, kDims> points[kRowTiles][2];
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) points[m][h] = point_of(m * kTile + row_of(2 * h));
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

// Those of the grid's positions `first` and on; rows behind the last point repeat it.
template <typename Element, class Half, int kDims, int kTiles>
__device__ inline void encode_positions(const GridParams& grid, const GridLevel* levels, int64_t first,
                                        Factors<Half, kTiles, kRowTiles>* factors) {
  const auto point_of = [&](int row) {
    return load_point<float, kDims>(grid, first + row < grid.n_points ? first + row : first);
  };
  encode_factors<Element, Half, kDims>(grid, levels, point_of, factors);
}

// The point at `position` [3] of lane `lane`; all lanes ask together.
__device__ inline GridPoint<float, 3> point_of_lane(const GridParams& grid, const float* position, int lane) {
  float x[3];
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) x[axis] = value_of_lane(position[axis], lane);
  return make_point<float, 3>(grid, x);
}

// Of what such a kernel takes: the grid, and the type of its table beside that of the factors.
inline bool has_tiles(const GridParams& grid, MlpFactors factors) {
  const DType half = factors == MlpFactors::kFloat16 ? DType::kFloat16 : DType::kBFloat16;
  return !grid.per_axis && grid.dtype == DType::kFloat32 && grid.n_features % 2 == 0 &&
         (grid.table_dtype == DType::kFloat32 || grid.table_dtype == half);
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
