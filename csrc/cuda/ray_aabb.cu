// Intersection of rays with a box on CUDA: one thread per ray.
#include "cuda/launch.cuh"

#include "core/ray_aabb_params.h"
#include "core/ray.h"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kThreads = 256;

// Thread: one ray. rays_o and rays_d are [n_rays, 3]: a warp reads whole lines of them, three times from the cache;
// writes t_min and t_max [n_rays]. Threads share nothing but the box. The same bits as on the CPU, as differences and
// divisions are all there is to round.
template <typename T>
__global__ void ray_aabb_kernel(HASHGRID_PARAMS RayAabbParams p) {
  const int64_t ray = global_thread();
  if (ray >= p.n_rays) return;
  const T* aabb = static_cast<const T*>(p.aabb);
  const T* origin = static_cast<const T*>(p.rays_o) + 3 * ray;
  const T* direction = static_cast<const T*>(p.rays_d) + 3 * ray;
  const RaySpan<T> span =
      intersect_box(origin, direction, aabb, aabb + 3, static_cast<T>(p.near), static_cast<T>(p.far));
  static_cast<T*>(p.t_min)[ray] = span.begin;
  static_cast<T*>(p.t_max)[ray] = span.end;
}

}  // namespace HASHGRID_ISA

using namespace HASHGRID_ISA;

void launch_ray_aabb(const RayAabbParams& p, cudaStream_t stream) {
  const LaunchShape shape = blocks_of(p.n_rays, kThreads);
  if (p.dtype == DType::kFloat64) {
    HASHGRID_LAUNCH((ray_aabb_kernel<double>), shape, stream, p);
  } else {
    HASHGRID_LAUNCH((ray_aabb_kernel<float>), shape, stream, p);
  }
}

}  // namespace hashgrid
