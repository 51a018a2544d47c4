// Loss of composited pixels on CUDA, with its gradient: one thread per ray. Blocks sum chunks of kLossChunk rays in
// fp64, one block adds the chunks up, in an order that the number of rays determines.
#include "cuda/launch.cuh"

#include "core/pixel_loss.h"
#include "cuda/warp.cuh"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kLossThreads = static_cast<int>(kLossChunk);

// Thread: one ray; writes its gradients, zeros for rays that do not count. Block: the sums of loss and squared error of
// chunk blockIdx.x, kLossChunk rays, one for each thread. They are fp64: lanes are added by halves, warps in order in
// shared memory (block_sums). Writes chunk_losses and chunk_errors [n_chunks].
template <typename T>
__global__ void pixel_loss_kernel(HASHGRID_PARAMS PixelLossParams p) {
  const int64_t ray = global_thread();
  const int64_t n_used = rays_that_count(p);
  double loss = 0.0, error = 0.0;
  if (ray < n_used) {
    add_pixel<T>(p, ray, static_cast<T>(pixel_weight(p, n_used)), &loss, &error);
  } else if (ray < p.n_rays) {
    skip_pixel<T>(p, ray);
  }
  block_sums<kLossThreads / kWarpSize>(&loss, &error);
  if (threadIdx.x > 0) return;
  p.chunk_losses[blockIdx.x] = loss;
  p.chunk_errors[blockIdx.x] = error;
}

// One block. A thread adds every kLossThreads-th chunk in order, the block its threads as above; writes the two means.
__global__ void pixel_loss_sum_kernel(HASHGRID_PARAMS PixelLossParams p, int64_t n_chunks) {
  double loss = 0.0, error = 0.0;
  for (int64_t chunk = threadIdx.x; chunk < n_chunks; chunk += kLossThreads) {
    loss += p.chunk_losses[chunk];
    error += p.chunk_errors[chunk];
  }
  block_sums<kLossThreads / kWarpSize>(&loss, &error);
  if (threadIdx.x == 0) write_pixel_means(p, loss, error);
}

}  // namespace HASHGRID_ISA

using namespace HASHGRID_ISA;

void launch_pixel_loss(const PixelLossParams& p, cudaStream_t stream) {
  const LaunchShape shape = blocks_of(p.n_rays, kLossThreads);
  if (p.dtype == DType::kFloat64) {
    HASHGRID_LAUNCH_TOGETHER((pixel_loss_kernel<double>), shape, stream, p);
  } else {
    HASHGRID_LAUNCH_TOGETHER((pixel_loss_kernel<float>), shape, stream, p);
  }
  const LaunchShape one_block = {dim3(1), dim3(kLossThreads), 0};
  HASHGRID_LAUNCH_TOGETHER(pixel_loss_sum_kernel, one_block, stream, p, divide_up(p.n_rays, kLossChunk));
}

}  // namespace hashgrid
