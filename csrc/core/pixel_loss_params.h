// What the kernels of pixel_loss take.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace hashgrid {

constexpr int64_t kLossChunk = 256;  // rays whose terms are one partial sum

struct PixelLossParams {
  int64_t n_rays;
  int64_t n_channels;
  DType dtype;             // of every array of reals: kFloat32 or kFloat64
  double beta;             // differences up to this count by their square
  const int64_t* n_used;   // [1] rays that count, or null: all
  const void* colors;      // [n_rays, n_channels], composited
  const void* opacities;   // [n_rays]
  const void* background;  // [n_rays, n_channels]
  const void* targets;     // [n_rays, n_channels]
  void* grad_colors;       // [n_rays, n_channels]
  void* grad_opacities;    // [n_rays]
  double* chunk_losses;    // [n_chunks]
  double* chunk_errors;    // [n_chunks]
  void* loss;              // [1]
  double* means;           // [2] loss, squared error
};

}  // namespace hashgrid
