// What the kernels of occupancy_points take.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace hashgrid {

struct OccupancyPointsParams {
  int64_t n_points;
  int64_t n_cells;         // of the grid
  int32_t resolution[3];   // cells per axis
  DType dtype;             // of aabb and points: kFloat32 or kFloat64
  const int64_t* counter;  // [2] seed and step of the place in a cell, or null: its centre
  const int64_t* cells;    // [n_points]
  const void* aabb;        // [6], box of cascade 0
  void* points;            // [n_points, 3]
  int64_t* invalid_cell;   // [1] set to a member of `cells` that is no cell, if there is one
};

}  // namespace hashgrid
