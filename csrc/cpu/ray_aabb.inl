// Intersection of rays with a box on the CPU.
#include "core/ray_aabb_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

template <typename T>
static void ray_aabb_typed(const RayAabbParams& p, int64_t begin, int64_t end) {
  const T* aabb = static_cast<const T*>(p.aabb);
  const T* rays_o = static_cast<const T*>(p.rays_o);
  const T* rays_d = static_cast<const T*>(p.rays_d);
  for (int64_t ray = begin; ray < end; ++ray) {
    const RaySpan<T> span = intersect_box(rays_o + 3 * ray, rays_d + 3 * ray, aabb, aabb + 3, static_cast<T>(p.near),
                                          static_cast<T>(p.far));
    static_cast<T*>(p.t_min)[ray] = span.begin;
    static_cast<T*>(p.t_max)[ray] = span.end;
  }
}

// Work units: rays, each on its own; t_min and t_max [n_rays].
static void ray_aabb_range(const RayAabbParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kFloat64) return ray_aabb_typed<double>(p, begin, end);
  ray_aabb_typed<float>(p, begin, end);
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
