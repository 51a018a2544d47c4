// How much the cells of an occupancy grid hold back, as the field has it at a point of each: the points of
// occupancy_points.cu, the grid, its network and the step in one kernel. No point and no feature goes through memory.
#include "cuda/hash_encode_tiles.cuh"

#include "core/occupancy_values_params.h"
#include "core/field_box.h"
#include "core/occupancy.h"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kValueTiles = 4;  // networks up to 64 wide

// Body of occupancy_values_kernel, on its own so that it is left out where there are no such instructions.
template <typename Element, class Half>
__device__ inline void evaluate_cells(const GridParams& grid, const MlpParams& network,
                                      const OccupancyValuesParams& p) {
  const GridLevel* levels = share_levels(grid);
  const OccupancyPointsParams& cells = p.points;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kForwardWarps + warp_index()) * kWarpSize;
  if (first >= cells.n_points) return;
  const int64_t i = first + lane_index();
  const int64_t cell = i < cells.n_points ? cells.cells[i] : 0;
  const bool exists = static_cast<uint64_t>(cell) < static_cast<uint64_t>(cells.n_cells);
  float unit[3] = {};
  uint32_t cascade = 0;
  if (exists) {
    const CellBoxes<float> boxes = make_cell_boxes(cells.resolution, static_cast<const float*>(cells.aabb));
    const uint32_t key = cells.counter != nullptr ? counter_key(cells.counter) : 0;
    float point[3];
    uint32_t coordinates[3];
    cell_point(boxes, cell, cells.counter != nullptr, key, point);
    cascade = cell_coordinates(cells.resolution, static_cast<uint32_t>(cell), coordinates);
    to_unit_cube(make_field_box(p.field_aabb), point, unit);
  }
  __syncwarp();
  Factors<Half, kValueTiles, kRowTiles> factors;
  encode_factors<Element, Half, 3>(grid, levels, [&](int row) { return point_of_lane(grid, unit, row); }, &factors);
  pass_hidden_layers<Half, kValueTiles, kRowTiles, true>(network, 0, network.n_layers - 1, &factors);
  Sums<kRowTiles> sums;
  forward_tile(network, network.layers[network.n_layers - 1], 0, factors, &sums);
  const float sigma = activate(column_to_lanes(sums, 0), Activation::kExp);
  if (i >= cells.n_points) return;
  const float length = p.step_size * static_cast<float>(1u << cascade);
  p.values[i] = exists ? rounded_multiply(sigma, length) : std::numeric_limits<float>::quiet_NaN();
}

// Warp: 32 cells. A lane finds the point of its cell; then the warp takes the 32 points through grid and layers
// together, as fragments of rows in registers (hash_encode_tiles.cuh, mlp_tiles.cuh), and each lane gets the density of
// its cell back. The block shares the levels, in shared memory, and packed weights in the L1 cache; warps exchange
// nothing. Sums are fp32, in the order of corners and of tiles. Writes values [n_points]; a cell that does not exist
// has the value NaN, which occupancy_update passes over.
template <typename Element, class Half>
__global__ void __launch_bounds__(kForwardWarps* kWarpSize, forward_blocks(kValueTiles))
    occupancy_values_kernel(HASHGRID_PARAMS GridParams grid, HASHGRID_PARAMS MlpParams network,
                            HASHGRID_PARAMS OccupancyValuesParams p) {
  if constexpr (kHasMma) evaluate_cells<Element, Half>(grid, network, p);
}

template <class Half>
void launch_occupancy_values_of(const GridParams& grid, const MlpParams& network, const OccupancyValuesParams& p,
                                cudaStream_t stream) {
  const LaunchShape shape = blocks_of_warps(p.points.n_points, kRowTiles);
  if (grid.table_dtype == DType::kFloat32) {
    HASHGRID_LAUNCH_TOGETHER((occupancy_values_kernel<float, Half>), shape, stream, grid, network, p);
  } else {
    HASHGRID_LAUNCH_TOGETHER((occupancy_values_kernel<Half, Half>), shape, stream, grid, network, p);
  }
}

}  // namespace HASHGRID_ISA

using namespace HASHGRID_ISA;

bool has_occupancy_values(const GridParams& grid, const MlpParams& network) {
  return grid.n_dims == 3 && has_tiles(grid, network.factors) && has_fused_layers(network) &&
         widest_of(network) <= kValueTiles * kTile;
}

void launch_occupancy_values(const GridParams& grid, const MlpParams& network, const OccupancyValuesParams& p,
                             cudaStream_t stream) {
  launch_pack(network, stream);
  if (network.factors == MlpFactors::kFloat16) return launch_occupancy_values_of<Float16>(grid, network, p, stream);
  launch_occupancy_values_of<BFloat16>(grid, network, p, stream);
}

}  // namespace hashgrid
