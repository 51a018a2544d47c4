// What the kernels of occupancy_visible take.
#pragma once

#include <cstdint>

namespace hashgrid {

struct OccupancyVisibleParams {
  int64_t n_views;
  int64_t n_cells;
  int32_t resolution[3];  // cells per axis
  int32_t n_cascades;
  const float* planes;  // [n_views, 5, 4] plane[:3] . x + plane[3] >= 0 inside the view
  const float* aabb;    // [6], box of cascade 0
  uint8_t* visible;     // [n_cells] 0 or 1
  int32_t* candidates;  // [n_views] scratch, set per thread
};

}  // namespace hashgrid
