// The range kernels of one instruction set. Each processes work units [begin, end); threading is the caller's.
#pragma once

#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#define HASHGRID_X86 1
#endif

namespace hashgrid {

template <typename Params>
using RangeKernel = void (*)(const Params& params, int64_t begin, int64_t end);

// X(params, name) for every kernel, name_range(params, begin, end), with its work units.
#define HASHGRID_CPU_KERNELS(X)                                                                         \
  X(HashEncodeParams, hash_encode_prepare)                   /* points */                               \
  X(HashEncodeParams, hash_encode_forward)                   /* (level, chunk of kLevelChunk points) */ \
  X(HashEncodeParams, hash_encode_finish_forward)            /* points */                               \
  X(HashEncodeParams, hash_encode_backward_table)            /* (level, shard) */                       \
  X(HashEncodeParams, hash_encode_backward_positions)        /* chunks of kLevelChunk points */         \
  X(HashEncodeParams, hash_encode_finish_backward_positions) /* points */                               \
  X(HashEncodeParams, hash_encode_backward_level_weights)    /* chunks of kLevelWeightChunk points */   \
  X(HashEncodeParams, hash_encode_second_points)             /* chunks of kLevelWeightChunk points */   \
  X(HashEncodeParams, hash_encode_second_level)              /* chunks of kLevelChunk points */         \
  X(HashEncodeParams, hash_encode_finish_second)             /* points */                               \
  X(HashEncodeParams, hash_encode_second_table)              /* (level, shard) */                       \
  X(HashEncodeJetParams, hash_encode_jet_forward)            /* points */                               \
  X(HashEncodeJetParams, hash_encode_jet_backward_points)    /* points */                               \
  X(HashEncodeJetParams, hash_encode_jet_backward_table)     /* (level, shard) */                       \
  X(ShEncodeParams, sh_encode_forward)                       /* points */                               \
  X(ShEncodeParams, sh_encode_backward)                      /* points */                               \
  X(FrequencyEncodeParams, frequency_encode_forward)         /* inputs, points times dimensions */      \
  X(FrequencyEncodeParams, frequency_encode_backward)        /* inputs */                               \
  X(AdamStepParams, adam_step)                               /* rows if skip_zero, else elements */     \
  X(RayAabbParams, ray_aabb)                                 /* rays */                                 \
  X(SphereTraceParams, sphere_trace)                         /* points */                               \
  X(MarchRaysParams, march_rays_bricks)                      /* cascades */                             \
  X(MarchRaysParams, march_rays_begin)                       /* rays */                                 \
  X(MarchRaysParams, march_rays)                             /* rays */                                 \
  X(MarchRaysParams, march_rays_write)                       /* rays */                                 \
  X(CompositeParams, composite_forward)                      /* rays */                                 \
  X(CompositeParams, composite_backward)                     /* rays */                                 \
  X(LineIntegralsParams, line_integrals_forward)             /* rays */                                 \
  X(LineIntegralsParams, line_integrals_backward)            /* rays */                                 \
  X(VisibleSamplesParams, visible_samples_count)             /* rays */                                 \
  X(VisibleSamplesParams, visible_samples_write)             /* rays */                                 \
  X(WindowSamplesParams, window_samples_count)               /* rays */                                 \
  X(WindowSamplesParams, window_samples_write)               /* rays */                                 \
  X(FmaProbeParams, fma_probe)                               /* repetitions */                          \
  X(CounterUniformParams, counter_uniform)                   /* numbers */                              \
  X(SamplePositionsParams, sample_positions)                 /* samples */                              \
  X(SampleRaysParams, sample_rays)                           /* rays */                                 \
  X(PixelLossParams, pixel_loss)                             /* chunks of kLossChunk rays */            \
  X(PixelLossParams, pixel_loss_sum)                         /* one unit */                             \
  X(OccupancyPointsParams, occupancy_points)                 /* points */                               \
  X(OccupancyVisibleParams, occupancy_visible)               /* blocks of kVisibleBlock^3 cells */      \
  X(OccupancyUpdateParams, occupancy_update_decay)           /* cells */                                \
  X(OccupancyUpdateParams, occupancy_update_raise)           /* samples */                              \
  X(OccupancyUpdateParams, occupancy_update_sum)             /* chunks of kOccupancyChunk cells */      \
  X(OccupancyUpdateParams, occupancy_update_pack)            /* bytes of the bits */                    \
  X(MlpParams, mlp_pack)                                     /* layers */                               \
  X(MlpParams, mlp_forward)                                  /* blocks of n_block rows */               \
  X(MlpParams, mlp_backward)                                 /* partial sums */                         \
  X(MlpParams, mlp_second)                                   /* partial sums */                         \
  X(MlpParams, mlp_reduce)                                   /* output rows of all layers */            \
  X(MlpJetParams, mlp_jet_forward)                           /* blocks of n_block points */             \
  X(MlpJetParams, mlp_jet_backward)                          /* partial sums */

#define HASHGRID_DECLARE(Params, name) struct Params;
HASHGRID_CPU_KERNELS(HASHGRID_DECLARE)
#undef HASHGRID_DECLARE

struct KernelTable {
#define HASHGRID_POINTER(Params, name) RangeKernel<Params> name;
  HASHGRID_CPU_KERNELS(HASHGRID_POINTER)
#undef HASHGRID_POINTER
  bool has_bfloat16_products;  // mlp_* take MlpParams::halves
};

constexpr int kMaxLanes = 16;    // of any instruction set
constexpr int kMarchGroups = 2;  // vectors of rays that a thread marches in turns

constexpr int kVisibleBlock = 8;  // cells per side of a block whose views are found together

// Scratch of compositing: thickness, transmittance, alpha, passed, weight, spread, each per sample of a group of rays.
constexpr int kCompositeRows = 6;
constexpr int64_t kCompositeGroup = 1024;  // samples a group has unless a single ray has more

// Points whose contributions to the level weight gradient are summed together; fixed, so that the sum does not depend
// on the thread count.
constexpr int64_t kLevelWeightChunk = 4096;

// Points of one level that a thread takes at a time; a multiple of every vector width.
constexpr int64_t kLevelChunk = 8192;

const KernelTable& kernels_default();
#if defined(HASHGRID_X86)
const KernelTable& kernels_avx2();
const KernelTable& kernels_avx512();
const KernelTable& kernels_avx512_bf16();
#endif

}  // namespace hashgrid
