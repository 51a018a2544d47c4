// What the kernels of line_integrals take.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace hashgrid {

struct LineIntegralsParams {
  int64_t n_rays;
  int64_t n_samples;
  int64_t n_channels;
  DType dtype;                 // of every array of reals: kFloat32 or kFloat64
  const void* values;          // [n_samples, n_channels]
  const void* steps;           // [n_samples], lengths of the intervals
  const int64_t* packed_info;  // [n_rays, 2] first sample, number of samples; rays lie back to back
  void* sums;                  // [n_rays, n_channels]

  const void* grad_sums;  // [n_rays, n_channels]
  void* grad_values;      // [n_samples, n_channels] or null: not asked for
  void* grad_steps;       // [n_samples] or null
};

}  // namespace hashgrid
