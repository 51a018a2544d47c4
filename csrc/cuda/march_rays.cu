// Ray marching on CUDA: one thread per ray, twice. The first pass counts samples, the second, once it is known where
// each ray's samples go, marches again and writes them. Marching twice costs less than memory for the longest possible
// rays, and the order of samples does not depend on which ray came first.
//
// Both passes are march_ray of core/ray.h: the same cells and the same bits as on the CPU.
//
// A result of fixed size needs no word from the host between the passes: rays are taken in order as long as their
// samples fit, and what is left over is filled up with samples of length zero.
//
// Where bricks fit into the grid (core/ray.h), their distances are found first: 32 KB at 128^3, which stay in the L1
// cache, take a ray through a scene in 24 visits instead of 153 (chair; docs/kernels.md).
#include "cuda/launch.cuh"

#include "core/ray.h"
#include "cuda/scan.cuh"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kThreads = 128;  // rays of a warp end at different times: small blocks are replaced sooner

// Coordinates of brick `index` within its cascade, which is returned.
__device__ inline int32_t locate_brick(const MarchRaysParams& p, int32_t index, int32_t* brick) {
  for (int axis = 2; axis >= 0; --axis) {
    const int32_t n = p.resolution[axis] / kMarchBrick;
    brick[axis] = index % n;
    index /= n;
  }
  return index;
}

// Thread: one brick of brick_copies [n_bricks]: 0 where it has to be looked into, because a cell of it is occupied or
// finer cascades cover it, else kMaxBrickDistance. It reads half a byte of the bits for each of the brick's 16 columns
// of 4 cells; neighbours in z read neighbouring halves. Threads share nothing.
static __global__ void march_rays_mark_bricks_kernel(HASHGRID_PARAMS MarchRaysParams p, int64_t n_bricks) {
  const int64_t index = global_thread();
  if (index >= n_bricks) return;
  int32_t brick[3];
  const int32_t cascade = locate_brick(p, static_cast<int32_t>(index), brick);
  uint32_t any = is_covered(p, cascade, brick) ? 1 : 0;
#pragma unroll
  for (int i = 0; i < kMarchBrick; ++i) {
#pragma unroll
    for (int j = 0; j < kMarchBrick; ++j) {
      const int64_t x = int64_t{cascade} * p.resolution[0] + brick[0] * kMarchBrick + i;
      const int64_t y = brick[1] * kMarchBrick + j;
      const int64_t cell = (x * p.resolution[1] + y) * p.resolution[2] + brick[2] * kMarchBrick;
      any |= static_cast<uint32_t>(p.bits[cell / 8] >> (cell % 8)) & 0xfu;
    }
  }
  p.brick_copies[index] = any != 0 ? 0 : kMaxBrickDistance;
}

// Thread: one brick of `bricks` [n_bricks]. Reads the marks of its neighbours, up to kMaxBrickDistance - 1 away along
// every axis within the cascade, from `brick_copies`; the L1 cache holds them, threads share nothing else. Writes the
// distance to the nearest brick that has to be looked into, the largest of the three axes.
static __global__ void march_rays_bricks_kernel(HASHGRID_PARAMS MarchRaysParams p, int64_t n_bricks) {
  constexpr int kReach = kMaxBrickDistance - 1;
  const int64_t index = global_thread();
  if (index >= n_bricks) return;
  int32_t brick[3], begin[3], end[3], stride[3] = {0, 0, 1};
  locate_brick(p, static_cast<int32_t>(index), brick);
  for (int axis = 2; axis >= 0; --axis) {
    const int32_t n = p.resolution[axis] / kMarchBrick;
    if (axis > 0) stride[axis - 1] = stride[axis] * n;
    begin[axis] = brick[axis] < kReach ? -brick[axis] : -kReach;
    end[axis] = n - 1 - brick[axis] < kReach ? n - 1 - brick[axis] : kReach;
  }
  const uint8_t* own = p.brick_copies + index;
  int distance = *own;
  for (int x = begin[0]; x <= end[0]; ++x) {
    for (int y = begin[1]; y <= end[1]; ++y) {
      const int way = abs(x) > abs(y) ? abs(x) : abs(y);
      for (int z = begin[2]; z <= end[2]; ++z) {
        const int there = way > abs(z) ? way : abs(z);
        if (there < distance && own[x * stride[0] + y * stride[1] + z * stride[2]] == 0) distance = there;
      }
    }
  }
  p.bricks[index] = static_cast<uint8_t>(distance);
}

// Thread: one ray. Calls emit(t_start) for up to max_samples samples and returns their number.
template <typename T, typename Emit>
__device__ inline int64_t march(const MarchRaysParams& p, const MarchGrid<T>& grid, int64_t ray, int64_t max_samples,
                                Emit emit) {
  const RaySpan<T> span = begin_march(p, grid, p.counter != nullptr ? counter_key(p.counter) : 0, ray);
  return march_ray(p, grid, ray, span.begin, span.end, max_samples, emit);
}

