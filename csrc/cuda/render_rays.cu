// Rays through a radiance field as one kernel, without gradients: the march through the occupancy grid, the field of
// Instant-NGP (radiance_field.cu) and compositing (Müller et al. 2022, section 5.4). No sample goes through memory, and
// none behind a surface is evaluated.
//
// A lane follows a ray from sample to sample, and 32 lanes evaluate their samples together on tensor cores. Lanes whose
// rays have ended wait until there are some, and take the next rays together.
#include "cuda/hash_encode_tiles.cuh"
#include "core/render_rays_params.h"
#include "cuda/radiance_tiles.cuh"

#include "core/field_box.h"
#include "core/ray.h"
#include "core/sample_positions.h"
#include "core/volume.h"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kRenderBlocks = 3;  // of a multiprocessor, as registers allow
constexpr int kColors = 3;
// Idle lanes that are worth a search for the next rays' first samples, during which the others wait: it takes as long
// as the longest way through empty space, while evaluating 32 samples takes some 8000 instructions (docs/kernels.md).
constexpr int kIdleLanes = 8;

// ---- rays --------------------------------------------------------------------------------------------------------

// What a block knows of the grid of occupied cells and of the field's box.
struct RenderScene {
  MarchGrid<float> grid;
  FieldBox box;
};

// A ray under way. Sums as those of composite.cu, one sample after the other.
struct LaneRay {
  int64_t ray = -1;  // -1: none
  MarchState<float> march;
  int64_t n_samples;
  double thickness;  // sum sigma dt
  float transmittance;
  RaySums<double> sums;
  float color[kColors];
  float begin, end;  // the sample it is at
};

__device__ inline void begin_ray(const RenderRaysParams& p, const RenderScene& scene, int64_t ray, LaneRay* lane) {
  const RaySpan<float> span = begin_march(p.march, scene.grid, 0, ray);
  *lane = LaneRay();
  lane->ray = ray;
  lane->march = begin_steps(span.begin, span.end);
  lane->n_samples = 0;
  lane->thickness = 0.0;
  lane->transmittance = 1.0f;
  for (int c = 0; c < kColors; ++c) lane->color[c] = 0.0f;
}

// Moves on to the next sample that can be seen; false where there is none.
__device__ inline bool advance_ray(const RenderRaysParams& p, const RenderScene& scene, LaneRay* lane) {
  if (!(lane->transmittance >= p.early_stop_eps) || lane->n_samples >= p.march.max_samples_per_ray) return false;
  if (!next_sample(p.march, scene.grid, lane->ray, &lane->march, &lane->begin)) return false;
  lane->end = lane->begin + step_at(scene.grid, lane->begin);
  ++lane->n_samples;
  return true;
}

__device__ inline void write_ray(const RenderRaysParams& p, const LaneRay& lane) {
  for (int c = 0; c < kColors; ++c) p.colors[kColors * lane.ray + c] = lane.color[c];
  p.opacities[lane.ray] = static_cast<float>(lane.sums.weight);
  p.depths[lane.ray] = static_cast<float>(lane.sums.depth);
}

// Brings every lane to a sample, as long as there are rays; returns the lanes that are at one. Rays that have ended are
// written. `rays_left`, the same in all lanes: not all rays have been taken.
__device__ inline unsigned next_samples(const RenderRaysParams& p, const RenderScene& scene, LaneRay* lane,
                                        bool* rays_left) {
  bool found = false;
  for (;;) {
    if (!found && lane->ray >= 0) {
      found = advance_ray(p, scene, lane);
      if (!found) {
        write_ray(p, *lane);
        lane->ray = -1;
      }
    }
    const unsigned idle = __ballot_sync(kAllLanes, !found);
    const int n_idle = __popc(idle);
    if (!*rays_left || n_idle < kIdleLanes) return ~idle;
    unsigned long long first = 0;
    if (lane_index() == 0) {
      first = atomicAdd(reinterpret_cast<unsigned long long*>(p.next_ray), static_cast<unsigned long long>(n_idle));
    }
    first = broadcast(first, 0);
    *rays_left = first + n_idle < static_cast<unsigned long long>(p.march.n_rays);
    const int64_t ray = static_cast<int64_t>(first) + __popc(idle & ((1u << lane_index()) - 1u));
    if (!found && ray < p.march.n_rays) begin_ray(p, scene, ray, lane);
    __syncwarp();
  }
}

// ---- samples -----------------------------------------------------------------------------------------------------

// The middle of the lane's sample in the unit cube of the field's grid.
__device__ inline void locate_sample(const RenderRaysParams& p, const RenderScene& scene, const LaneRay& lane,
                                     float* position) {
  const float* rays_o = static_cast<const float*>(p.march.rays_o) + 3 * lane.ray;
  const float* rays_d = static_cast<const float*>(p.march.rays_d) + 3 * lane.ray;
  float origin[3], direction[3];
  to_unit_cube(scene.box, rays_o, origin);
  for (int axis = 0; axis < 3; ++axis) direction[axis] = rays_d[axis] * scene.box.inverse_extent[axis];
  write_middle(origin, direction, lane.begin, lane.end, position);
}

