// One point at one level of a grid: bounds, cell, corner weights and their derivatives. T is the type positions come
// in; A, that of weights and products, may be wider. kDims is the number of dimensions, 0 where only the params know
// it.
#pragma once

#include "core/grid.h"
#include "core/interpolation.h"
#include "core/macros.h"
#include "core/hash_encode_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

template <int kDims>
HASHGRID_HD int n_dims_of(const GridParams& p) {
  return kDims > 0 ? kDims : p.n_dims;
}

HASHGRID_HD uint32_t n_corners_of(const GridParams& p, int n_dims) {
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
HASHGRID_HD GridPoint<T, kDims> make_point(const GridParams& p, const T* position) {
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
HASHGRID_HD GridPoint<T, kDims> load_point(const GridParams& p, int64_t n) {
  return make_point<T, kDims>(p, static_cast<const T*>(p.positions) + n * n_dims_of<kDims>(p));
}

template <typename A, int kDims>
struct GridCell {
  uint32_t base[GridPoint<A, kDims>::kSize];
  CellWeights<A, kDims> weights;
};

// Level l, whether its axes differ or not.
HASHGRID_HD AxisLevel axis_level(const HashEncodeParams& p, int l) {
  const GridLevel& level = p.levels[l];
  AxisLevel out;
  HASHGRID_UNROLL
  for (int d = 0; d < kMaxDims; ++d) {
    const bool own = p.per_axis && d < p.n_dims;
    const int i = own ? l * p.n_dims + d : 0;
    out.scale[d] = own ? p.axes.scales[i] : level.scale;
    out.resolution[d] = own ? p.axes.resolutions[i] : level.resolution;
  }
  out.size = level.size;
  out.offset = level.offset;
  out.hashed = level.hashed;
  out.wrap = level.wrap;
  return out;
}

// A level of either kind. What differs from axis to axis is read from the params where it is used: arrays of it would
// take registers from grids whose axes are alike.
struct AnyLevel : GridLevel {
  const GridAxes& axes;
  bool per_axis;
  int first;  // of its axes
};
HASHGRID_HD float scale_on(const AnyLevel& level, int axis) {
  return level.per_axis ? level.axes.scales[level.first + axis] : level.scale;
}
HASHGRID_HD uint32_t resolution_on(const AnyLevel& level, int axis) {
  return level.per_axis ? level.axes.resolutions[level.first + axis] : level.resolution;
}

// Level l. Axes may differ only where the dimensions are known at run time alone: grids of such levels go there.
template <int kDims>
HASHGRID_HD decltype(auto) level_of(const HashEncodeParams& p, int l) {
  if constexpr (kDims > 0) {
    return (p.levels[l]);
  } else {
    return AnyLevel{p.levels[l], p.axes, p.per_axis, l * p.n_dims};
  }
}

template <typename A, typename T, int kDims, class Level>
HASHGRID_HD GridCell<A, kDims> find_cell(const GridParams& p, const Level& level, const GridPoint<T, kDims>& point) {
  GridCell<A, kDims> cell;
  cell.weights.n_dims = n_dims_of<kDims>(p);
  HASHGRID_UNROLL
  for (int d = 0; d < GridPoint<T, kDims>::kSize; ++d) {
    if (d >= cell.weights.n_dims) break;
    T fraction;
    cell.base[d] = grid_cell(point.x[d], scale_on(level, d), p.shift, &fraction);
    cell.weights.axis[d] = axis_weight<A>(fraction, p.interpolation);
  }
  return cell;
}

// Index of the first feature of a corner's entry in the whole table.
template <typename A, int kDims, class Level>
HASHGRID_HD int64_t first_feature(const GridParams& p, const Level& level, const GridCell<A, kDims>& cell,
                                  uint32_t corner) {
  return (level.offset + grid_index<kDims>(level, n_dims_of<kDims>(p), cell.base, corner)) * p.n_features;
}

template <typename T>
HASHGRID_HD T level_weight(const GridParams& p, int l) {
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

template <typename A, typename T, int kDims, class Level>
HASHGRID_HD SecondOrderCorner<A, kDims> second_order_corner(const Level& level, const GridPoint<T, kDims>& point,
                                                            const GridCell<A, kDims>& cell, uint32_t c, const T* v) {
  constexpr int kSize = GridPoint<A, kDims>::kSize;
  const int n_dims = cell.weights.n_dims;
  SecondOrderCorner<A, kDims> out;
  out.weight = corner_weight(cell.weights, c, -1, -1);
  out.along = A(0);
  HASHGRID_UNROLL
  for (int e = 0; e < kSize; ++e) {
    if (e >= n_dims) break;
    out.first[e] = point.stopped[e] ? A(0) : A(scale_on(level, e)) * corner_weight_first(cell.weights, c, e);
    out.second[e] = A(0);
    if (v == nullptr || point.stopped[e]) continue;
    out.along += v[e] * out.first[e];
    HASHGRID_UNROLL
    for (int d = 0; d < kSize; ++d) {
      if (d >= n_dims || point.stopped[d]) continue;
      out.second[e] +=
          v[d] * A(scale_on(level, d)) * A(scale_on(level, e)) * corner_weight_second(cell.weights, c, d, e);
    }
  }
  return out;
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
