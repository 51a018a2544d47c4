// Cells of an occupancy grid: nested boxes around one centre, cascade c 2^c times as large as cascade 0. Cell
// ((c * X + x) * Y + y) * Z + z.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/macros.h"
#include "core/ray.h"

namespace hashgrid {
namespace HASHGRID_ISA {

template <typename T>
struct CellBoxes {
  int32_t resolution[3];
  T centre[3];
  T half[3];  // half extents of cascade 0
  T side[3];  // of a cell of cascade 0
};

template <typename T>
HASHGRID_HD CellBoxes<T> make_cell_boxes(const int32_t* resolution, const T* aabb) {
  CellBoxes<T> boxes;
  for (int axis = 0; axis < 3; ++axis) {
    boxes.resolution[axis] = resolution[axis];
    const T extent = aabb[3 + axis] - aabb[axis];
    boxes.centre[axis] = (aabb[axis] + aabb[3 + axis]) / T(2);
    boxes.half[axis] = extent / T(2);
    boxes.side[axis] = extent / static_cast<T>(resolution[axis]);
  }
  return boxes;
}

// Coordinates of a cell; returns its cascade.
HASHGRID_HD uint32_t cell_coordinates(const int32_t* resolution, uint32_t cell, uint32_t* coordinates) {
  for (int axis = 2; axis >= 0; --axis) {
    const uint32_t n = static_cast<uint32_t>(resolution[axis]);
    coordinates[axis] = cell % n;
    cell /= n;
  }
  return cell;
}

// A point of a cell [3]: its centre, or a random one that depends on (key, cell).
template <typename T>
HASHGRID_HD void cell_point(const CellBoxes<T>& boxes, int64_t cell, bool jitter, uint32_t key, T* point) {
  uint32_t coordinates[3];
  const uint32_t cascade = cell_coordinates(boxes.resolution, static_cast<uint32_t>(cell), coordinates);
  const T growth = static_cast<T>(1 << cascade);
  for (int axis = 0; axis < 3; ++axis) {
    const T u = jitter ? static_cast<T>(counter_uniform(key, static_cast<uint32_t>(3 * cell + axis))) : T(0.5);
    const T low = add_scaled(boxes.centre[axis], -boxes.half[axis], growth);
    point[axis] = low + rounded_multiply(static_cast<T>(coordinates[axis]) + u, boxes.side[axis] * growth);
  }
}

// The density of a cell after a sample of it: a NaN value is ignored, an invisible cell stays so.
HASHGRID_HD float raised_density(float old, float value) { return (old >= 0.0f) & (value > old) ? value : old; }

// Whether a sphere reaches into the view frustum of `planes` [5, 4]: plane[:3] . x + plane[3] >= 0 inside.
HASHGRID_HD bool sphere_in_view(const float* planes, const float* centre, float radius) {
  for (int i = 0; i < 5; ++i) {
    const float* plane = planes + 4 * i;
    float distance = rounded_multiply(plane[0], centre[0]);
    for (int axis = 1; axis < 3; ++axis) distance += rounded_multiply(plane[axis], centre[axis]);
    if (!(distance + plane[3] >= -radius)) return false;
  }
  return true;
}

HASHGRID_HD float cell_diagonal(const CellBoxes<float>& boxes) {
  const float* side = boxes.side;
  const float xx = rounded_multiply(side[0], side[0]), yy = rounded_multiply(side[1], side[1]);
  return ::sqrtf(xx + yy + rounded_multiply(side[2], side[2]));
}

// Centre of a cell of the cascade that is `growth` times cascade 0, along one axis.
HASHGRID_HD float cell_centre(const CellBoxes<float>& boxes, int axis, float coordinate, float growth) {
  const float low = add_scaled(boxes.centre[axis], -boxes.half[axis], growth);
  return add_scaled(low, (coordinate + 0.5f) * boxes.side[axis], growth);
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
