// What the kernels of visible_samples take.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/scan_params.h"

namespace hashgrid {

struct VisibleSamplesParams {
  int64_t n_rays;
  int64_t n_samples;
  double early_stop_eps;
  DType dtype;                 // of every array of reals: kFloat32 or kFloat64
  const void* sigmas;          // [n_samples]
  const void* t_starts;        // [n_samples]
  const void* t_ends;          // [n_samples]
  const int64_t* packed_info;  // [n_rays, 2] first sample, number of samples
  int64_t* kept_info;          // [n_rays, 2] the same of the samples kept
  int64_t* index;              // [n_kept] the samples kept
  int64_t* scan;               // CUDA: workspace of the sum over rays, see kScanChunk
};

}  // namespace hashgrid
