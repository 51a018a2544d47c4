// Pixels of a set of images, and the rays through them.
#pragma once

#include <cmath>

#include "core/macros.h"
#include "core/sample_rays_params.h"
#include "core/ray.h"

namespace hashgrid {
namespace HASHGRID_ISA {

// Random numbers of ray r are those with indices kFirstDraw + kDrawsPerRay * r and on: march_rays takes r itself.
constexpr uint32_t kFirstDraw = uint32_t{1} << 31;
constexpr uint32_t kDrawsPerRay = 5;

struct Pixel {
  int64_t view, x, y;
};

// A row of SampleRaysParams::data, by 48 random bits: 24 are too few for the pixels of a large scene.
HASHGRID_HD int64_t draw_pixel(const SampleRaysParams& p, uint32_t key, int64_t ray) {
  const uint32_t index = kFirstDraw + kDrawsPerRay * static_cast<uint32_t>(ray);
  const double low_bits = static_cast<double>(counter_uniform(key, index + 4));
  const double u = add_scaled(static_cast<double>(counter_uniform(key, index + 3)), low_bits, 5.9604644775390625e-8);
  const int64_t row = static_cast<int64_t>(u * static_cast<double>(p.n_pixels));
  return row < p.n_pixels ? row : p.n_pixels - 1;
}

// Where a row of the data is: the last view that begins at it or before it has it, as those behind begin later.
HASHGRID_HD Pixel locate_pixel(const SampleRaysParams& p, int64_t row) {
  int64_t view = 0;
  for (int64_t step = p.first_step; step > 0; step /= 2) {
    const int64_t next = view + step;
    view = p.offsets[next < p.n_views ? next : 0] <= row && next < p.n_views ? next : view;
  }
  const int64_t in_view = row - p.offsets[view], width = p.sizes[2 * view];
  const int64_t y = in_view / width;
  return {view, in_view - y * width, y};
}

// Origin and unit direction of the ray through the middle of a pixel.
HASHGRID_HD void pixel_ray(const SampleRaysParams& p, const Pixel& pixel, float* origin, float* direction) {
  float x, y;  // where the ray meets the plane at distance 1
  if (p.plane_points != nullptr) {
    const int64_t* rows = p.plane_rows + 2 * pixel.view;  // first, width
    const int64_t row = rows[0] + pixel.y * rows[1] + pixel.x;
    const float* point = p.plane_points + 2 * (row >= 0 && row < p.n_plane_points ? row : 0);
    x = point[0];
    y = point[1];
  } else {
    const float* camera = p.intrinsics + 4 * pixel.view;  // fx, fy, cx, cy
    x = (static_cast<float>(pixel.x) + 0.5f - camera[2]) / camera[0];
    y = (static_cast<float>(pixel.y) + 0.5f - camera[3]) / camera[1];
  }
  const float* c2w = p.c2w + 12 * pixel.view;  // [3, 4]
  const float scale = 1.0f / ::sqrtf(rounded_multiply(x, x) + rounded_multiply(y, y) + 1.0f);
  for (int axis = 0; axis < 3; ++axis) {
    const float* row = c2w + 4 * axis;
    direction[axis] = rounded_multiply(rounded_multiply(row[0], x) - rounded_multiply(row[1], y) - row[2], scale);
    origin[axis] = row[3];
  }
}

// Everything about ray `ray`, through row `row` of the data.
HASHGRID_HD void write_ray(const SampleRaysParams& p, uint32_t key, int64_t ray, int64_t row) {
  pixel_ray(p, locate_pixel(p, row), p.rays_o + 3 * ray, p.rays_d + 3 * ray);
  constexpr float kUnit = static_cast<float>(1.0 / 255.0);
  const uint8_t* data = p.data + row * p.n_channels;
  for (int channel = 0; channel < 4; ++channel) {
    p.rgba[4 * ray + channel] = channel < p.n_channels ? static_cast<float>(data[channel]) * kUnit : 1.0f;
  }
  const uint32_t index = kFirstDraw + kDrawsPerRay * static_cast<uint32_t>(ray);
  for (int channel = 0; channel < 3; ++channel) {
    p.noise[3 * ray + channel] = counter_uniform(key, index + static_cast<uint32_t>(channel));
  }
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
