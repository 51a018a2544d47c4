// Where the middles of samples lie in space.
#pragma once

#include <limits>

#include "core/macros.h"
#include "core/sample_positions_params.h"
#include "core/ray.h"

namespace hashgrid {
namespace HASHGRID_ISA {

// The middle of a sample of the ray with this origin and direction.
template <typename T>
HASHGRID_HD void write_middle(const T* origin, const T* direction, T begin, T end, T* position) {
  const T middle = (begin + end) * T(0.5);
  for (int axis = 0; axis < 3; ++axis) position[axis] = origin[axis] + rounded_multiply(direction[axis], middle);
}

// That of sample n; NaN where its ray does not exist.
template <typename T>
HASHGRID_HD void write_position(const SamplePositionsParams& p, int64_t n) {
  const int64_t ray = p.ray_indices[n];
  T* position = static_cast<T*>(p.positions) + 3 * n;
  if (ray < 0 || ray >= p.n_rays) {
    for (int axis = 0; axis < 3; ++axis) position[axis] = std::numeric_limits<T>::quiet_NaN();
    return;
  }
  write_middle(static_cast<const T*>(p.rays_o) + 3 * ray, static_cast<const T*>(p.rays_d) + 3 * ray,
               static_cast<const T*>(p.t_starts)[n], static_cast<const T*>(p.t_ends)[n], position);
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