// Thread: one ray. Marches and writes the number of its samples into the second column of packed_info [n_rays, 2]; rays
// behind n_rays_in_use have none. Threads share the bits and the bricks in the caches, nothing else.
template <typename T>
__global__ void march_rays_count_kernel(HASHGRID_PARAMS MarchRaysParams p) {
  const int64_t ray = global_thread();
  if (ray >= p.n_rays) return;
  if (p.n_rays_in_use != nullptr && ray >= *p.n_rays_in_use) {
    p.packed_info[2 * ray + 1] = 0;
    return;
  }
  const MarchGrid<T> grid = make_march_grid<T>(p);
  p.packed_info[2 * ray + 1] = march(p, grid, ray, p.max_samples_per_ray, [](T) {});
}

// Thread: one ray. Of all rays at most one is the first whose samples do not fit: it ends the result of fixed size, and
// writes `cut`, the samples in front of it, and totals [2], the samples there would be and the rays that fit. If all of
// `total` samples fit, the first thread does; so one thread writes each word, whichever comes first.
static __global__ void march_rays_cut_kernel(HASHGRID_PARAMS MarchRaysParams p, const int64_t* total) {
  const int64_t ray = global_thread();
  if (ray >= p.n_rays) return;
  const int64_t first = p.packed_info[2 * ray], count = p.packed_info[2 * ray + 1];
  if (ray == 0) p.totals[0] = *total;
  if (ray == 0 && *total <= p.n_samples) {
    *p.cut = *total;
    p.totals[1] = p.n_rays_in_use != nullptr && *p.n_rays_in_use < p.n_rays ? *p.n_rays_in_use : p.n_rays;
  } else if (first <= p.n_samples && count > p.n_samples - first) {
    *p.cut = first;
    p.totals[1] = ray;
  }
}

// Thread: one ray, marched again up to its last sample. Writes t_starts, t_ends and ray_indices [n_samples] from the
// ray's first sample on, one after the other: lines fill up in the L2 cache. A ray that does not fit into a result of
// fixed size becomes one without samples at its end.
template <typename T>
__global__ void march_rays_write_kernel(HASHGRID_PARAMS MarchRaysParams p) {
  const int64_t ray = global_thread();
  if (ray >= p.n_rays) return;
  const int64_t count = p.packed_info[2 * ray + 1];
  int64_t i = p.packed_info[2 * ray];
  if (p.fixed && i + count > p.n_samples) {
    p.packed_info[2 * ray] = *p.cut;
    p.packed_info[2 * ray + 1] = 0;
    return;
  }
  if (count == 0) return;
  const MarchGrid<T> grid = make_march_grid<T>(p);
  march(p, grid, ray, count, [&](T t) {
    static_cast<T*>(p.t_starts)[i] = t;
    static_cast<T*>(p.t_ends)[i] = t + step_at(grid, t);
    p.ray_indices[i] = ray;
    ++i;
  });
}

// Thread: one sample of a result of fixed size. Those behind the last ray repeat the others, so that they lie where the
// scene is, with length zero; without any others, they lie at the rays' origins.
template <typename T>
__global__ void march_rays_fill_kernel(HASHGRID_PARAMS MarchRaysParams p) {
  const int64_t i = global_thread(), n_marched = *p.cut;
  if (i < n_marched || i >= p.n_samples) return;
  const T t = n_marched > 0 ? static_cast<const T*>(p.t_starts)[i % n_marched] : T(0);
  static_cast<T*>(p.t_starts)[i] = t;
  static_cast<T*>(p.t_ends)[i] = t;
  p.ray_indices[i] = n_marched > 0 ? p.ray_indices[i % n_marched] : i % p.n_rays;
}

}  // namespace HASHGRID_ISA

using namespace HASHGRID_ISA;

void launch_march_bricks(const MarchRaysParams& p, cudaStream_t stream) {
  if (p.bricks == nullptr) return;
  const int64_t n = p.brick_copies - p.bricks;
  HASHGRID_LAUNCH(march_rays_mark_bricks_kernel, blocks_of(n, kThreads), stream, p, n);
  HASHGRID_LAUNCH(march_rays_bricks_kernel, blocks_of(n, kThreads), stream, p, n);
}

void launch_march_rays_count(const MarchRaysParams& p, cudaStream_t stream) {
  launch_march_bricks(p, stream);
  const LaunchShape shape = blocks_of(p.n_rays, kThreads);
  if (p.dtype == DType::kFloat64) {
    HASHGRID_LAUNCH((march_rays_count_kernel<double>), shape, stream, p);
  } else {
    HASHGRID_LAUNCH((march_rays_count_kernel<float>), shape, stream, p);
  }
  launch_scan_rays(p.packed_info, p.n_rays, p.scan, stream);
  if (p.fixed) HASHGRID_LAUNCH(march_rays_cut_kernel, shape, stream, p, p.scan + divide_up(p.n_rays, kScanChunk));
}

void launch_march_rays_write(const MarchRaysParams& p, cudaStream_t stream) {
  const LaunchShape shape = blocks_of(p.n_rays, kThreads);
  if (p.dtype == DType::kFloat64) {
    HASHGRID_LAUNCH((march_rays_write_kernel<double>), shape, stream, p);
    if (p.fixed) HASHGRID_LAUNCH((march_rays_fill_kernel<double>), blocks_of(p.n_samples, kThreads), stream, p);
  } else {
    HASHGRID_LAUNCH((march_rays_write_kernel<float>), shape, stream, p);
    if (p.fixed) HASHGRID_LAUNCH((march_rays_fill_kernel<float>), blocks_of(p.n_samples, kThreads), stream, p);
  }
}

}  // namespace hashgrid
