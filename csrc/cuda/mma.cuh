// Tensor cores: products of 16-bit factors with fp32 sums, fragments per warp. All inline PTX of this kind lives here.
//
// A fragment spreads a matrix over the 32 lanes of a warp, two neighbouring values to a register. With g = lane / 4 and
// t = lane % 4 * 2 (PTX ISA, "Matrix Fragments for mma.m16n8k16"):
//
//     a [16, 16]  a[0]: row g, columns t, t+1    a[1]: row g+8    a[2]: row g, columns t+8, t+9    a[3]: row g+8
//     b [16, 8]   b0: rows t, t+1, column g      b1: rows t+8, t+9
//     sum [16, 8] sum[0], sum[1]: row g, columns t, t+1           sum[2], sum[3]: row g+8
//
// So two neighbouring sums, rounded and packed, are an `a` of the next product: layers chain without moving data.
// All lanes of a warp have to come to these functions together: a __syncwarp ends code in which they may part.
#pragma once

#include "cuda/launch.cuh"

#include <type_traits>

#include "core/bfloat16.h"

#if defined(HASHGRID_ON_HOST)
#include "mma_on_host.h"
#endif

namespace hashgrid {
namespace HASHGRID_ISA {

// Below sm_80 a kernel's body is left out; the host does not launch it there.
#if defined(HASHGRID_ON_HOST) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800)
constexpr bool kHasMma = true;
#else
constexpr bool kHasMma = false;
#endif

// ---- rounding ----------------------------------------------------------------------------------------------------

// Two values rounded to nearest even, `low` in the lower half of the register.
template <typename Half>
__device__ inline uint32_t pack_pair(float low, float high);

template <>
__device__ inline uint32_t pack_pair<BFloat16>(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
#else
  return float_to_bfloat16(low) | static_cast<uint32_t>(float_to_bfloat16(high)) << 16;
#endif
}

template <>
__device__ inline uint32_t pack_pair<Float16>(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
#else
  return static_cast<uint32_t>(__half_as_ushort(__float2half_rn(low))) |
         static_cast<uint32_t>(__half_as_ushort(__float2half_rn(high))) << 16;
#endif
}

// The same of values behind a ReLU; NaN stays.
template <typename Half>
__device__ inline uint32_t pack_relu_pair(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t packed;
  if constexpr (std::is_same_v<Half, BFloat16>) {
    asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  }
  return packed;
#else
  return pack_pair<Half>(low < 0.0f ? 0.0f : low, high < 0.0f ? 0.0f : high);
#endif
}

// The two values of a register.
template <typename Half>
__device__ inline float low_of(uint32_t pair) {
  return to_real(Half{static_cast<uint16_t>(pair & 0xffffu)});
}
template <typename Half>
__device__ inline float high_of(uint32_t pair) {
  return to_real(Half{static_cast<uint16_t>(pair >> 16)});
}

// Both values of `a` times those of `b`, rounded once.
template <typename Half>
__device__ inline uint32_t multiply_pair(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  static_assert(std::is_same_v<Half, Float16>, "bfloat16 has no such instruction before sm_90");
  uint32_t product;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
#else
  return pack_pair<Half>(low_of<Half>(a) * low_of<Half>(b), high_of<Half>(a) * high_of<Half>(b));
#endif
}

// ---- products ----------------------------------------------------------------------------------------------------

// sum[0..4) += a b.
template <typename Half>
__device__ inline void multiply_add(float* sum, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if defined(HASHGRID_ON_HOST)
  hashgrid_on_host::mma_m16n8k16(sum, a, b0, b1, [](uint16_t bits) { return static_cast<float>(to_real(Half{bits})); });
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<Half, BFloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
#else
  (void)a;
#endif
}

// Four 8x8 matrices of 16-bit values, stored one after the other in rows of 16 bytes, each transposed: register i of
// lane L receives the values (row t, t+1; column g) of matrix i. `matrices` is shared memory, the same for all lanes.
// kCrossed: matrices 1 and 2 change places, as the transposed of an `a` has them.
template <bool kCrossed>
__device__ inline void load_transposed(const uint32_t* matrices, uint32_t (&registers)[4]) {
  const unsigned lane = threadIdx.x % kWarpSize;  // the lane names a row: 8 for each matrix
  const unsigned line = kCrossed ? (lane & 7u) | (lane & 8u) << 1 | (lane & 16u) >> 1 : lane;
  [[maybe_unused]] const uint32_t* row = matrices + line * 4;
#if defined(HASHGRID_ON_HOST)
  hashgrid_on_host::ldmatrix_x4_trans(registers, row);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
#endif
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
