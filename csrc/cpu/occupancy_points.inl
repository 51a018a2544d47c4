// Points in the cells of an occupancy grid, on the CPU.
#include "core/occupancy_points_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

template <typename T>
static void occupancy_points_typed(const OccupancyPointsParams& p, int64_t begin, int64_t end) {
  const CellBoxes<T> boxes = make_cell_boxes(p.resolution, static_cast<const T*>(p.aabb));
  const uint32_t key = p.counter != nullptr ? counter_key(p.counter) : 0;
  T* points = static_cast<T*>(p.points);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t cell = p.cells[i];
    if (static_cast<uint64_t>(cell) >= static_cast<uint64_t>(p.n_cells)) {
      __atomic_store_n(p.invalid_cell, cell, __ATOMIC_RELAXED);
      continue;
    }
    cell_point(boxes, cell, p.counter != nullptr, key, points + 3 * i);
  }
}

// Work units: points [n_points, 3], each in cell cells[i]. Threads share `invalid_cell` alone, which receives one of
// the cells that do not exist, whichever.
static void occupancy_points_range(const OccupancyPointsParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kFloat64) return occupancy_points_typed<double>(p, begin, end);
  occupancy_points_typed<float>(p, begin, end);
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
