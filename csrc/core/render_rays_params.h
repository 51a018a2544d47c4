// What the kernel of render_rays takes.
#pragma once

#include <cstdint>

#include "core/march_rays_params.h"

namespace hashgrid {

// Rays through a radiance field: samples of the rays, their densities and colours, compositing.
struct RenderRaysParams {
  MarchRaysParams march;  // rays and occupancy grid, fp32; nothing of what it writes
  float early_stop_eps;
  const float* field_aabb;  // [6] box of the field's grid
  float* colors;            // [n_rays, 3]
  float* opacities;         // [n_rays]
  float* depths;            // [n_rays]
  uint64_t* next_ray;       // [1] zero: the rays that have been taken
  uint64_t* n_evaluated;    // [1] zero: receives the number of samples
};

}  // namespace hashgrid
