// Sums that many threads add to. All inline PTX of this kind lives here.
#pragma once

#include "cuda/launch.cuh"

namespace hashgrid {
namespace HASHGRID_ISA {

// Whether rows of kF floats from `base` on can be added to as vectors. A gradient buffer may be a view that begins
// anywhere.
template <int kF>
__device__ inline bool rows_are_aligned(const void* base) {
  return reinterpret_cast<uintptr_t>(base) % (kF >= 4 ? 16 : 4 * kF) == 0;
}

// target[0..kF) += values. sm_90 has vector reductions: one transaction for a row of fp32 gradients, `aligned` as all
// rows of its buffer are.
template <int kF>
__device__ inline void add_row(float* target, const float* values, [[maybe_unused]] bool aligned) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (kF >= 4) {
#pragma unroll
    for (int f = 0; f < kF; f += 4) {
      if (!aligned) break;
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
__device__ inline void add_row(double* target, const double* values, bool /*aligned*/) {
#pragma unroll
  for (int f = 0; f < kF; ++f) atomicAdd(target + f, values[f]);
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
