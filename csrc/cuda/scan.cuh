// Where the samples of each ray start: an exclusive prefix sum over the counts of rays, in int64.
//
// Three launches: sums of chunks of kScanChunk rays, their prefix sums in one block, then the rays of each chunk. The
// workspace `scan` is [n_chunks + 2]: a sum per chunk, the total, and a word the sums leave alone (see kScanChunk).
#pragma once

#include "cuda/launch.cuh"
#include "cuda/warp.cuh"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kScanThreads = 256;
constexpr int kScanWarps = kScanThreads / kWarpSize;

// Sum of the values of the block's threads in front of this one; `total` receives that of all. Every thread calls it.
__device__ inline int64_t block_sum_in_front(int64_t value, int64_t* total) {
  __shared__ int64_t warp_sums[kScanWarps];
  const int64_t up_to = sum_up_to_lane(value);
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  if (lane_index() == kWarpSize - 1) warp_sums[warp] = up_to;
  __syncthreads();
  int64_t in_front = up_to - value;
  *total = 0;
#pragma unroll
  for (int w = 0; w < kScanWarps; ++w) {
    in_front += w < warp ? warp_sums[w] : 0;
    *total += warp_sums[w];
  }
  __syncthreads();  // the next call writes warp_sums again
  return in_front;
}

// Block: chunk blockIdx.x of kScanChunk rays. info is [n_rays, 2], counts in the second column; a thread adds every
// kScanThreads-th ray, so that neighbours read neighbouring rays, and the block its threads. Writes scan[blockIdx.x].
// Sums of whole numbers are the same in any order.
static __global__ void scan_chunk_sums_kernel(const int64_t* info, int64_t n_rays, int64_t* scan) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kScanChunk;
  int64_t sum = 0, total;
  for (int64_t ray = first + threadIdx.x; ray < first + kScanChunk && ray < n_rays; ray += kScanThreads) {
    sum += info[2 * ray + 1];
  }
  block_sum_in_front(sum, &total);
  if (threadIdx.x == 0) scan[blockIdx.x] = total;
}

// One block: replaces the chunks' sums in scan [n_chunks] by the sums in front of them, kScanThreads at a time with the
// sum so far carried on, and appends the total.
static __global__ void scan_chunks_kernel(int64_t* scan, int64_t n_chunks) {
  int64_t before = 0;
  for (int64_t first = 0; first < n_chunks; first += kScanThreads) {
    const int64_t chunk = first + threadIdx.x;
    int64_t total;
    const int64_t in_front = block_sum_in_front(chunk < n_chunks ? scan[chunk] : 0, &total);
    if (chunk < n_chunks) scan[chunk] = before + in_front;
    before += total;
  }
  if (threadIdx.x == 0) scan[n_chunks] = before;
}

// Block: chunk blockIdx.x of the rays, kScanThreads at a time, a thread for each; the first column of `info` receives
// where each ray starts, which is the sum in front of the chunk and of the rays in front within it.
static __global__ void scan_rays_kernel(int64_t* info, int64_t n_rays, const int64_t* scan) {
  int64_t before = scan[blockIdx.x];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kScanChunk;
  for (int64_t first = begin; first < begin + kScanChunk; first += kScanThreads) {
    const int64_t ray = first + threadIdx.x;
    int64_t total;
    const int64_t in_front = block_sum_in_front(ray < n_rays ? info[2 * ray + 1] : 0, &total);
    if (ray < n_rays) info[2 * ray] = before + in_front;
    before += total;
  }
}

inline void launch_scan_rays(int64_t* info, int64_t n_rays, int64_t* scan, cudaStream_t stream) {
  const LaunchShape chunks = {dim3(static_cast<unsigned>(divide_up(n_rays, kScanChunk))), dim3(kScanThreads), 0};
  const LaunchShape one_block = {dim3(1), dim3(kScanThreads), 0};
  HASHGRID_LAUNCH_TOGETHER(scan_chunk_sums_kernel, chunks, stream, info, n_rays, scan);
  HASHGRID_LAUNCH_TOGETHER(scan_chunks_kernel, one_block, stream, scan, divide_up(n_rays, kScanChunk));
  HASHGRID_LAUNCH_TOGETHER(scan_rays_kernel, chunks, stream, info, n_rays, scan);
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
