// Samples of a window along rays that are not opaque yet, on CUDA: one warp per ray. The first pass counts them, the
// second, once it is known where each ray's samples go, writes their indices and positions.
#include "cuda/launch.cuh"

#include "core/window_samples_params.h"
#include "core/sample_positions.h"
#include "cuda/samples.cuh"
#include "cuda/scan.cuh"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kThreads = 128;

// Warp: one ray. The second column of kept_info [n_rays, 2] receives the number of samples of the window, none where
// sample `p.begin` is hidden; the samples in front of it are scanned as in visible_samples.cu, which also reports
// faults in this way. Warps share nothing.
template <typename T>
__global__ void window_samples_count_kernel(HASHGRID_PARAMS WindowSamplesParams p, int64_t* fault) {
  const int64_t ray = global_thread() / kWarpSize;
  if (ray >= p.n_rays) return;
  const RayRange range = ray_range(p.packed_info, p.n_samples, ray);
  if (!range.valid && lane_index() == 0) *fault = 1;
  const int64_t count = range.valid ? range.count : 0;
  bool open = p.begin < count;
  // Whether a sample is visible depends on those in front of it: its own density need not be known.
  if (open && p.begin > 0) open = count_visible<T>(p, range.first, p.begin + 1) > p.begin;
  const int64_t last = count < p.end ? count : p.end;
  if (lane_index() == 0) p.kept_info[2 * ray + 1] = open ? last - p.begin : 0;
}

// Warp: one ray, 32 of its samples at a time, a lane for each; writes `index` [n_kept] and positions [n_kept, 3] from
// the ray's first place on.
template <typename T>
__global__ void window_samples_write_kernel(HASHGRID_PARAMS WindowSamplesParams p) {
  const int64_t ray = global_thread() / kWarpSize;
  if (ray >= p.n_rays) return;
  const int64_t source = p.packed_info[2 * ray] + p.begin;
  const int64_t target = p.kept_info[2 * ray], count = p.kept_info[2 * ray + 1];
  for (int64_t i = lane_index(); i < count; i += kWarpSize) {
    p.index[target + i] = source + i;
    write_middle(static_cast<const T*>(p.rays_o) + 3 * ray, static_cast<const T*>(p.rays_d) + 3 * ray,
                 static_cast<const T*>(p.t_starts)[source + i], static_cast<const T*>(p.t_ends)[source + i],
                 static_cast<T*>(p.positions) + 3 * (target + i));
  }
}

}  // namespace HASHGRID_ISA

using namespace HASHGRID_ISA;

void launch_window_samples_count(const WindowSamplesParams& p, cudaStream_t stream) {
  const LaunchShape shape = blocks_of(p.n_rays * kWarpSize, kThreads);
  int64_t* fault = p.scan + divide_up(p.n_rays, kScanChunk) + 1;
  if (p.dtype == DType::kFloat64) {
    HASHGRID_LAUNCH_TOGETHER((window_samples_count_kernel<double>), shape, stream, p, fault);
  } else {
    HASHGRID_LAUNCH_TOGETHER((window_samples_count_kernel<float>), shape, stream, p, fault);
  }
  launch_scan_rays(p.kept_info, p.n_rays, p.scan, stream);
}

void launch_window_samples_write(const WindowSamplesParams& p, cudaStream_t stream) {
  const LaunchShape shape = blocks_of(p.n_rays * kWarpSize, kThreads);
  if (p.dtype == DType::kFloat64) {
    HASHGRID_LAUNCH((window_samples_write_kernel<double>), shape, stream, p);
  } else {
    HASHGRID_LAUNCH((window_samples_write_kernel<float>), shape, stream, p);
  }
}

}  // namespace hashgrid
