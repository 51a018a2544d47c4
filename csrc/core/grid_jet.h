// A grid's features along directions, one point at one level: values, first and second derivatives, and what a loss
// that holds them gives the table, the position and the directions. CPU and CUDA kernels loop over points and levels.
//
// As the position moves by s v, each axis' weight of a corner becomes a polynomial of s; it is carried as value, first
// and second derivative at s = 0, a jet, and a corner's weight is the product of its axes' jets. A gradient to position
// or direction replaces the jet of one axis by its derivative.
#pragma once

#include "core/grid_point.h"
#include "core/hash_encode_jet_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

template <typename A>
struct Jet {
  A value, first, second;
};

template <typename A>
HASHGRID_HD Jet<A> operator*(const Jet<A>& a, const Jet<A>& b) {
  return {a.value * b.value, a.first * b.value + a.value * b.first,
          a.second * b.value + A(2) * a.first * b.first + a.value * b.second};
}

// What a jet of weights is worth to a loss whose gradients, times the corner's features, are `by`.
template <typename A>
HASHGRID_HD A dot(const Jet<A>& a, const Jet<A>& by) {
  return a.value * by.value + a.first * by.first + a.second * by.second;
}

// One level around a point, along one direction.
template <typename A, int kDims>
struct LevelJet {
  static constexpr int kSize = GridPoint<A, kDims>::kSize;
  GridCell<A, kDims> cell;
  A scale[kSize];  // of the fraction by the coordinate; 0 where bounds stop it
  A slope[kSize];  // of the fraction by s
  A third;         // d^3 weight / d fraction^3, of every axis
};

template <typename A, typename T, int kDims, class Level>
HASHGRID_HD LevelJet<A, kDims> level_jet(const HashEncodeParams& p, const Level& level,
                                         const GridPoint<T, kDims>& point, const T* direction) {
  LevelJet<A, kDims> jet;
  jet.cell = find_cell<A>(p, level, point);
  jet.third = p.interpolation == Interpolation::kSmoothstep ? A(-12) : A(0);
  HASHGRID_UNROLL
  for (int d = 0; d < LevelJet<A, kDims>::kSize; ++d) {
    if (d >= jet.cell.weights.n_dims) break;
    jet.scale[d] = point.stopped[d] ? A(0) : A(scale_on(level, d));
    jet.slope[d] = jet.scale[d] * A(direction[d]);
  }
  return jet;
}

enum class AxisJet { kWeight, kByPosition, kByDirection };

// The jet of an axis' weight, or its derivative by the coordinate or by the direction along that axis.
template <typename A, int kDims>
HASHGRID_HD Jet<A> axis_jet(const LevelJet<A, kDims>& jet, uint32_t corner, int d, AxisJet kind) {
  const AxisWeight<A>& w = jet.cell.weights.axis[d];
  const A slope = jet.slope[d], sign = corner_sign<A>(corner, d);
  if (kind == AxisJet::kByPosition) {
    const A factor = sign * jet.scale[d];
    return {factor * w.first, factor * w.second * slope, factor * jet.third * slope * slope};
  }
  if (kind == AxisJet::kByDirection) {
    const A factor = sign * jet.scale[d];
    return {A(0), factor * w.first, A(2) * factor * w.second * slope};
  }
  return {(corner >> d) & 1u ? w.value : A(1) - w.value, sign * w.first * slope, sign * w.second * slope * slope};
}

// The jet of a corner's weight; of its derivative along axis `by`, unless that is -1.
template <typename A, int kDims>
HASHGRID_HD Jet<A> corner_jet(const LevelJet<A, kDims>& jet, uint32_t corner, int by = -1,
                              AxisJet kind = AxisJet::kWeight) {
  Jet<A> product = {A(1), A(0), A(0)};
  HASHGRID_UNROLL
  for (int d = 0; d < LevelJet<A, kDims>::kSize; ++d) {
    if (d >= jet.cell.weights.n_dims) break;
    product = product * axis_jet(jet, corner, d, d == by ? kind : AxisJet::kWeight);
  }
  return product;
}

// Row of a point's features of level l in [n_points, per_point, n_levels * n_features].
HASHGRID_HD int64_t jet_row(const HashEncodeParams& p, int64_t n, int64_t per_point, int64_t k, int l) {
  return ((n * per_point + k) * p.n_levels + l) * p.n_features;
}

template <typename T>
HASHGRID_HD T jet_value(const void* rows, int64_t i) {
  return rows == nullptr ? T(0) : static_cast<const T*>(rows)[i];
}