// Adds the lane's sample to its ray.
__device__ inline void add_sample(float sigma, const float* color, LaneRay* lane) {
  const float step = lane->end - lane->begin;
  const float thickness = rounded_multiply(sigma, step);
  const float alpha = -exponential_minus_one(-thickness);
  const float middle = (lane->begin + lane->end) / 2.0f;
  const float weight = composite_step(lane->transmittance, alpha, step, middle, &lane->sums);
#pragma unroll
  for (int c = 0; c < kColors; ++c) lane->color[c] += weight * color[c];
  lane->thickness += static_cast<double>(thickness);
  lane->transmittance = exponential(-static_cast<float>(lane->thickness));
}

// ---- kernel ------------------------------------------------------------------------------------------------------

// Body of render_rays_kernel, on its own so that it is left out where there are no such instructions.
template <typename Element, class Half>
__device__ inline void render_rays(const GridParams& grid, const MlpParams& networks, const RenderRaysParams& p) {
  __shared__ RenderScene scene;
  if (threadIdx.x == 0) scene = {make_march_grid<float>(p.march), make_field_box(p.field_aabb)};
  const GridLevel* levels = share_levels(grid);  // with a barrier

  LaneRay lane;
  bool rays_left = true;
  uint64_t n_evaluated = 0;
  while (const unsigned at_sample = next_samples(p, scene, &lane, &rays_left)) {
    n_evaluated += __popc(at_sample);
    float position[3] = {};
    if (lane.ray >= 0) locate_sample(p, scene, lane, position);
    __syncwarp();
    Factors<Half, kRadianceTiles, kRowTiles> factors;
    const auto point_of = [&](int row) {
      GridPoint<float, 3> point = point_of_lane(grid, position, row);
      if ((at_sample >> row & 1u) == 0) point.state = PointState::kOutside;  // no row of the table is read for it
      return point;
    };
    encode_factors<Element, Half, 3>(grid, levels, point_of, &factors);
    pass_hidden_layers<Half, kRadianceTiles, kRowTiles, true>(networks, 0, networks.n_density_layers - 1, &factors);
    float sigma;
    const int64_t any_ray = lane.ray >= 0 ? lane.ray : 0;
    const auto ray_of = [&](int row) { return value_of_lane(any_ray, row); };
    pass_to_colors(networks, ray_of, &factors, [&](const Sums<kRowTiles>& geometry) {
      sigma = activate(column_to_lanes(geometry, 0), Activation::kExp);
    });
    Sums<kRowTiles> sums;
    forward_tile(networks, networks.layers[networks.n_layers - 1], 0, factors, &sums);
    activate_sums(networks.output_activation, &sums);
    float color[kColors];
#pragma unroll
    for (int c = 0; c < kColors; ++c) color[c] = column_to_lanes(sums, c);
    if (lane.ray >= 0) add_sample(sigma, color, &lane);
    __syncwarp();
  }
  if (lane_index() == 0 && n_evaluated > 0) {
    atomicAdd(reinterpret_cast<unsigned long long*>(p.n_evaluated), static_cast<unsigned long long>(n_evaluated));
  }
}

// Warp: 32 rays at a time, one per lane, until all have been taken by the counter next_ray, which all warps add to. The
// block shares the scene and the levels, in shared memory, and packed weights in the L1 cache; the lanes of a warp
// exchange positions and results of their samples. What a ray shows depends on neither the others nor their order: its
// samples are added front to back. Thickness, opacity and depth are sums in fp64, colours in fp32. Writes colors
// [n_rays, 3], opacities and depths [n_rays]; n_evaluated is a sum of whole numbers over the warps.
template <typename Element, class Half>
__global__ void __launch_bounds__(kForwardWarps* kWarpSize, kRenderBlocks)
    render_rays_kernel(HASHGRID_PARAMS GridParams grid, HASHGRID_PARAMS MlpParams networks,
                       HASHGRID_PARAMS RenderRaysParams p) {
  if constexpr (kHasMma) render_rays<Element, Half>(grid, networks, p);
}

// As many blocks as run at a time.
inline LaunchShape render_shape(int64_t n_rays) {
  const int64_t resident = int64_t{kRenderBlocks} * device_attribute<cudaDevAttrMultiProcessorCount>();
  const int64_t wanted = divide_up(n_rays, kForwardWarps * kWarpSize);
  return {dim3(static_cast<unsigned>(wanted < resident ? wanted : resident)), dim3(kForwardWarps * kWarpSize), 0};
}

template <class Half>
void launch_render_rays_of(const GridParams& grid, const MlpParams& networks, const RenderRaysParams& p,
                           cudaStream_t stream) {
  const LaunchShape shape = render_shape(p.march.n_rays);
  if (grid.table_dtype == DType::kFloat32) {
    HASHGRID_LAUNCH_TOGETHER((render_rays_kernel<float, Half>), shape, stream, grid, networks, p);
  } else {
    HASHGRID_LAUNCH_TOGETHER((render_rays_kernel<Half, Half>), shape, stream, grid, networks, p);
  }
}

}  // namespace HASHGRID_ISA

using namespace HASHGRID_ISA;

bool has_render_rays(const GridParams& grid, const MlpParams& networks) {
  return has_radiance_field(grid, networks) && networks.layers[networks.n_layers - 1].n_out == kColors;
}

void launch_render_rays(const GridParams& grid, const MlpParams& networks, const RenderRaysParams& p,
                        cudaStream_t stream) {
  launch_pack(networks, stream);
  launch_march_bricks(p.march, stream);
  if (networks.factors == MlpFactors::kFloat16) return launch_render_rays_of<Float16>(grid, networks, p, stream);
  launch_render_rays_of<BFloat16>(grid, networks, p, stream);
}

}  // namespace hashgrid
