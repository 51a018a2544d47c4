// Which cells of an occupancy grid some camera sees, on the CPU.
//
// Per block of cells, the views whose frustum meets the sphere around the block; per cell, the first of these whose
// frustum meets the sphere around the cell. The view that saw the latest cell is asked first.
#include "core/occupancy_visible_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

// Work units: blocks of kVisibleBlock^3 cells, of all cascades. One thread writes its block's cells of visible
// [n_cells], and has a list of candidates [n_views] of its own; planes [n_views, 5, 4] are shared. Nothing is added up,
// and the order of views does not change the answer.
static void occupancy_visible_range(const OccupancyVisibleParams& p, int64_t begin, int64_t end) {
  const CellBoxes<float> boxes = make_cell_boxes(p.resolution, p.aabb);
  const float diagonal = cell_diagonal(boxes);
  int64_t blocks[3];
  for (int axis = 0; axis < 3; ++axis) blocks[axis] = (p.resolution[axis] + kVisibleBlock - 1) / kVisibleBlock;
  const auto in_view = [&](int32_t view, const float* point, float radius) {
    return sphere_in_view(p.planes + 20 * static_cast<int64_t>(view), point, radius);
  };
  for (int64_t block = begin; block < end; ++block) {
    int64_t rest = block, first[3], last[3];
    for (int axis = 2; axis >= 0; --axis) {
      first[axis] = rest % blocks[axis] * kVisibleBlock;
      last[axis] = min_count(first[axis] + kVisibleBlock, p.resolution[axis]);
      rest /= blocks[axis];
    }
    const int64_t cascade = rest;
    const float growth = static_cast<float>(1 << cascade);
    float point[3];
    for (int axis = 0; axis < 3; ++axis) {
      const float low = boxes.centre[axis] - boxes.half[axis] * growth;
      point[axis] = low + 0.5f * static_cast<float>(first[axis] + last[axis]) * boxes.side[axis] * growth;
    }
    int64_t n_candidates = 0;
    const float block_radius = 0.5f * diagonal * growth * (kVisibleBlock + 0.01f);
    for (int32_t view = 0; view < p.n_views; ++view) {
      if (in_view(view, point, block_radius)) p.candidates[n_candidates++] = view;
    }
    const float radius = 0.5f * diagonal * growth;
    int64_t latest = 0;
    for (int64_t x = first[0]; x < last[0]; ++x) {
      for (int64_t y = first[1]; y < last[1]; ++y) {
        for (int64_t z = first[2]; z < last[2]; ++z) {
          const int64_t cell[3] = {x, y, z};
          for (int axis = 0; axis < 3; ++axis) {
            point[axis] = cell_centre(boxes, axis, static_cast<float>(cell[axis]), growth);
          }
          bool seen = n_candidates > 0 && in_view(p.candidates[latest], point, radius);
          for (int64_t i = 0; i < n_candidates && !seen; ++i) {
            seen = in_view(p.candidates[i], point, radius);
            if (seen) latest = i;
          }
          const int64_t index = ((cascade * p.resolution[0] + x) * p.resolution[1] + y) * p.resolution[2] + z;
          p.visible[index] = seen ? 1 : 0;
        }
      }
    }
  }
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
