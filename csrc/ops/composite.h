// composite: what the CPU and the CUDA ops check, allocate and fill in alike.
#pragma once

#include "core/composite_params.h"
#include "ops/rays.h"

namespace hashgrid {

// That the rays lie back to back is left to the caller.
inline CompositeParams make_composite_params(const Tensor& sigmas, const Tensor& features, const Tensor& t_starts,
                                             const Tensor& t_ends, const Tensor& packed_info, double early_stop_eps,
                                             bool are_alphas) {
  const char* name = are_alphas ? "alphas" : "sigmas";
  STD_TORCH_CHECK(sigmas.dim() == 1, "`", name, "` must have shape [S], got ", shape_of(sigmas));
  CompositeParams p = {};
  p.are_alphas = are_alphas;
  p.n_samples = sigmas.size(0);
  STD_TORCH_CHECK(features.dim() == 2 && features.size(0) == p.n_samples, "`features` must have shape [", p.n_samples,
                  ", C], got ", shape_of(features));
  check_shape(t_starts, "t_starts", {p.n_samples});
  check_shape(t_ends, "t_ends", {p.n_samples});
  p.dtype = real_dtype_of(sigmas, name);
  check_dtype(features, "features", sigmas.scalar_type());
  check_dtype(t_starts, "t_starts", sigmas.scalar_type());
  check_dtype(t_ends, "t_ends", sigmas.scalar_type());
  check_contiguous(sigmas, name);
  check_contiguous(features, "features");
  check_contiguous(t_starts, "t_starts");
  check_contiguous(t_ends, "t_ends");
  p.packed_info = packed_info_data(packed_info);
  p.n_rays = packed_info.size(0);
  p.n_features = features.size(1);
  p.early_stop_eps = early_stop_eps;
  p.sigmas = sigmas.const_data_ptr();
  p.features = features.const_data_ptr();
  p.t_starts = t_starts.const_data_ptr();
  p.t_ends = t_ends.const_data_ptr();
  return p;
}

inline const void* optional_input(const std::optional<Tensor>& tensor, const char* name,
                                  const std::vector<int64_t>& shape, const Tensor& like) {
  if (!tensor.has_value()) return nullptr;
  check_shape(*tensor, name, shape);
  check_dtype(*tensor, name, like.scalar_type());
  check_contiguous(*tensor, name);
  return tensor->const_data_ptr();
}

inline void set_gradients(const std::optional<Tensor>& grad_ray_features, const std::optional<Tensor>& grad_opacities,
                          const std::optional<Tensor>& grad_depths, const std::optional<Tensor>& grad_weights,
                          const std::optional<Tensor>& grad_distortion,
                          const std::optional<Tensor>& grad_transmittances, const Tensor& like, CompositeParams* p) {
  p->grad_ray_features = optional_input(grad_ray_features, "grad_ray_features", {p->n_rays, p->n_features}, like);
  p->grad_opacities = optional_input(grad_opacities, "grad_opacities", {p->n_rays}, like);
  p->grad_depths = optional_input(grad_depths, "grad_depths", {p->n_rays}, like);
  p->grad_weights = optional_input(grad_weights, "grad_weights", {p->n_samples}, like);
  p->grad_distortion = optional_input(grad_distortion, "grad_distortion", {p->n_rays}, like);
  if (grad_transmittances.has_value() && grad_transmittances->numel() > 0) {  // [0] as what it is the gradient of
    p->grad_transmittances = optional_input(grad_transmittances, "grad_transmittances", {p->n_samples}, like);
  }
}

// From here on every output receives its derivative along these cotangents, each optional.
inline void set_tangents(const std::optional<Tensor>& grad_grad_sigmas, const std::optional<Tensor>& grad_grad_features,
                         const Tensor& like, CompositeParams* p) {
  p->second_order = true;
  p->tangent_sigmas = optional_input(grad_grad_sigmas, "grad_grad_sigmas", {p->n_samples}, like);
  p->tangent_features = optional_input(grad_grad_features, "grad_grad_features", {p->n_samples, p->n_features}, like);
}

// ray_features, opacities, depths, weights, distortion, transmittances
typedef std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> CompositeOutputs;

// With `cleared` what is per sample starts as zeros: samples may be hidden or belong to no ray. Transmittances that
// nobody asked for have shape [0].
inline CompositeOutputs allocate_outputs(const Tensor& like, CompositeParams* p, bool cleared,
                                         bool need_transmittances) {
  const auto per_sample = [&](int64_t n) {
    return cleared ? torch::stable::new_zeros(like, {n}) : empty_like_dtype(like, {n});
  };
  Tensor ray_features = empty_like_dtype(like, {p->n_rays, p->n_features});
  Tensor opacities = empty_like_dtype(like, {p->n_rays});
  Tensor depths = empty_like_dtype(like, {p->n_rays});
  Tensor weights = per_sample(p->n_samples);
  Tensor distortion = empty_like_dtype(like, {p->n_rays});
  p->ray_features = ray_features.mutable_data_ptr();
  p->opacities = opacities.mutable_data_ptr();
  p->depths = depths.mutable_data_ptr();
  p->weights = weights.mutable_data_ptr();
  p->distortion = distortion.mutable_data_ptr();
  Tensor transmittances = per_sample(need_transmittances ? p->n_samples : 0);
  if (need_transmittances) p->transmittances = transmittances.mutable_data_ptr();
  return {ray_features, opacities, depths, weights, distortion, transmittances};
}

// grad_sigmas, grad_features
inline std::tuple<Tensor, Tensor> allocate_gradients(const Tensor& like, CompositeParams* p, bool cleared) {
  const auto allocate = [&](std::vector<int64_t> shape) {
    return cleared ? torch::stable::new_zeros(like, shape) : empty_like_dtype(like, shape);
  };
  Tensor grad_sigmas = allocate({p->n_samples});
  Tensor grad_features = allocate({p->n_samples, p->n_features});
  p->grad_sigmas = grad_sigmas.mutable_data_ptr();
  p->grad_features = grad_features.mutable_data_ptr();
  return {grad_sigmas, grad_features};
}

}  // namespace hashgrid
