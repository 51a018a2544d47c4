// What the kernels of sample_rays take.
#pragma once

#include <cstdint>

namespace hashgrid {

// Views of a scene, row by row in `data`, each with a camera.
struct SampleRaysParams {
  int64_t n_rays;
  int64_t n_pixels;
  int64_t n_views;
  int64_t first_step;       // of the search for a pixel's view: the largest power of two below n_views, or 0
  int32_t n_channels;       // 3 or 4
  const int64_t* counter;   // [2] seed, step
  const uint8_t* data;      // [n_pixels, n_channels]
  const int64_t* offsets;   // [n_views + 1], first pixel of each view
  const int64_t* sizes;     // [n_views, 2] width, height
  const float* c2w;         // [n_views, 3, 4]
  const float* intrinsics;  // [n_views, 4] fx, fy, cx, cy
  int64_t n_plane_points;
  const float* plane_points;  // [n_plane_points, 2] where rays meet the plane at distance 1, or null: by the intrinsics
  const int64_t* plane_rows;  // [n_views, 2] first point of each view, points per row of pixels
  float* rays_o;              // [n_rays, 3]
  float* rays_d;              // [n_rays, 3]
  float* rgba;                // [n_rays, 4]
  float* noise;               // [n_rays, 3]
};

}  // namespace hashgrid
