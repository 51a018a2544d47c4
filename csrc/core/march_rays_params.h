// What the kernels of march_rays take.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/scan_params.h"

namespace hashgrid {

constexpr int kMaxCascades = 16;
constexpr int kMarchBrick = 4;        // cells along the side of a brick
constexpr int kMaxBrickDistance = 3;  // what is farther away counts as this far

struct MarchRaysParams {
  int64_t n_rays;
  int64_t max_samples_per_ray;
  double step_size, cone_angle, near, far;
  int32_t resolution[3];  // cells per axis
  int32_t n_cascades;
  DType dtype;             // of rays, aabb and distances: kFloat32 or kFloat64
  const int64_t* counter;  // [2] seed and step of the shift of each ray's samples, or null: none
  const void* rays_o;      // [n_rays, 3]
  const void* rays_d;      // [n_rays, 3]
  const void* limits;      // [n_rays, 2] near and far of each ray, or null: those above
  const void* aabb;        // [6], box of cascade 0
  const uint8_t* bits;     // cell g is bit g & 7 of byte g >> 3; on the CPU aligned and padded to words of 4 bytes
  uint8_t* bricks;         // [n_cascades, resolution / kMarchBrick] or null, see core/ray.h; on the CPU padded likewise
  uint8_t* brick_copies;   // workspace: behind the bricks, as much; on the CPU also four rows of them per cascade

  void* t_begin;  // [n_rays] distance of the first step, jitter included
  void* t_stop;   // [n_rays] no step has its middle behind this; inf where a ray has no samples

  // Set per thread: where the next samples go, ray after ray in no particular order.
  void* samples;       // receives t_start of each sample
  void* lane_samples;  // [kMarchGroups, kMaxLanes, lane_capacity] samples of the rays under way
  int64_t lane_capacity;

  const void** ray_samples;  // [n_rays] the samples of each ray within some `samples`
  int64_t* packed_info;      // [n_rays, 2] first sample, number of samples
  void* t_starts;            // [n_samples]
  void* t_ends;              // [n_samples]
  int64_t* ray_indices;      // [n_samples]

  // A result of fixed size: rays are taken in order as long as their samples fit.
  bool fixed;
  int64_t n_samples;             // size of the result
  const int64_t* n_rays_in_use;  // [1] rays behind these have no samples; null: all have
  int64_t* totals;               // [2] samples of all rays, rays whose samples are in the result

  int64_t* scan;  // CUDA: workspace of the sum over rays, see kScanChunk
  int64_t* cut;   // CUDA, fixed: [1] where the samples in the result end
};

}  // namespace hashgrid
