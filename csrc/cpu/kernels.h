// The range kernels of one instruction set. Each processes work units [begin, end); threading is the caller's.
#pragma once

#include <cstdint>

#include "core/jet_params.h"
#include "core/params.h"

#if defined(__x86_64__) || defined(_M_X64)
#define HASHGRID_X86 1
#endif

namespace hashgrid {

template <typename Params>
using RangeKernel = void (*)(const Params& params, int64_t begin, int64_t end);

struct KernelTable {
  RangeKernel<HashEncodeParams> hash_encode_prepare;                    // units: points
  RangeKernel<HashEncodeParams> hash_encode_forward;                    // units: (level, chunk of kLevelChunk points)
  RangeKernel<HashEncodeParams> hash_encode_finish_forward;             // units: points
  RangeKernel<HashEncodeParams> hash_encode_backward_table;             // units: (level, shard)
  RangeKernel<HashEncodeParams> hash_encode_backward_positions;         // units: chunks of kLevelChunk points
  RangeKernel<HashEncodeParams> hash_encode_finish_backward_positions;  // units: points
  RangeKernel<HashEncodeParams> hash_encode_backward_level_weights;     // units: chunks of kLevelWeightChunk points
  RangeKernel<HashEncodeParams> hash_encode_second_points;              // units: chunks of kLevelWeightChunk points
  RangeKernel<HashEncodeParams> hash_encode_second_level;               // units: chunks of kLevelChunk points
  RangeKernel<HashEncodeParams> hash_encode_finish_second;              // units: points
  RangeKernel<HashEncodeParams> hash_encode_second_table;               // units: (level, shard)
  RangeKernel<ShEncodeParams> sh_encode_forward;                        // units: points
  RangeKernel<ShEncodeParams> sh_encode_backward;                       // units: points
  RangeKernel<FrequencyEncodeParams> frequency_encode_forward;          // units: inputs, points times dimensions
  RangeKernel<FrequencyEncodeParams> frequency_encode_backward;         // units: inputs
  RangeKernel<AdamStepParams> adam_step;                                // units: rows if skip_zero, else elements
  RangeKernel<RayAabbParams> ray_aabb;                                  // units: rays
  RangeKernel<SphereTraceParams> sphere_trace;                          // units: points
  RangeKernel<MarchRaysParams> march_rays_bricks;                       // units: cascades
  RangeKernel<MarchRaysParams> march_rays_begin;                        // units: rays
  RangeKernel<MarchRaysParams> march_rays;                              // units: rays
  RangeKernel<MarchRaysParams> march_rays_write;                        // units: rays
  RangeKernel<CompositeParams> composite_forward;                       // units: rays
  RangeKernel<CompositeParams> composite_backward;                      // units: rays
  RangeKernel<VisibleSamplesParams> visible_samples_count;              // units: rays
  RangeKernel<VisibleSamplesParams> visible_samples_write;              // units: rays
  RangeKernel<WindowSamplesParams> window_samples_count;                // units: rays
  RangeKernel<WindowSamplesParams> window_samples_write;                // units: rays
  RangeKernel<FmaProbeParams> fma_probe;                                // units: repetitions
  RangeKernel<CounterUniformParams> counter_uniform;                    // units: numbers
  RangeKernel<SamplePositionsParams> sample_positions;                  // units: samples
  RangeKernel<SampleRaysParams> sample_rays;                            // units: rays
  RangeKernel<PixelLossParams> pixel_loss;                              // units: chunks of kLossChunk rays
  RangeKernel<PixelLossParams> pixel_loss_sum;                          // one unit
  RangeKernel<OccupancyPointsParams> occupancy_points;                  // units: points
  RangeKernel<OccupancyVisibleParams> occupancy_visible;                // units: blocks of kVisibleBlock^3 cells
  RangeKernel<OccupancyUpdateParams> occupancy_update_decay;            // units: cells
  RangeKernel<OccupancyUpdateParams> occupancy_update_raise;            // units: samples
  RangeKernel<OccupancyUpdateParams> occupancy_update_sum;              // units: chunks of kOccupancyChunk cells
  RangeKernel<OccupancyUpdateParams> occupancy_update_pack;             // units: bytes of the bits
  RangeKernel<MlpParams> mlp_pack;                                      // units: layers
  RangeKernel<MlpParams> mlp_forward;                                   // units: blocks of n_block rows
  RangeKernel<MlpParams> mlp_backward;                                  // units: partial sums
  RangeKernel<MlpParams> mlp_second;                                    // units: partial sums
  RangeKernel<MlpParams> mlp_reduce;                                    // units: output rows of all layers
  RangeKernel<MlpJetParams> mlp_jet_forward;                            // units: blocks of n_block points
  RangeKernel<MlpJetParams> mlp_jet_backward;                           // units: partial sums
  RangeKernel<HashEncodeJetParams> hash_encode_jet_forward;             // units: points
  RangeKernel<HashEncodeJetParams> hash_encode_jet_backward_points;     // units: points
  RangeKernel<HashEncodeJetParams> hash_encode_jet_backward_table;      // units: (level, shard)
  bool has_bfloat16_products;                                           // mlp_* take MlpParams::halves
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