// Results of point n at level l. load(i): value i of the table.
template <typename A, typename T, int kDims, typename Load>
HASHGRID_HD void write_jet(const HashEncodeJetParams& p, const GridPoint<T, kDims>& point, int64_t n, int l, T nan,
                           const Load& load) {
  const HashEncodeParams& grid = p.grid;
  const int n_dims = n_dims_of<kDims>(grid);
  const uint32_t n_corners = n_corners_of(grid, n_dims);
  const auto& level = level_of<kDims>(grid, l);
  for (int k = 0; k < p.n_directions; ++k) {
    const T* direction = static_cast<const T*>(p.directions) + (n * p.n_directions + k) * n_dims;
    Jet<A> total[kMaxFeatures];
    const A start = point.state == PointState::kNotFinite ? A(nan) : A(0);
    HASHGRID_UNROLL
    for (int f = 0; f < kMaxFeatures; ++f) total[f] = {start, start, start};
    if (point.state == PointState::kInside) {
      const LevelJet<A, kDims> jet = level_jet<A>(grid, level, point, direction);
      for (uint32_t c = 0; c < n_corners; ++c) {
        const Jet<A> weight = corner_jet(jet, c);
        const int64_t entry = first_feature(grid, level, jet.cell, c);
        HASHGRID_UNROLL
        for (int f = 0; f < kMaxFeatures; ++f) {
          if (f >= grid.n_features) break;
          const A value = load(entry + f);
          total[f].value += weight.value * value;
          total[f].first += weight.first * value;
          total[f].second += weight.second * value;
        }
      }
    }
    HASHGRID_UNROLL
    for (int f = 0; f < kMaxFeatures; ++f) {
      if (f >= grid.n_features) break;
      const int64_t at = jet_row(grid, n, p.n_directions, k, l) + f;
      static_cast<T*>(p.first)[at] = static_cast<T>(total[f].first);
      static_cast<T*>(p.second)[at] = static_cast<T>(total[f].second);
      if (k == 0) static_cast<T*>(grid.y)[jet_row(grid, n, 1, 0, l) + f] = static_cast<T>(total[f].value);
    }
  }
}

// Gradients of the three results at feature f of level l along direction k; that of the value counts once.
template <typename A, typename T>
HASHGRID_HD Jet<A> jet_gradient(const HashEncodeJetParams& p, int64_t n, int k, int l, int f) {
  const int64_t at = jet_row(p.grid, n, p.n_directions, k, l) + f;
  return {k == 0 ? A(jet_value<T>(p.grid.grad_y, jet_row(p.grid, n, 1, 0, l) + f)) : A(0),
          A(jet_value<T>(p.grad_first, at)), A(jet_value<T>(p.grad_second, at))};
}

// What point n gives the table at level l: add(entry, f, value) for its corners, `entry` within the level.
template <typename A, typename T, int kDims, typename Add>
HASHGRID_HD void scatter_jet(const HashEncodeJetParams& p, const GridPoint<T, kDims>& point, int64_t n, int l,
                             const Add& add) {
  const HashEncodeParams& grid = p.grid;
  const int n_dims = n_dims_of<kDims>(grid);
  const uint32_t n_corners = n_corners_of(grid, n_dims);
  if (point.state != PointState::kInside) return;
  const auto& level = level_of<kDims>(grid, l);
  for (int k = 0; k < p.n_directions; ++k) {
    const T* direction = static_cast<const T*>(p.directions) + (n * p.n_directions + k) * n_dims;
    const LevelJet<A, kDims> jet = level_jet<A>(grid, level, point, direction);
    for (uint32_t c = 0; c < n_corners; ++c) {
      const uint32_t entry = grid_index<kDims>(level, n_dims, jet.cell.base, c);
      const Jet<A> weight = corner_jet(jet, c);
      for (int f = 0; f < grid.n_features; ++f) add(entry, f, dot(weight, jet_gradient<A, T>(p, n, k, l, f)));
    }
  }
}

// Gradients of point n's position and directions, each unless it is null.
template <typename A, typename T, int kDims, typename Load>
HASHGRID_HD void pull_back_jet(const HashEncodeJetParams& p, const GridPoint<T, kDims>& point, int64_t n,
                               const Load& load) {
  constexpr int kSize = LevelJet<A, kDims>::kSize;
  const HashEncodeParams& grid = p.grid;
  const int n_dims = n_dims_of<kDims>(grid);
  const uint32_t n_corners = n_corners_of(grid, n_dims);
  A of_position[kSize] = {};
  for (int k = 0; k < p.n_directions; ++k) {
    const int64_t row = (n * p.n_directions + k) * n_dims;
    A of_direction[kSize] = {};
    for (int l = 0; l < grid.n_levels && point.state == PointState::kInside; ++l) {
      const auto& level = level_of<kDims>(grid, l);
      const LevelJet<A, kDims> jet = level_jet<A>(grid, level, point, static_cast<const T*>(p.directions) + row);
      for (uint32_t c = 0; c < n_corners; ++c) {
        const int64_t entry = first_feature(grid, level, jet.cell, c);
        Jet<A> by = {A(0), A(0), A(0)};
        for (int f = 0; f < grid.n_features; ++f) {
          const Jet<A> gradient = jet_gradient<A, T>(p, n, k, l, f);
          const A value = load(entry + f);
          by = {by.value + gradient.value * value, by.first + gradient.first * value,
                by.second + gradient.second * value};
        }
        HASHGRID_UNROLL
        for (int d = 0; d < kSize; ++d) {
          if (d >= n_dims) break;
          of_position[d] += dot(corner_jet(jet, c, d, AxisJet::kByPosition), by);
          if (p.grad_directions != nullptr) {
            of_direction[d] += dot(corner_jet(jet, c, d, AxisJet::kByDirection), by);
          }
        }
      }
    }
    if (p.grad_directions == nullptr) continue;
    T* out = static_cast<T*>(p.grad_directions) + row;
    HASHGRID_UNROLL
    for (int d = 0; d < kSize; ++d) {
      if (d < n_dims) out[d] = static_cast<T>(of_direction[d]);
    }
  }
  if (grid.grad_positions == nullptr) return;
  T* out = static_cast<T*>(grid.grad_positions) + n * n_dims;
  HASHGRID_UNROLL
  for (int d = 0; d < kSize; ++d) {
    if (d < n_dims) out[d] = static_cast<T>(of_position[d]);
  }
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
