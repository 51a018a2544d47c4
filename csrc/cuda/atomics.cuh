// Sums that many threads add to. All inline PTX of this kind lives here.
#pragma once

#include "cuda/launch.cuh"

namespace hashgrid {
namespace HASHGRID_ISA {

// target[0..kF) += values. sm_90 has vector reductions: one transaction for a row of fp32 gradients. A gradient buffer
// may be a view that begins anywhere; its rows are added element by element.
template <int kF>
__device__ inline void add_row(float* target, const float* values) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr uintptr_t kAlignment = kF >= 4 ? 16 : 4 * kF;
  const bool aligned = reinterpret_cast<uintptr_t>(target) % kAlignment == 0;
  if constexpr (kF >= 4) {
    for (int f = 0; aligned && f < kF; f += 4) {
      asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(target + f), "f"(values[f]),
                   "f"(values[f + 1]), "f"(values[f + 2]), "f"(values[f + 3])
                   : "memory");
    }
    if (aligned) return;
  } else if constexpr (kF == 2) {
    if (aligned) {
      asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(target), "f"(values[0]), "f"(values[1]) : "memory");
      return;
    }
  }
#endif
#pragma unroll
  for (int f = 0; f < kF; ++f) atomicAdd(target + f, values[f]);
}

template <int kF>
__device__ inline void add_row(double* target, const double* values) {
#pragma unroll
  for (int f = 0; f < kF; ++f) atomicAdd(target + f, values[f]);
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
