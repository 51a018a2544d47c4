// One point at one level of a grid: bounds, cell, corner weights and their derivatives. T is the type positions come
// in; A, that of weights and products, may be wider. kDims is the number of dimensions, 0 where only the params know
// it.
#pragma once

#include "core/grid.h"
#include "core/interpolation.h"
#include "core/macros.h"
#include "core/params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

template <int kDims>
HASHGRID_HD int n_dims_of(const HashEncodeParams& p) {
  return kDims > 0 ? kDims : p.n_dims;
}

HASHGRID_HD uint32_t n_corners_of(const HashEncodeParams& p, int n_dims) {
  return p.interpolation == Interpolation::kNearest ? 1u : 1u << n_dims;
}

template <typename T, int kDims>
struct GridPoint {
  static constexpr int kSize = kDims > 0 ? kDims : kMaxDims;
  PointState state;
  T x[kSize];           // bounds applied
  bool stopped[kSize];  // the bounds policy cuts this axis' gradient
};

// The point at `position` [n_dims].
template <typename T, int kDims = 0>
HASHGRID_HD GridPoint<T, kDims> make_point(const HashEncodeParams& p, const T* position) {
  const int n_dims = n_dims_of<kDims>(p);
  GridPoint<T, kDims> point;
  point.state = apply_bounds<kDims>(position, n_dims, p.bounds, point.x);
  HASHGRID_UNROLL
  for (int d = 0; d < GridPoint<T, kDims>::kSize; ++d) {
    if (d >= n_dims) break;
    point.stopped[d] = p.bounds != Bounds::kNone && !(position[d] >= T(0) && position[d] <= T(1));
  }
  return point;
}

template <typename T, int kDims = 0>
HASHGRID_HD GridPoint<T, kDims> load_point(const HashEncodeParams& p, int64_t n) {
  return make_point<T, kDims>(p, static_cast<const T*>(p.positions) + n * n_dims_of<kDims>(p));
}

template <typename A, int kDims>
struct GridCell {
  uint32_t base[GridPoint<A, kDims>::kSize];
  CellWeights<A, kDims> weights;
};

template <typename A, typename T, int kDims>
HASHGRID_HD GridCell<A, kDims> find_cell(const HashEncodeParams& p, const GridLevel& level,
                                         const GridPoint<T, kDims>& point) {
  GridCell<A, kDims> cell;
  cell.weights.n_dims = n_dims_of<kDims>(p);
  HASHGRID_UNROLL
  for (int d = 0; d < GridPoint<T, kDims>::kSize; ++d) {
    if (d >= cell.weights.n_dims) break;
    T fraction;
    cell.base[d] = grid_cell(point.x[d], level.scale, p.shift, &fraction);
    cell.weights.axis[d] = axis_weight<A>(fraction, p.interpolation);
  }
  return cell;
}

// Index of the first feature of a corner's entry in the whole table.
template <typename A, int kDims>
HASHGRID_HD int64_t first_feature(const HashEncodeParams& p, const GridLevel& level, const GridCell<A, kDims>& cell,
                                  uint32_t corner) {
  return (level.offset + grid_index<kDims>(level, n_dims_of<kDims>(p), cell.base, corner)) * p.n_features;
}

template <typename T>
HASHGRID_HD T level_weight(const HashEncodeParams& p, int l) {
  return p.level_weights != nullptr ? static_cast<const T*>(p.level_weights)[l] : T(1);
}

// Second order. With v, V, u the cotangents of grad_positions, grad_table, grad_level_weights, m the level weights and
// T, w the table and corner weights, the pulled-back scalar is
//   s = sum_{n,l,f} grad_y [ m sum_c (a_c T_c + w_c V_c) + u sum_c w_c T_c ],   a_c = sum_d v_d dw_c/dx_d.
template <typename A, int kDims>
struct SecondOrderCorner {
  A weight;                              // w_c
  A along;                               // a_c
  A first[GridPoint<A, kDims>::kSize];   // dw_c/dx_e
  A second[GridPoint<A, kDims>::kSize];  // da_c/dx_e
};

template <typename A, typename T, int kDims>
HASHGRID_HD SecondOrderCorner<A, kDims> second_order_corner(const GridLevel& level, const GridPoint<T, kDims>& point,
                                                            const GridCell<A, kDims>& cell, uint32_t c, const T* v) {
  constexpr int kSize = GridPoint<A, kDims>::kSize;
  const int n_dims = cell.weights.n_dims;
  SecondOrderCorner<A, kDims> out;
  const A scale = level.scale;
  out.weight = corner_weight(cell.weights, c, -1, -1);
  out.along = A(0);
  HASHGRID_UNROLL
  for (int e = 0; e < kSize; ++e) {
    if (e >= n_dims) break;
    out.first[e] = point.stopped[e] ? A(0) : scale * corner_weight_first(cell.weights, c, e);
    out.second[e] = A(0);
    if (v == nullptr || point.stopped[e]) continue;
    out.along += v[e] * out.first[e];
    HASHGRID_UNROLL
    for (int d = 0; d < kSize; ++d) {
      if (d >= n_dims || point.stopped[d]) continue;
      out.second[e] += v[d] * scale * scale * corner_weight_second(cell.weights, c, d, e);
    }
  }
  return out;
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
