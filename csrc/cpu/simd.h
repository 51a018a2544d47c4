// The few vector operations the CPU kernels use, over the compiler's vector extension (GCC and Clang). Each
// translation unit defines HASHGRID_ISA and HASHGRID_LANES; arithmetic operators work on the types as they are, and
// a * b + c contracts to an FMA where the instruction set has one.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/macros.h"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kLanes = HASHGRID_LANES;

typedef float VecF __attribute__((vector_size(4 * HASHGRID_LANES)));
typedef uint32_t VecU __attribute__((vector_size(4 * HASHGRID_LANES)));
typedef int32_t VecI __attribute__((vector_size(4 * HASHGRID_LANES)));
typedef double VecD __attribute__((vector_size(8 * HASHGRID_LANES)));

static inline VecF splat(float x) { return x - VecF{}; }
static inline VecU splat(uint32_t x) { return x - VecU{}; }
static inline VecF load(const float* p) {
  VecF v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
static inline VecU load(const uint32_t* p) {
  VecU v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
static inline void store(float* p, VecF v) { std::memcpy(p, &v, sizeof(v)); }
static inline void store(uint32_t* p, VecU v) { std::memcpy(p, &v, sizeof(v)); }

static inline VecF select(VecI mask, VecF yes, VecF no) { return mask ? yes : no; }
static inline VecI select(VecI mask, VecI yes, VecI no) { return mask ? yes : no; }

// a * b + c with one rounding. Without FMA instructions the product is exact in double.
static inline VecF multiply_add(VecF a, VecF b, VecF c) {
#if defined(HASHGRID_HAS_FMA)
  return a * b + c;
#else
  const VecD wide =
      __builtin_convertvector(a, VecD) * __builtin_convertvector(b, VecD) + __builtin_convertvector(c, VecD);
  return __builtin_convertvector(wide, VecF);
#endif
}

// Floor for |x| < 2^31; `whole` receives it as an integer.
static inline VecF round_down(VecF x, VecI* whole) {
  const VecI truncated = __builtin_convertvector(x, VecI);
  const VecI below = __builtin_convertvector(truncated, VecF) > x;  // -1 where truncation went up
  *whole = truncated + below;
  return __builtin_convertvector(*whole, VecF);
}

static inline VecF clamp(VecF x, float low, float high) {
  const VecF lo = splat(low), hi = splat(high);
  x = x < lo ? lo : x;
  return x > hi ? hi : x;
}

static inline float sum(VecF v) {
  float total = 0.0f;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
