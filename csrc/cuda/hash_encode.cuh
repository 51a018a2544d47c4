// Rows of a grid's table around a point: what every kernel that reads or writes them shares.
#pragma once

#include "cuda/launch.cuh"

#include <limits>

#include "core/grid_point.h"

namespace hashgrid {
namespace HASHGRID_ISA {

// ---- numbers -----------------------------------------------------------------------------------------------------

// fp32 is the type of weights and products where the dimensions are known; elsewhere many terms of either sign meet.
template <typename T, int kDims>
struct Arithmetic {
  typedef double Type;
};
template <>
struct Arithmetic<float, 2> {
  typedef float Type;
};
template <>
struct Arithmetic<float, 3> {
  typedef float Type;
};
template <>
struct Arithmetic<float, 4> {
  typedef float Type;
};

// ---- corners -----------------------------------------------------------------------------------------------------

// use(c, entry) for every corner of a cell, `entry` being its row within the level.
template <int kDims, typename A, class Level, typename Use>
__device__ inline void for_each_corner(const GridParams& p, const Level& level, const GridCell<A, kDims>& cell,
                                       Use use) {
  const uint32_t n_corners = n_corners_of(p, n_dims_of<kDims>(p));
  if constexpr (kDims == 0) {
    for (uint32_t c = 0; c < n_corners; ++c) use(c, grid_index(level, p.n_dims, cell.base, c));
  } else {
    uint32_t entries[1 << kDims];
    grid_indices<kDims>(level, cell.base, entries);
#pragma unroll
    for (uint32_t c = 0; c < 1u << kDims; ++c) {
      if (c < n_corners) use(c, entries[c]);
    }
  }
}

// use(c, row) for every corner of a cell and kF features of its row of the table, from `feature` on; rows are
// n_features long. Rows are loaded before any is used, as many at a time as fill 32 registers: the kernels wait for
// memory, and a load that waits for the one before doubles that.
template <int kDims, int kF, typename Element, typename A, class Level, typename Use>
__device__ inline void for_each_row(const GridParams& p, const Level& level, const GridCell<A, kDims>& cell,
                                    int n_features, int feature, Use use) {
  const Element* rows = static_cast<const Element*>(p.table) + level.offset * n_features + feature;
  const uint32_t n_corners = n_corners_of(p, n_dims_of<kDims>(p));
  if constexpr (kDims == 0) {
    for (uint32_t c = 0; c < n_corners; ++c) {
      A row[kF];
      const int64_t entry = grid_index(level, p.n_dims, cell.base, c);
      load_row<Element, kF>(rows + entry * n_features, row);
      use(c, row);
    }
  } else {
    constexpr int kCorners = 1 << kDims, kBatch = kCorners * kF <= 32 ? kCorners : 32 / kF;
    uint32_t entries[kCorners];
    grid_indices<kDims>(level, cell.base, entries);
#pragma unroll
    for (int first = 0; first < kCorners; first += kBatch) {
      A batch[kBatch][kF] = {};
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (static_cast<uint32_t>(first + i) >= n_corners) continue;
        load_row<Element, kF>(rows + static_cast<int64_t>(entries[first + i]) * n_features, batch[i]);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) use(static_cast<uint32_t>(first + i), batch[i]);
    }
  }
}

// kF features of a point at level l, from `feature` on. The sum over corners is in T, its products fused: kernels that
// encode on their way to something else have the bits of those that only encode.
template <typename T, typename Element, int kDims, int kF, class Level>
__device__ inline void interpolate(const GridParams& p, int l, const Level& level, const GridPoint<T, kDims>& point,
                                   int n_features, int feature, T (&total)[kF]) {
#pragma unroll
  for (int f = 0; f < kF; ++f) {
    total[f] = point.state == PointState::kNotFinite ? std::numeric_limits<T>::quiet_NaN() : T(0);
  }
  if (point.state != PointState::kInside) return;
  const GridCell<T, kDims> cell = find_cell<T>(p, level, point);
  for_each_row<kDims, kF, Element>(p, level, cell, n_features, feature, [&](uint32_t c, const T* row) {
    const T weight = corner_weight(cell.weights, c, -1, -1);
#pragma unroll
    for (int f = 0; f < kF; ++f) total[f] = fused_multiply_add(weight, row[f], total[f]);
  });
  const T factor = level_weight<T>(p, l);
#pragma unroll
  for (int f = 0; f < kF; ++f) total[f] *= factor;
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
