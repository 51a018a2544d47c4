// What the kernel of occupancy_values takes.
#pragma once

#include <cstdint>

#include "core/occupancy_points_params.h"

namespace hashgrid {

// Densities at points of cells, times the length of a step.
struct OccupancyValuesParams {
  OccupancyPointsParams points;  // fp32; nothing of what it writes
  float step_size;               // of cascade 0; doubled from cascade to cascade
  const float* field_aabb;       // [6] box of the field's grid
  float* values;                 // [n_points]
};

}  // namespace hashgrid
