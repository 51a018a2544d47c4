// A hash grid and the network behind it as one kernel, without gradients. Values are rounded where the two ops on their
// own would round them, so that the result has the same bits.
#include "cuda/hash_encode_tiles.cuh"

namespace hashgrid {
namespace HASHGRID_ISA {

// ---- kernel ------------------------------------------------------------------------------------------------------

// Body of hash_encode_mlp_kernel, on its own so that it is left out where there are no such instructions.
template <typename Element, class Half, int kDims, int kTiles, bool kReLU>
__device__ inline void encode_and_pass(const GridParams& grid, const MlpParams& p) {
  const GridLevel* levels = share_levels(grid);
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kForwardWarps + warp_index()) * (kRowTiles * kTile);
  if (first >= p.n_rows) return;
  Factors<Half, kTiles, kRowTiles> factors;
  encode_positions<Element, Half, kDims>(grid, levels, first, &factors);
  pass_hidden_layers<Half, kTiles, kRowTiles, kReLU>(p, 0, p.n_layers - 1, &factors);
  write_last_layer(p, first, factors);
}

// Warp: 32 points through grid and layers, each at most kTiles * 16 wide; kReLU: of the hidden layers. A lane encodes
// the columns of its fragments (hash_encode_tiles.cuh), so that features stay in registers; the block shares the
// levels, in shared memory, and packed weights in the L1 cache, and warps exchange nothing. Sums over corners and over
// a layer's inputs are fp32, in the order of corners and of tiles. Writes rows of y [n_rows, n_out].
template <typename Element, class Half, int kDims, int kTiles, bool kReLU>
__global__ void __launch_bounds__(kForwardWarps* kWarpSize, forward_blocks(kTiles))
    hash_encode_mlp_kernel(HASHGRID_PARAMS GridParams grid, HASHGRID_PARAMS MlpParams p) {
  if constexpr (kHasMma) encode_and_pass<Element, Half, kDims, kTiles, kReLU>(grid, p);
}

// ---- choice of an instance ---------------------------------------------------------------------------------------

template <typename Element, class Half, int kDims, int kTiles>
void launch_hash_encode_mlp_instance(const GridParams& grid, const MlpParams& p, cudaStream_t stream) {
  const LaunchShape shape = blocks_of_warps(p.n_rows, kRowTiles);
  if (p.activation == Activation::kReLU) {
    HASHGRID_LAUNCH_TOGETHER((hash_encode_mlp_kernel<Element, Half, kDims, kTiles, true>), shape, stream, grid, p);
  } else {
    HASHGRID_LAUNCH_TOGETHER((hash_encode_mlp_kernel<Element, Half, kDims, kTiles, false>), shape, stream, grid, p);
  }
}

template <typename Element, class Half>
void launch_hash_encode_mlp_of_types(const GridParams& grid, const MlpParams& p, cudaStream_t stream) {
  const bool narrow = widest_of(p) <= kMaxFusedWidth / 2;
  if (grid.n_dims == 2)
    return narrow ? launch_hash_encode_mlp_instance<Element, Half, 2, 4>(grid, p, stream)
                  : launch_hash_encode_mlp_instance<Element, Half, 2, 8>(grid, p, stream);
  narrow ? launch_hash_encode_mlp_instance<Element, Half, 3, 4>(grid, p, stream)
         : launch_hash_encode_mlp_instance<Element, Half, 3, 8>(grid, p, stream);
}

template <class Half>
void launch_hash_encode_mlp_of(const GridParams& grid, const MlpParams& p, cudaStream_t stream) {
  if (grid.table_dtype == DType::kFloat32) return launch_hash_encode_mlp_of_types<float, Half>(grid, p, stream);
  launch_hash_encode_mlp_of_types<Half, Half>(grid, p, stream);
}

}  // namespace HASHGRID_ISA

using namespace HASHGRID_ISA;

bool has_hash_encode_mlp(const GridParams& grid, const MlpParams& p) {
  return (grid.n_dims == 2 || grid.n_dims == 3) && has_tiles(grid, p.factors) && has_fused_layers(p);
}

void launch_hash_encode_mlp(const GridParams& grid, const MlpParams& p, cudaStream_t stream) {
  launch_pack(p, stream);
  if (p.factors == MlpFactors::kFloat16) return launch_hash_encode_mlp_of<Float16>(grid, p, stream);
  launch_hash_encode_mlp_of<BFloat16>(grid, p, stream);
}

}  // namespace hashgrid
