// What the kernels of window_samples take.
#pragma once

#include <cstdint>

#include "core/visible_samples_params.h"

namespace hashgrid {

// Besides those of visible_samples: kept_info and index are those of the window.
struct WindowSamplesParams : VisibleSamplesParams {
  int64_t begin, end;  // samples of a ray, counted from its first one
  const void* rays_o;  // [n_rays, 3]
  const void* rays_d;  // [n_rays, 3]
  void* positions;     // [n_kept, 3]
};

}  // namespace hashgrid
