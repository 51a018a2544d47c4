// What the kernels of sample_positions take.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace hashgrid {

struct SamplePositionsParams {
  int64_t n_samples;
  int64_t n_rays;
  DType dtype;                 // of every array of reals: kFloat32 or kFloat64
  const void* rays_o;          // [n_rays, 3]
  const void* rays_d;          // [n_rays, 3]
  const int64_t* ray_indices;  // [n_samples]
  const void* t_starts;        // [n_samples]
  const void* t_ends;          // [n_samples]
  void* positions;             // [n_samples, 3]
};

}  // namespace hashgrid
