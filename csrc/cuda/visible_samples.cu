// Which samples compositing will count, on CUDA: one warp per ray. The first pass counts them, the second, once it is
// known where each ray's samples go, writes their indices.
#include "cuda/launch.cuh"

#include "cuda/samples.cuh"
#include "cuda/scan.cuh"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kThreads = 128;

// Warp: one ray, 32 samples at a time, a lane for each. Thickness is a scan over the lanes in fp64, carried on from one
// group to the next (samples.cuh). kept_info is [n_rays, 2], its second column receives the number of samples in front
// of the first hidden one. A ray that does not start where the one in front ends keeps none and is reported behind the
// sums of `scan`. Warps share nothing.
template <typename T>
__global__ void visible_samples_count_kernel(HASHGRID_PARAMS VisibleSamplesParams p, int64_t* fault) {
  const int64_t ray = global_thread() / kWarpSize;
  if (ray >= p.n_rays) return;
  const RayRange range = ray_range(p.packed_info, p.n_samples, ray);
  const int lane = lane_index();
  if (!range.valid && lane == 0) *fault = 1;
  const int64_t count = range.valid ? range.count : 0;
  const int64_t n_kept = count_visible<T>(p, range.first, count);
  if (lane == 0) p.kept_info[2 * ray + 1] = n_kept;
}

// Warp: one ray, 32 of its kept samples at a time; writes consecutive numbers to `index` from the ray's first place on.
__global__ void visible_samples_write_kernel(HASHGRID_PARAMS VisibleSamplesParams p) {
  const int64_t ray = global_thread() / kWarpSize;
  if (ray >= p.n_rays) return;
  const int64_t first = p.packed_info[2 * ray], target = p.kept_info[2 * ray], count = p.kept_info[2 * ray + 1];
  for (int64_t i = lane_index(); i < count; i += kWarpSize) p.index[target + i] = first + i;
}

}  // namespace HASHGRID_ISA

using namespace HASHGRID_ISA;

void launch_visible_samples_count(const VisibleSamplesParams& p, cudaStream_t stream) {
  const LaunchShape shape = blocks_of(p.n_rays * kWarpSize, kThreads);
  int64_t* fault = p.scan + divide_up(p.n_rays, kScanChunk) + 1;
  if (p.dtype == DType::kFloat64) {
    HASHGRID_LAUNCH_TOGETHER((visible_samples_count_kernel<double>), shape, stream, p, fault);
  } else {
    HASHGRID_LAUNCH_TOGETHER((visible_samples_count_kernel<float>), shape, stream, p, fault);
  }
  launch_scan_rays(p.kept_info, p.n_rays, p.scan, stream);
}

void launch_visible_samples_write(const VisibleSamplesParams& p, cudaStream_t stream) {
  HASHGRID_LAUNCH(visible_samples_write_kernel, blocks_of(p.n_rays * kWarpSize, kThreads), stream, p);
}

}  // namespace hashgrid
