// Cells, corners and table indices of one grid level (Müller et al. 2022, section 3; tiny-cuda-nn's conventions).
#pragma once

#include <cmath>
#include <cstdint>

#include "core/macros.h"
#include "core/hash_encode_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

HASHGRID_HD float scale_on(const GridLevel& level, int) { return level.scale; }
HASHGRID_HD float scale_on(const AxisLevel& level, int axis) { return level.scale[axis]; }
HASHGRID_HD uint32_t resolution_on(const GridLevel& level, int) { return level.resolution; }
HASHGRID_HD uint32_t resolution_on(const AxisLevel& level, int axis) { return level.resolution[axis]; }

// One factor per dimension; the first is 1 so that x-neighbours share a cache line.
HASHGRID_HD uint32_t hash_prime(int dim) {
  constexpr uint32_t kPrimes[kMaxDims] = {1u,          2654435761u, 805459861u, 3674653429u,
                                          2097192037u, 1434869437u, 2165219737u};
  return kPrimes[dim];
}

// All wraps but the modulo, without branches: loads of several corners, and of several levels in a warp, go out
// together.
template <class Level>
HASHGRID_HD uint32_t wrap_without_modulo(uint32_t index, const Level& level) {
  // Below 0, as unsigned, is above everything.
  const uint32_t masked = level.wrap == IndexWrap::kMask ? index & (level.size - 1u) : index;
  const uint32_t below = masked - level.size;
  return level.wrap == IndexWrap::kOnce && below < masked ? below : masked;
}

// `cell` [n_dims] plus the corner's bits gives the vertex; the result is local to the level, and not yet wrapped. kDims
// is n_dims, or 0.
template <int kDims = 0, class Level>
HASHGRID_HD uint32_t unwrapped_index(const Level& level, int n_dims, const uint32_t* cell, uint32_t corner) {
  uint32_t hash = 0, sum = 0, stride = 1;
  HASHGRID_UNROLL
  for (int d = 0; d < (kDims > 0 ? kDims : kMaxDims); ++d) {
    if (d >= n_dims) break;
    const uint32_t vertex = cell[d] + ((corner >> d) & 1u);
    const uint32_t term = vertex * (level.hashed ? hash_prime(d) : stride);
    hash ^= term;
    sum += term;
    stride *= resolution_on(level, d);
  }
  return level.hashed ? hash : sum;
}

template <int kDims = 0, class Level>
HASHGRID_HD uint32_t grid_index(const Level& level, int n_dims, const uint32_t* cell, uint32_t corner) {
  const uint32_t index = unwrapped_index<kDims>(level, n_dims, cell, corner);
  return level.wrap == IndexWrap::kModulo ? index % level.size : wrap_without_modulo(index, level);
}

// grid_index of all corners of a cell.
template <int kDims, class Level>
HASHGRID_HD void grid_indices(const Level& level, const uint32_t* cell, uint32_t (&entries)[1 << kDims]) {
  HASHGRID_UNROLL
  for (uint32_t c = 0; c < 1u << kDims; ++c) {
    entries[c] = wrap_without_modulo(unwrapped_index<kDims>(level, kDims, cell, c), level);
  }
  if (level.wrap != IndexWrap::kModulo) return;
  HASHGRID_UNROLL
  for (uint32_t c = 0; c < 1u << kDims; ++c) entries[c] %= level.size;
}

HASHGRID_HD float fused_multiply_add(float a, float b, float c) { return ::fmaf(a, b, c); }
HASHGRID_HD double fused_multiply_add(double a, double b, double c) { return ::fma(a, b, c); }
HASHGRID_HD float round_down(float x) { return ::floorf(x); }
HASHGRID_HD double round_down(double x) { return ::floor(x); }

// Cell of coordinate x and the fraction inside it. Cells saturate at +-2^30, which keeps the cast defined for any
// finite position; negative cells wrap to uint32.
template <typename T>
HASHGRID_HD uint32_t grid_cell(T x, float scale, float shift, T* fraction) {
  const T position = fused_multiply_add(static_cast<T>(scale), x, static_cast<T>(shift));
  T cell = round_down(position);
  *fraction = position - cell;
  const T limit = static_cast<T>(1 << 30);
  cell = cell > limit ? limit : cell;
  cell = cell < -limit ? -limit : cell;
  return static_cast<uint32_t>(static_cast<int32_t>(cell));
}

enum class PointState : uint8_t { kInside, kOutside, kNotFinite };

// Applies the bounds policy to one position [n_dims] and reports whether the point takes part. kDims is n_dims, or 0.
template <int kDims = 0, typename T>
HASHGRID_HD PointState apply_bounds(const T* position, int n_dims, Bounds bounds, T* bounded) {
  bool finite = true, inside = true;
  HASHGRID_UNROLL
  for (int d = 0; d < (kDims > 0 ? kDims : kMaxDims); ++d) {
    if (d >= n_dims) break;
    const T x = position[d];
    bounded[d] = x;
    finite = finite && x - x == T(0);
    if (bounds == Bounds::kNone) continue;
    const bool outside = x < T(0) || x > T(1);
    inside = inside && !(outside && bounds == Bounds::kZero);
    if (outside) bounded[d] = x < T(0) ? T(0) : T(1);
  }
  return !finite ? PointState::kNotFinite : inside ? PointState::kInside : PointState::kOutside;
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
