// The box of a field, and places in it as the unit cube its grid knows.
#pragma once

#include "core/macros.h"
#include "core/ray.h"

namespace hashgrid {
namespace HASHGRID_ISA {

struct FieldBox {
  float low[3];
  float inverse_extent[3];
};

// `aabb` [6]: low corner, high corner.
HASHGRID_HD FieldBox make_field_box(const float* aabb) {
  FieldBox box;
  for (int axis = 0; axis < 3; ++axis) {
    box.low[axis] = aabb[axis];
    box.inverse_extent[axis] = 1.0f / (aabb[3 + axis] - aabb[axis]);
  }
  return box;
}

// `point` [3] in the unit cube. Rounded as by PyTorch's ops, one after the other.
HASHGRID_HD void to_unit_cube(const FieldBox& box, const float* point, float* unit) {
  for (int axis = 0; axis < 3; ++axis) {
    unit[axis] = rounded_multiply(point[axis] - box.low[axis], box.inverse_extent[axis]);
  }
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
