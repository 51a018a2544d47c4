// The CPU kernels for avx512.
#include "cpu/kernels.h"

#if defined(HASHGRID_X86)
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <immintrin.h>

#define HASHGRID_ISA avx512
#define HASHGRID_LANES 16
#define HASHGRID_HAS_FMA 1
#define HASHGRID_HAS_AVX2 1
#define HASHGRID_HAS_AVX512 1

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,f16c,bmi,bmi2"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,f16c,bmi,bmi2")
#endif
#include "cpu/kernels.inl"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace hashgrid {
const KernelTable& kernels_avx512() { return avx512::kTable; }
}  // namespace hashgrid
#endif  // HASHGRID_X86
