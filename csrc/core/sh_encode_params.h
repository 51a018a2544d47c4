// What the kernels of sh_encode take.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace hashgrid {

constexpr int kMaxShDegree = 8;

struct ShEncodeParams {
  int64_t n_points;
  int32_t degree;          // 1..kMaxShDegree
  DType dtype;             // kFloat32 or kFloat64
  const void* directions;  // [n_points, 3]
  void* y;                 // [n_points, degree^2]
  const void* grad_y;      // [n_points, degree^2]
  void* grad_directions;   // [n_points, 3]
};

}  // namespace hashgrid
