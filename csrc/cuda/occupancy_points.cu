// Points in the cells of an occupancy grid, on CUDA: one thread per point.
#include "cuda/launch.cuh"

#include "core/occupancy_points_params.h"
#include "core/occupancy.h"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kThreads = 256;

// Thread: one point of points [n_points, 3], in cell cells[i]: its centre or, with a counter, a place that (counter,
// cell) decides. Threads share nothing. The point of a cell that does not exist is left as it is; one such cell,
// whichever, ends up in `invalid_cell`. The same bits as on the CPU.
template <typename T>
__global__ void occupancy_points_kernel(HASHGRID_PARAMS OccupancyPointsParams p) {
  const int64_t i = global_thread();
  if (i >= p.n_points) return;
  const int64_t cell = p.cells[i];
  if (static_cast<uint64_t>(cell) >= static_cast<uint64_t>(p.n_cells)) {
    *p.invalid_cell = cell;
    return;
  }
  const CellBoxes<T> boxes = make_cell_boxes(p.resolution, static_cast<const T*>(p.aabb));
  const uint32_t key = p.counter != nullptr ? counter_key(p.counter) : 0;
  cell_point(boxes, cell, p.counter != nullptr, key, static_cast<T*>(p.points) + 3 * i);
}

}  // namespace HASHGRID_ISA

using namespace HASHGRID_ISA;

void launch_occupancy_points(const OccupancyPointsParams& p, cudaStream_t stream) {
  const LaunchShape shape = blocks_of(p.n_points, kThreads);
  if (p.dtype == DType::kFloat64) {
    HASHGRID_LAUNCH((occupancy_points_kernel<double>), shape, stream, p);
  } else {
    HASHGRID_LAUNCH((occupancy_points_kernel<float>), shape, stream, p);
  }
}

}  // namespace hashgrid
