// Both networks of a radiance field on tensor cores: the kernels of the MLP (mlp_fused.cuh) with the passage from one
// network to the other in between. Everything else is made of mlp and PyTorch's ops, on the Python side.
#include "cuda/mlp_fused.cuh"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kRowTiles = 2;  // of a warp: two share each load of weights

// Body of radiance_mlp_forward_kernel, on its own so that it is left out where there are no such instructions.
template <class Half>
__device__ inline void evaluate_networks(const MlpParams& p) {
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kForwardWarps + warp_index()) * (kRowTiles * kTile);
  if (first >= p.n_rows) return;
  Factors<Half, kRadianceTiles, kRowTiles> factors;
  load_user_factors(UserRows(p.x, first, p.n_rows, p.layers[0].n_in), &factors);
  pass_hidden_layers<Half, kRadianceTiles, kRowTiles, true>(p, 0, p.n_density_layers - 1, &factors);
  write_radiance(p, first, &factors);
}

// Warp: 32 rows of x [n_rows, n_in] through both networks, whose hidden layers are ReLU; what lies between stays in
// registers (radiance_tiles.cuh). Warps share packed weights in the L1 cache and nothing else. Sums over a layer's
// inputs are fp32, in the order of tiles. Writes sigmas [n_rows] and rows of y [n_rows, n_out], the colours.
template <class Half>
__global__ void __launch_bounds__(kForwardWarps* kWarpSize, forward_blocks(kRadianceTiles))
    radiance_mlp_forward_kernel(HASHGRID_PARAMS MlpParams p) {
  if constexpr (kHasMma) evaluate_networks<Half>(p);
}

// Block: a range of blocks of n_block rows, as in mlp_fused_backward_kernel, with both networks as one: shared memory
// holds every layer's factors, the logarithms of the densities [n_block], the last gradient and the sums of parameter
// gradients; sums run in the same order. Between the networks, gradients of ray features end, and that of the density
// joins in.
template <class Half>
__global__ void __launch_bounds__(kMaxFusedRows / (kRowTiles * kTile) * kWarpSize, 1)
    radiance_mlp_backward_kernel(HASHGRID_PARAMS MlpParams p) {
  if constexpr (kHasMma) fused_backward<Half, kRadianceTiles, kRowTiles, true>(p);
}

template <class Half>
void launch_radiance_forward_of(const MlpParams& p, cudaStream_t stream) {
  HASHGRID_LAUNCH_TOGETHER((radiance_mlp_forward_kernel<Half>), blocks_of_warps(p.n_rows, kRowTiles), stream, p);
}

template <class Half>
void launch_radiance_backward_of(const MlpParams& p, cudaStream_t stream) {
  const LaunchShape shape = fused_backward_shape<radiance_mlp_backward_kernel<Half>>(p);
  HASHGRID_LAUNCH_TOGETHER((radiance_mlp_backward_kernel<Half>), shape, stream, p);
}

}  // namespace HASHGRID_ISA

using namespace HASHGRID_ISA;

bool has_radiance_mlp(const MlpParams& p) { return has_radiance_tiles(p); }

void launch_radiance_mlp_forward(const MlpParams& p, cudaStream_t stream) {
  launch_pack(p, stream);
  if (p.factors == MlpFactors::kFloat16) return launch_radiance_forward_of<Float16>(p, stream);
  launch_radiance_forward_of<BFloat16>(p, stream);
}

void launch_radiance_mlp_backward(const MlpParams& p, cudaStream_t stream) {
  if (p.n_rows == 0) return clear_parameter_gradients(p, stream);
  if (p.grad_x == nullptr && p.grad_params == nullptr) return;
  launch_pack(p, stream);
  if (p.factors == MlpFactors::kFloat16) {
    launch_radiance_backward_of<Float16>(p, stream);
  } else {
    launch_radiance_backward_of<BFloat16>(p, stream);
  }
  if (p.grad_params != nullptr) launch_reduce<float, FusedTarget>(p, stream);
}

}  // namespace hashgrid
