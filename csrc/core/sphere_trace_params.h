// What the kernels of sphere_trace take.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace hashgrid {

struct SphereTraceParams {
  int64_t n_points;  // of live rays
  int64_t n_rays;
  double epsilon, step_scale;
  DType dtype;             // of every real array: kFloat32 or kFloat64
  const void* distances;   // [n_points]
  const int64_t* rays;     // [n_points], to which ray a point belongs
  const void* rays_o;      // [n_rays, 3]
  const void* rays_d;      // [n_rays, 3]
  const void* speed;       // [n_rays], length of the direction
  const void* t_max;       // [n_rays]
  void* state;             // [n_rays, 5], TraceState
  uint8_t* status;         // [n_rays], TraceStatus
  int32_t* n_evaluations;  // [n_rays]
  void* positions;         // [n_points, 3], the next points
};

}  // namespace hashgrid
