// Sums that many threads add to. All inline PTX of this kind lives here. Additions of fp32 in global memory flush
// subnormal numbers to zero.
#pragma once

#include "cuda/launch.cuh"

namespace hashgrid {
namespace HASHGRID_ISA {

// Whether rows of kF floats from `base` on can be added to as vectors. A gradient buffer may be a view that begins
// anywhere.
template <int kF>
__host__ __device__ inline bool rows_are_aligned(const void* base) {
  return reinterpret_cast<uintptr_t>(base) % (kF >= 4 ? 16 : 4 * kF) == 0;
}

// Floats that one reduction takes: sm_90 has vectors of them. On the host single ones stand for these.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr int kReductionSize = 4;
constexpr bool kHasVectorReductions = true;
#elif defined(HASHGRID_ON_HOST)
constexpr int kReductionSize = 1;
constexpr bool kHasVectorReductions = true;
#else
constexpr int kReductionSize = 1;
constexpr bool kHasVectorReductions = false;
#endif

// target[0..kSize) += values in one reduction.
template <int kSize>
__device__ inline void add_vector(float* target, const float* values) {
  if constexpr (kSize == 1) atomicAdd(target, values[0]);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (kSize == 2) {
    asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(target), "f"(values[0]), "f"(values[1]) : "memory");
  }
  if constexpr (kSize == 4) {
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(target), "f"(values[0]), "f"(values[1]),
                 "f"(values[2]), "f"(values[3])
                 : "memory");
  }
#endif
}

// target[0..kF) += values, `target` being a row of an array whose rows are aligned.
template <int kF>
__device__ inline void add_aligned_row(float* target, const float* values) {
#if defined(HASHGRID_ON_HOST)
  if (!rows_are_aligned<kF>(target)) hashgrid_on_host::fail("a vector is added where it is not aligned");
#endif
  constexpr int kSize = kF < kReductionSize ? kF : kReductionSize;
#pragma unroll
  for (int f = 0; f < kF; f += kSize) add_vector<kSize>(target + f, values + f);
}

// The same of any row; `aligned`: whether they are.
template <int kF>
__device__ inline void add_row(float* target, const float* values, bool aligned) {
  if (kHasVectorReductions && aligned) return add_aligned_row<kF>(target, values);
#pragma unroll
  for (int f = 0; f < kF; ++f) atomicAdd(target + f, values[f]);
}

// Adds values [2, kF] to rows `first` and `second` of an array whose rows are aligned. Where these are an even row and
// the next one, as x-neighbours are half of the time, in one transaction if `in_pairs`: such pairs are aligned, too.
template <int kF>
__device__ inline void add_two_rows(float* rows, uint32_t first, uint32_t second, const float* values, bool in_pairs) {
  if constexpr (kHasVectorReductions && kF <= 2) {
    if ((first ^ second) == 1u && in_pairs) {
      const bool swapped = (first & 1u) != 0;
      float pair[2 * kF];
#pragma unroll
      for (int f = 0; f < kF; ++f) {
        pair[f] = swapped ? values[kF + f] : values[f];
        pair[kF + f] = swapped ? values[f] : values[kF + f];
      }
      return add_aligned_row<2 * kF>(rows + static_cast<int64_t>(first & ~1u) * kF, pair);
    }
  }
  add_aligned_row<kF>(rows + static_cast<int64_t>(first) * kF, values);
  add_aligned_row<kF>(rows + static_cast<int64_t>(second) * kF, values + kF);
}

template <int kF>
__device__ inline void add_row(double* target, const double* values, bool /*aligned*/) {
#pragma unroll
  for (int f = 0; f < kF; ++f) atomicAdd(target + f, values[f]);
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
