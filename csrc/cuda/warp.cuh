// Exchange between the lanes of a warp: sums in front of a lane, behind it, and over all. All 32 lanes take part.
// Values are added in an order that is fixed by the lane, so that results do not vary from run to run.
#pragma once

#include "cuda/launch.cuh"

#include "core/dual.h"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline int lane_index() { return static_cast<int>(threadIdx.x % kWarpSize); }
__device__ inline int warp_index() { return static_cast<int>(threadIdx.x / kWarpSize); }  // within the block

// Dual numbers are exchanged part by part. Every lane has to reach an exchange: none may sit in one arm of a `?:`.
template <typename T>
__device__ inline T shuffle_up(const T& value, int distance) {
  return __shfl_up_sync(kAllLanes, value, distance);
}
template <typename T>
__device__ inline Dual<T> shuffle_up(const Dual<T>& x, int distance) {
  return {shuffle_up(x.value, distance), shuffle_up(x.tangent, distance)};
}

template <typename T>
__device__ inline T shuffle_down(const T& value, int distance) {
  return __shfl_down_sync(kAllLanes, value, distance);
}
template <typename T>
__device__ inline Dual<T> shuffle_down(const Dual<T>& x, int distance) {
  return {shuffle_down(x.value, distance), shuffle_down(x.tangent, distance)};
}

template <typename T>
__device__ inline T shuffle_xor(const T& value, int mask) {
  return __shfl_xor_sync(kAllLanes, value, mask);
}
template <typename T>
__device__ inline Dual<T> shuffle_xor(const Dual<T>& x, int mask) {
  return {shuffle_xor(x.value, mask), shuffle_xor(x.tangent, mask)};
}

// The value of lane `lane`, which lanes may choose for themselves.
template <typename T>
__device__ inline T value_of_lane(const T& value, int lane) {
  return __shfl_sync(kAllLanes, value, lane);
}

// The same where all lanes choose one.
template <typename T>
__device__ inline T broadcast(const T& value, int lane) {
  return __shfl_sync(kAllLanes, value, lane);
}
template <typename T>
__device__ inline Dual<T> broadcast(const Dual<T>& x, int lane) {
  return {broadcast(x.value, lane), broadcast(x.tangent, lane)};
}

// Sum over lanes 0 to this one (Hillis & Steele 1986). A lane depends on those in front of it only: NaN stays behind.
template <typename A>
__device__ inline A sum_up_to_lane(A value) {
  const int lane = lane_index();
#pragma unroll
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const A other = shuffle_up(value, distance);
    if (lane >= distance) value = other + value;
  }
  return value;
}

// Product over lanes 0 to this one.
template <typename A>
__device__ inline A product_up_to_lane(A value) {
  const int lane = lane_index();
#pragma unroll
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const A other = shuffle_up(value, distance);
    if (lane >= distance) value = other * value;
  }
  return value;
}

// Sum over this lane to the last one.
template <typename A>
__device__ inline A sum_from_lane(A value) {
  const int lane = lane_index();
#pragma unroll
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const A other = shuffle_down(value, distance);
    if (lane + distance < kWarpSize) value = value + other;
  }
  return value;
}

// The recurrence x_i = summand_i + factor_i x_{i+1} from behind the last lane, where x is `last`, to this lane: maps of
// x are composed as a sum is scanned.
template <typename A>
__device__ inline A recurrence_from_lane(A factor, A summand, const A& last) {
  const int lane = lane_index();
#pragma unroll
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const A other_factor = shuffle_down(factor, distance);
    const A other_summand = shuffle_down(summand, distance);
    if (lane + distance < kWarpSize) {
      summand = summand + factor * other_summand;
      factor = factor * other_factor;
    }
  }
  return summand + factor * last;
}

// The neighbour's value, `edge` in the lane that has none. Shifting an inclusive sum instead of subtracting from it
// keeps infinities from turning into NaN.
template <typename A>
__device__ inline A from_lane_in_front(const A& value, const A& edge) {
  const A other = shuffle_up(value, 1);
  return lane_index() == 0 ? edge : other;
}
template <typename A>
__device__ inline A from_lane_behind(const A& value, const A& edge) {
  const A other = shuffle_down(value, 1);
  return lane_index() == kWarpSize - 1 ? edge : other;
}

// The sum over all lanes, in each of them.
template <typename A>
__device__ inline A sum_of_lanes(A value) {
#pragma unroll
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) value = value + shuffle_xor(value, mask);
  return value;
}

// The sums over a block of kWarps warps of two values per thread, in thread 0: lanes by halves, then warps in order,
// from shared memory [kWarps] of each.
template <int kWarps, typename A, typename B>
__device__ inline void block_sums(A* first, B* second) {
  __shared__ A firsts[kWarps];
  __shared__ B seconds[kWarps];
  *first = sum_of_lanes(*first);
  *second = sum_of_lanes(*second);
  if (lane_index() == 0) {
    firsts[threadIdx.x / kWarpSize] = *first;
    seconds[threadIdx.x / kWarpSize] = *second;
  }
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int warp = 1; warp < kWarps; ++warp) {
    *first += firsts[warp];
    *second += seconds[warp];
  }
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
