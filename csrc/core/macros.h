// Markers shared by host and device code. Every core header declares its functions inside
// namespace hashgrid::HASHGRID_ISA: the CPU kernels are compiled once per instruction set and the linker must never
// merge a function of one set with that of another.
#pragma once

#ifndef HASHGRID_ISA
#define HASHGRID_ISA core
#endif

#if defined(__CUDACC__)
#define HASHGRID_HD __host__ __device__ static inline
#define HASHGRID_HD_MEMBER __host__ __device__ inline
#else
#define HASHGRID_HD static inline
#define HASHGRID_HD_MEMBER inline
#endif

#define HASHGRID_RESTRICT __restrict__

// Unrolls the loop that follows: whole on a GPU, up to 8 turns elsewhere.
#if defined(__CUDACC__)
#define HASHGRID_UNROLL _Pragma("unroll")
#elif defined(__clang__)
#define HASHGRID_UNROLL _Pragma("unroll")
#else
#define HASHGRID_UNROLL _Pragma("GCC unroll 8")
#endif

// Says that a pointer is to global memory. nvcc forgets it, from sm_100 on, of parameters that are compared with null,
// and then reads through instructions that find out the memory first.
#if defined(__CUDA_ARCH__)
#define HASHGRID_IN_GLOBAL(pointer) __builtin_assume(__isGlobal(pointer))
#else
#define HASHGRID_IN_GLOBAL(pointer) static_cast<void>(pointer)
#endif
