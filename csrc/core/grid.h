// Cells, corners and table indices of one grid level (Müller et al. 2022, section 3; tiny-cuda-nn's conventions).
#pragma once

#include <cmath>
#include <cstdint>

#include "core/macros.h"
#include "core/params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

// One factor per dimension; the first is 1 so that x-neighbours share a cache line.
HASHGRID_HD uint32_t hash_prime(int dim) {
  constexpr uint32_t kPrimes[kMaxDims] = {1u,          2654435761u, 805459861u, 3674653429u,
                                          2097192037u, 1434869437u, 2165219737u};
  return kPrimes[dim];
}

HASHGRID_HD uint32_t wrap_index(uint32_t index, const GridLevel& level) {
  switch (level.wrap) {
    case IndexWrap::kMask:
      return index & (level.size - 1u);
    case IndexWrap::kOnce:
      return index >= level.size ? index - level.size : index;
    default:
      return index % level.size;
  }
}

// `cell` [n_dims] plus the corner's bits gives the vertex; the result is local to the level.
HASHGRID_HD uint32_t grid_index(const GridLevel& level, int n_dims, const uint32_t* cell, uint32_t corner) {
  uint32_t index = 0;
  uint32_t stride = 1;
  for (int d = 0; d < n_dims; ++d) {
    const uint32_t vertex = cell[d] + ((corner >> d) & 1u);
    if (level.hashed) {
      index ^= vertex * hash_prime(d);
    } else {
      index += vertex * stride;
      stride *= level.resolution;
    }
  }
  return wrap_index(index, level);
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

// Applies the bounds policy to one position [n_dims] and reports whether the point takes part.
template <typename T>
HASHGRID_HD PointState apply_bounds(const T* position, int n_dims, Bounds bounds, T* bounded) {
  PointState state = PointState::kInside;
  for (int d = 0; d < n_dims; ++d) {
    const T x = position[d];
    bounded[d] = x;
    if (!(x - x == T(0))) return PointState::kNotFinite;
    if (bounds == Bounds::kNone) continue;
    const bool outside = x < T(0) || x > T(1);
    if (outside && bounds == Bounds::kZero) state = PointState::kOutside;
    if (outside) bounded[d] = x < T(0) ? T(0) : T(1);
  }
  return state;
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
