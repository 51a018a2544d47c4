// Packed samples as warps see them: one warp per ray, one lane per sample, 32 samples at a time. Shared by composite,
// visible_samples and window_samples, which have to agree on the bits of every transmittance.
#pragma once

#include "core/ray.h"
#include "core/visible_samples_params.h"
#include "core/volume.h"
#include "cuda/warp.cuh"

namespace hashgrid {
namespace HASHGRID_ISA {

struct RayRange {
  int64_t first, count;  // samples; within memory whatever packed_info says
  bool valid;            // starts where the ray in front ends
};

// packed_info is [n_rays, 2]. A lane checks its ray against the one in front only: together they check everything.
__device__ inline RayRange ray_range(const int64_t* packed_info, int64_t n_samples, int64_t ray) {
  const int64_t first = packed_info[2 * ray], count = packed_info[2 * ray + 1];
  const int64_t expected = ray > 0 ? packed_info[2 * ray - 2] + packed_info[2 * ray - 1] : 0;
  const bool inside = first >= 0 && first <= n_samples && count >= 0 && count <= n_samples - first;
  const bool valid = inside && first == expected;
  if (inside) return {first, count, valid};
  return {0, 0, false};
}

// The sample of this lane.
template <typename V>
struct LaneSample {
  typedef typename RealOf<V>::Type T;
  V thickness;  // sigma dt; alpha where alphas are given
  T step;       // dt
  T middle;
};

// Rounded, so that no kernel fuses the product with the sum it goes into.
template <typename T>
__device__ inline T thickness_of(T sigma, T step) {
  return rounded_multiply(sigma, step);
}
template <typename T>
__device__ inline Dual<T> thickness_of(const Dual<T>& sigma, T step) {
  return {rounded_multiply(sigma.value, step), sigma.tangent * step};
}

// Sample i of those arrays, zeros where it does not exist: in the lanes behind the end of a ray. kAlphas: `sigmas` are
// alphas.
template <typename V, bool kAlphas = false>
__device__ inline LaneSample<V> load_sample(const void* sigmas, const void* tangent_sigmas, const void* t_starts,
                                            const void* t_ends, int64_t i, bool exists) {
  typedef typename RealOf<V>::Type T;
  if (!exists) return {V(T(0)), T(0), T(0)};
  const T begin = static_cast<const T*>(t_starts)[i], end = static_cast<const T*>(t_ends)[i];
  const T step = end - begin;
  const V value = read_value<V>(sigmas, tangent_sigmas, i);
  return {kAlphas ? value : thickness_of(value, step), step, (begin + end) / T(2)};
}

// Transmittance in front of this lane's sample. `in_front` is the thickness in front of lane 0, and receives that in
// front of the next 32 samples.
template <typename V, typename A>
__device__ inline V lane_transmittance(const V& thickness, A* in_front) {
  const A up_to = *in_front + sum_up_to_lane(A(thickness));
  const A before = from_lane_in_front(up_to, *in_front);
  *in_front = broadcast(up_to, kWarpSize - 1);
  return exponential(-V(before));
}

// The same of alphas: `in_front` is the transmittance of lane 0.
template <typename V, typename A>
__device__ inline V lane_transmittance_of_alphas(const V& alpha, A* in_front) {
  const A up_to = *in_front * product_up_to_lane(A(1.0) - A(alpha));
  const A before = from_lane_in_front(up_to, *in_front);
  *in_front = broadcast(up_to, kWarpSize - 1);
  return V(before);
}

// Number of lanes in front of the first one whose sample does not count: it is hidden, or there is none.
template <typename V, typename T>
__device__ inline int lanes_that_count(const V& transmittance, bool exists, T early_stop_eps) {
  const unsigned stops = __ballot_sync(kAllLanes, !(exists && primal(transmittance) >= early_stop_eps));
  return stops == 0 ? kWarpSize : __ffs(static_cast<int>(stops)) - 1;
}

// Number of samples, of `count` from sample `first` of a ray on, in front of the first hidden one; the same in all
// lanes.
template <typename T>
__device__ inline int64_t count_visible(const VisibleSamplesParams& p, int64_t first, int64_t count) {
  const T eps = static_cast<T>(p.early_stop_eps);
  const int lane = lane_index();
  double in_front = 0.0;
  int64_t n_visible = 0;
  for (int64_t start = 0; start < count; start += kWarpSize) {
    const bool exists = start + lane < count;
    const LaneSample<T> sample = load_sample<T>(p.sigmas, nullptr, p.t_starts, p.t_ends, first + start + lane, exists);
    const int n_counted = lanes_that_count(lane_transmittance(sample.thickness, &in_front), exists, eps);
    n_visible += n_counted;
    if (n_counted < kWarpSize) break;
  }
  return n_visible;
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
