// Update of the occupancy grid on CUDA (Müller et al. 2022, appendix E.2): decay, raise the sampled cells, sum up,
// pack.
//
// The threshold depends on the mean over all visible cells. Blocks sum chunks of kOccupancyChunk cells in fp64, one
// block adds the chunks up; every sum is taken in an order that the number of cells determines, and no result passes
// through the host.
#include "cuda/launch.cuh"

#include "core/occupancy_update_params.h"
#include "core/occupancy.h"
#include "cuda/warp.cuh"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kThreads = 256;
constexpr int kSumThreads = 512;  // of a block that sums; each adds every kSumThreads-th value of the chunk

// Thread: one cell of density [n_cells], negative where no camera looks: those stay. Threads share nothing.
__global__ void occupancy_update_decay_kernel(HASHGRID_PARAMS OccupancyUpdateParams p) {
  const int64_t i = global_thread();
  if (i >= p.n_cells) return;
  const float density = p.density[i];
  if (density >= 0.0f) p.density[i] = density * p.decay;
}

// Thread: one sample. The cells [n_samples] are unique: no two threads write the same density. A cell that does not
// exist ends up in `invalid_cell`, one of them if there are several.
__global__ void occupancy_update_raise_kernel(HASHGRID_PARAMS OccupancyUpdateParams p) {
  const int64_t i = global_thread();
  if (i >= p.n_samples) return;
  const int64_t cell = p.cells[i];
  if (static_cast<uint64_t>(cell) >= static_cast<uint64_t>(p.n_cells)) {
    *p.invalid_cell = cell;
    return;
  }
  p.density[cell] = raised_density(p.density[cell], p.values[i]);
}

// Block: chunk blockIdx.x of kOccupancyChunk cells; writes the sum of the densities of its visible cells, and their
// number. A thread adds every kSumThreads-th cell in order, in fp64; then lanes are added by halves, and warps in order
// in shared memory (block_sums).
__global__ void occupancy_update_sum_kernel(HASHGRID_PARAMS OccupancyUpdateParams p) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kOccupancyChunk;
  double sum = 0.0;
  int64_t count = 0;
#pragma unroll 4
  for (int64_t i = first + threadIdx.x; i < first + kOccupancyChunk; i += kSumThreads) {
    const float density = i < p.n_cells ? p.density[i] : -1.0f;
    sum += density >= 0.0f ? static_cast<double>(density) : 0.0;
    count += density >= 0.0f ? 1 : 0;
  }
  block_sums<kSumThreads / kWarpSize>(&sum, &count);
  if (threadIdx.x > 0) return;
  p.chunk_sums[blockIdx.x] = sum;
  p.chunk_counts[blockIdx.x] = count;
}

// One block: the threshold, from chunk_sums and chunk_counts [n_chunks], which it adds up as a chunk's cells are. NaN
// when no cell is visible: nothing is above it.
__global__ void occupancy_update_threshold_kernel(HASHGRID_PARAMS OccupancyUpdateParams p, int64_t n_chunks) {
  double sum = 0.0;
  int64_t count = 0;
  for (int64_t chunk = threadIdx.x; chunk < n_chunks; chunk += kSumThreads) {
    sum += p.chunk_sums[chunk];
    count += p.chunk_counts[chunk];
  }
  block_sums<kSumThreads / kWarpSize>(&sum, &count);
  if (threadIdx.x > 0) return;
  const double mean = sum / static_cast<double>(count);
  *p.mean_threshold = static_cast<float>(mean > p.max_threshold ? p.max_threshold : mean);
}

// Thread: one byte of the bits, from eight cells, the first of them in the lowest bit; threads share nothing. Spare
// bits of the last byte are 0.
__global__ void occupancy_update_pack_kernel(HASHGRID_PARAMS OccupancyUpdateParams p) {
  const int64_t byte = global_thread();
  if (8 * byte >= p.n_cells) return;
  const float threshold = *p.mean_threshold;
  uint32_t bits = 0;
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    const int64_t i = 8 * byte + k;
    if (i < p.n_cells && p.density[i] > threshold) bits |= 1u << k;
  }
  p.bits[byte] = static_cast<uint8_t>(bits);
}

}  // namespace HASHGRID_ISA

using namespace HASHGRID_ISA;

void launch_occupancy_update(const OccupancyUpdateParams& p, cudaStream_t stream) {
  const int64_t n_chunks = divide_up(p.n_cells, kOccupancyChunk);
  const LaunchShape chunks = {dim3(static_cast<unsigned>(n_chunks)), dim3(kSumThreads), 0};
  const LaunchShape one_block = {dim3(1), dim3(kSumThreads), 0};
  HASHGRID_LAUNCH(occupancy_update_decay_kernel, blocks_of(p.n_cells, kThreads), stream, p);
  HASHGRID_LAUNCH(occupancy_update_raise_kernel, blocks_of(p.n_samples, kThreads), stream, p);
  HASHGRID_LAUNCH_TOGETHER(occupancy_update_sum_kernel, chunks, stream, p);
  HASHGRID_LAUNCH_TOGETHER(occupancy_update_threshold_kernel, one_block, stream, p, n_chunks);
  HASHGRID_LAUNCH(occupancy_update_pack_kernel, blocks_of(divide_up(p.n_cells, 8), kThreads), stream, p);
}

}  // namespace hashgrid
