// What the kernels of composite take.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace hashgrid {

// One struct for the values and the gradients, and for their derivatives along (tangent_sigmas, tangent_features):
// with `second_order` every output receives its derivative instead.
struct CompositeParams {
  int64_t n_rays;
  int64_t n_samples;
  int64_t n_features;
  double early_stop_eps;
  DType dtype;  // of every array of reals: kFloat32 or kFloat64
  bool second_order;
  bool are_alphas;               // `sigmas`, their tangents and gradients are of alphas
  const void* sigmas;            // [n_samples]
  const void* features;          // [n_samples, n_features]
  const void* t_starts;          // [n_samples]
  const void* t_ends;            // [n_samples]
  const int64_t* packed_info;    // [n_rays, 2] first sample, number of samples; rays lie back to back
  const void* tangent_sigmas;    // [n_samples] or null: zero
  const void* tangent_features;  // [n_samples, n_features] or null: zero

  void* ray_features;    // [n_rays, n_features]
  void* opacities;       // [n_rays]
  void* depths;          // [n_rays]
  void* weights;         // [n_samples]
  void* distortion;      // [n_rays]
  void* transmittances;  // [n_samples] or null

  const void* grad_ray_features;  // as the outputs, each null: zero
  const void* grad_opacities;
  const void* grad_depths;
  const void* grad_weights;
  const void* grad_distortion;
  const void* grad_transmittances;
  void* grad_sigmas;    // [n_samples]
  void* grad_features;  // [n_samples, n_features]

  // Set per thread.
  void* scratch;             // [kCompositeRows, scratch_capacity], twice that with second_order
  int64_t scratch_capacity;  // at least the longest ray, and a vector of padding

  void* saved;  // CUDA, backward: [2, n_samples] transmittance and spread, twice that with second_order
};

}  // namespace hashgrid
