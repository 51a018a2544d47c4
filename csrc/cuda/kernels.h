// Every launcher: fills no memory but what its params point to, allocates nothing, returns before the device is done.
// Pointers of the params are device pointers. A launch that fails throws std::runtime_error.
#pragma once

#include <cstdint>

typedef struct CUstream_st* cudaStream_t;

namespace hashgrid {

struct AdamStepList;
struct AdamStepParams;
struct CompositeParams;
struct CounterUniformParams;
struct FrequencyEncodeParams;
struct GridParams;
struct HashEncodeJetParams;
struct HashEncodeParams;
struct LineIntegralsParams;
struct MarchRaysParams;
struct MlpJetParams;
struct MlpParams;
struct OccupancyPointsParams;
struct OccupancyUpdateParams;
struct OccupancyValuesParams;
struct OccupancyVisibleParams;
struct PixelLossParams;
struct RayAabbParams;
struct RenderRaysParams;
struct SamplePositionsParams;
struct SampleRaysParams;
struct ShEncodeParams;
struct SphereTraceParams;
struct VisibleSamplesParams;
struct WindowSamplesParams;

void launch_hash_encode_forward(const HashEncodeParams& p, cudaStream_t stream);
// Adds to grad_table. With `fixed`, to that instead (see HashEncodeParams), and the result is the same in any order.
void launch_hash_encode_backward_table(const HashEncodeParams& p, cudaStream_t stream);
void launch_hash_encode_backward_positions(const HashEncodeParams& p, cudaStream_t stream);
// Fills grad_level_chunks, one chunk per block, and sums them up into grad_level_weights.
void launch_hash_encode_backward_level_weights(const HashEncodeParams& p, cudaStream_t stream);
int64_t hash_encode_level_chunks(int64_t n_points);
void launch_hash_encode_second_points(const HashEncodeParams& p, cudaStream_t stream);
void launch_hash_encode_second_table(const HashEncodeParams& p, cudaStream_t stream);

void launch_hash_encode_jet_forward(const HashEncodeJetParams& p, cudaStream_t stream);
void launch_hash_encode_jet_backward_points(const HashEncodeJetParams& p, cudaStream_t stream);
// Adds to grad_table.
void launch_hash_encode_jet_backward_table(const HashEncodeJetParams& p, cudaStream_t stream);

void launch_sh_encode_forward(const ShEncodeParams& p, cudaStream_t stream);
void launch_sh_encode_backward(const ShEncodeParams& p, cudaStream_t stream);
void launch_frequency_encode_forward(const FrequencyEncodeParams& p, cudaStream_t stream);
void launch_frequency_encode_backward(const FrequencyEncodeParams& p, cudaStream_t stream);

// Global memory to allocate before a launch, in bytes.
struct MlpWorkspace {
  int64_t packed;
  int64_t scratch;
  int64_t partials;
};
// Whether the current device has tensor cores of sm_80 or later, and the kernels were compiled for such: from code for
// an older GPU, which a newer one runs as well, they are left out.
bool has_tensor_cores();
// Chooses the kernels for the current device (`halves`: tensor cores) and the sizes of their blocks, and lays out their
// memory.
MlpWorkspace plan_mlp(MlpParams& p, bool backward, bool need_params);
void launch_mlp_forward(const MlpParams& p, cudaStream_t stream);
// Fills grad_x and grad_params, each unless it is null.
void launch_mlp_backward(const MlpParams& p, cudaStream_t stream);
// Along directions, without tensor cores; the same steps.
MlpWorkspace plan_mlp_jet(MlpJetParams& p, bool backward, bool need_params);
void launch_mlp_jet_forward(const MlpJetParams& p, cudaStream_t stream);
void launch_mlp_jet_backward(const MlpJetParams& p, cudaStream_t stream);
// Whether a grid and the network behind it have a kernel in common: 2 or 3 dimensions, an even number of features, fp32
// positions, 16-bit factors, a table of fp32 or their type, layers up to 128 wide, tensor cores.
bool has_hash_encode_mlp(const GridParams& grid, const MlpParams& p);
// `p` is planned by plan_mlp, here and below.
void launch_hash_encode_mlp(const GridParams& grid, const MlpParams& p, cudaStream_t stream);
// Whether two networks have kernels as one: 16-bit factors, 16 outputs of the density network, an even number of ray
// features, layers up to 64 wide, tensor cores.
bool has_radiance_mlp(const MlpParams& p);
void launch_radiance_mlp_forward(const MlpParams& p, cudaStream_t stream);
// As launch_mlp_backward.
void launch_radiance_mlp_backward(const MlpParams& p, cudaStream_t stream);
// Whether they and a grid have one: as for one network, with 3 dimensions.
bool has_radiance_field(const GridParams& grid, const MlpParams& p);
void launch_radiance_field(const GridParams& grid, const MlpParams& p, cudaStream_t stream);
// Whether there is a kernel for rays through such a field: three colours.
bool has_render_rays(const GridParams& grid, const MlpParams& networks);
// Fills colors, opacities, depths and n_evaluated.
void launch_render_rays(const GridParams& grid, const MlpParams& networks, const RenderRaysParams& p,
                        cudaStream_t stream);
// Whether there is a kernel for the density of cells: as for `hash_encode_mlp`, with 3 dimensions, layers up to 64
// wide.
bool has_occupancy_values(const GridParams& grid, const MlpParams& network);
void launch_occupancy_values(const GridParams& grid, const MlpParams& network, const OccupancyValuesParams& p,
                             cudaStream_t stream);
void launch_counter_uniform(const CounterUniformParams& p, cudaStream_t stream);
void launch_sample_positions(const SamplePositionsParams& p, cudaStream_t stream);
void launch_sample_rays(const SampleRaysParams& p, cudaStream_t stream);
void launch_pixel_loss(const PixelLossParams& p, cudaStream_t stream);
void launch_ray_aabb(const RayAabbParams& p, cudaStream_t stream);
void launch_sphere_trace(const SphereTraceParams& p, cudaStream_t stream);
// Finds the distances of bricks, where they fit into the grid.
void launch_march_bricks(const MarchRaysParams& p, cudaStream_t stream);
// Fills packed_info; the number of samples is then in `scan`, behind the sums of the blocks.
void launch_march_rays_count(const MarchRaysParams& p, cudaStream_t stream);
void launch_march_rays_write(const MarchRaysParams& p, cudaStream_t stream);
void launch_composite_forward(const CompositeParams& p, cudaStream_t stream);
void launch_composite_backward(const CompositeParams& p, cudaStream_t stream);
void launch_line_integrals_forward(const LineIntegralsParams& p, cudaStream_t stream);
// Fills grad_values and grad_steps, each unless it is null.
void launch_line_integrals_backward(const LineIntegralsParams& p, cudaStream_t stream);
// Fills kept_info; the number of samples kept is then in `scan`, and behind it a fault of packed_info.
void launch_visible_samples_count(const VisibleSamplesParams& p, cudaStream_t stream);
void launch_visible_samples_write(const VisibleSamplesParams& p, cudaStream_t stream);
void launch_window_samples_count(const WindowSamplesParams& p, cudaStream_t stream);
void launch_window_samples_write(const WindowSamplesParams& p, cudaStream_t stream);
// For parameters with `skip_zero`, and for those without.
void launch_adam_step_rows(const AdamStepParams& p, cudaStream_t stream);
void launch_adam_step_list(const AdamStepList& list, cudaStream_t stream);
void launch_occupancy_points(const OccupancyPointsParams& p, cudaStream_t stream);
void launch_occupancy_visible(const OccupancyVisibleParams& p, cudaStream_t stream);
void launch_occupancy_update(const OccupancyUpdateParams& p, cudaStream_t stream);

}  // namespace hashgrid
