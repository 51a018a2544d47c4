// Which cells of an occupancy grid some camera sees, on CUDA: one thread per cell, which asks view after view.
// Neighbouring cells are mostly seen by the same views, so the threads of a warp stop together; planes come from the
// cache.
#include "cuda/launch.cuh"

#include "core/occupancy_visible_params.h"
#include "core/occupancy.h"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kThreads = 256;

// Thread: one cell of visible [n_cells]. Reads planes [n_views, 5, 4] view after view, until one sees the sphere around
// the cell; threads share nothing else. Nothing is added up.
__global__ void occupancy_visible_kernel(HASHGRID_PARAMS OccupancyVisibleParams p) {
  const int64_t cell = global_thread();
  if (cell >= p.n_cells) return;
  const CellBoxes<float> boxes = make_cell_boxes(p.resolution, p.aabb);
  uint32_t coordinates[3];
  const uint32_t cascade = cell_coordinates(p.resolution, static_cast<uint32_t>(cell), coordinates);
  const float growth = static_cast<float>(1 << cascade);
  const float radius = 0.5f * cell_diagonal(boxes) * growth;
  float centre[3];
  for (int axis = 0; axis < 3; ++axis) {
    centre[axis] = cell_centre(boxes, axis, static_cast<float>(coordinates[axis]), growth);
  }
  bool seen = false;
  for (int64_t view = 0; view < p.n_views && !seen; ++view) seen = sphere_in_view(p.planes + 20 * view, centre, radius);
  p.visible[cell] = seen ? 1 : 0;
}

}  // namespace HASHGRID_ISA

using namespace HASHGRID_ISA;

void launch_occupancy_visible(const OccupancyVisibleParams& p, cudaStream_t stream) {
  HASHGRID_LAUNCH(occupancy_visible_kernel, blocks_of(p.n_cells, kThreads), stream, p);
}

}  // namespace hashgrid
