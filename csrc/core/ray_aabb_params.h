// What the kernels of ray_aabb take.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace hashgrid {

struct RayAabbParams {
  int64_t n_rays;
  double near, far;
  DType dtype;         // of every array: kFloat32 or kFloat64
  const void* rays_o;  // [n_rays, 3]
  const void* rays_d;  // [n_rays, 3]
  const void* aabb;    // [6], low corner, high corner
  void* t_min;         // [n_rays]
  void* t_max;         // [n_rays]
};

}  // namespace hashgrid
