// The field of Instant-NGP (Müller et al. 2022, section 5.4) as one kernel, without gradients: hash grid, density
// network, colour network. Values are rounded where the ops on their own would round them.
#include "cuda/hash_encode_tiles.cuh"
#include "cuda/radiance_tiles.cuh"

namespace hashgrid {
namespace HASHGRID_ISA {

// Body of radiance_field_kernel, on its own so that it is left out where there are no such instructions.
template <typename Element, class Half>
__device__ inline void evaluate_field(const GridParams& grid, const MlpParams& p) {
  const GridLevel* levels = share_levels(grid);
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kForwardWarps + warp_index()) * (kRowTiles * kTile);
  if (first >= p.n_rows) return;
  Factors<Half, kRadianceTiles, kRowTiles> factors;
  encode_positions<Element, Half, 3>(grid, levels, first, &factors);
  pass_hidden_layers<Half, kRadianceTiles, kRowTiles, true>(p, 0, p.n_density_layers - 1, &factors);
  write_radiance(p, first, &factors);
}

// Warp: 32 points through grid and both networks, whose hidden layers are ReLU; features, geometry and the colour
// network's inputs stay in registers. The block shares the levels, in shared memory, and packed weights in the L1
// cache; warps exchange nothing. Sums are fp32, in the order of corners and of tiles. Writes sigmas [n_rows] and rows
// of y [n_rows, n_out], the colours.
template <typename Element, class Half>
__global__ void __launch_bounds__(kForwardWarps* kWarpSize, forward_blocks(kRadianceTiles))
    radiance_field_kernel(HASHGRID_PARAMS GridParams grid, HASHGRID_PARAMS MlpParams p) {
  if constexpr (kHasMma) evaluate_field<Element, Half>(grid, p);
}

template <class Half>
void launch_radiance_field_of(const GridParams& grid, const MlpParams& p, cudaStream_t stream) {
  const LaunchShape shape = blocks_of_warps(p.n_rows, kRowTiles);
  if (grid.table_dtype == DType::kFloat32) {
    HASHGRID_LAUNCH_TOGETHER((radiance_field_kernel<float, Half>), shape, stream, grid, p);
  } else {
    HASHGRID_LAUNCH_TOGETHER((radiance_field_kernel<Half, Half>), shape, stream, grid, p);
  }
}

}  // namespace HASHGRID_ISA

using namespace HASHGRID_ISA;

bool has_radiance_field(const GridParams& grid, const MlpParams& p) {
  return grid.n_dims == 3 && has_tiles(grid, p.factors) && has_radiance_tiles(p);
}

void launch_radiance_field(const GridParams& grid, const MlpParams& p, cudaStream_t stream) {
  launch_pack(p, stream);
  if (p.factors == MlpFactors::kFloat16) return launch_radiance_field_of<Float16>(grid, p, stream);
  launch_radiance_field_of<BFloat16>(grid, p, stream);
}

}  // namespace hashgrid
