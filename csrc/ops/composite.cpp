// composite: checks, allocation and launch.
#include <algorithm>
#include <cstring>
#include <memory>

#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "ops/composite.h"

namespace hashgrid {
namespace {

constexpr int64_t kRayGrain = 64;

// Each chunk of rays gets scratch rows for the samples of its largest group. Returns the number of samples of all rays.
int64_t run(RangeKernel<CompositeParams> kernel, const CompositeParams& params) {
  const PackedRays rays = check_back_to_back(params.packed_info, params.n_rays, params.n_samples);
  const int64_t capacity = std::max(kCompositeGroup, rays.longest) + kMaxLanes;
  const int64_t bytes = kCompositeRows * capacity * element_bytes(params.dtype) * (params.second_order ? 2 : 1);
  parallel_units(params.n_rays, kRayGrain, [&](int64_t begin, int64_t end) {
    std::unique_ptr<char[]> scratch(new char[bytes]);
    CompositeParams p = params;
    p.scratch = scratch.get();
    p.scratch_capacity = capacity;
    kernel(p, begin, end);
  });
  return rays.n_samples;
}

// Zeros for the samples that belong to no ray: those of `values` [n_samples, width] from number `begin` on.
void clear_from(void* values, const CompositeParams& p, int64_t begin, int64_t width) {
  const int64_t row_bytes = width * element_bytes(p.dtype);
  std::memset(static_cast<char*>(values) + begin * row_bytes, 0, (p.n_samples - begin) * row_bytes);
}

CompositeOutputs run_forward(CompositeParams* p, const Tensor& like, bool need_transmittances) {
  const CompositeOutputs outputs = allocate_outputs(like, p, false, need_transmittances);
  const int64_t n_samples = run(kernels().composite_forward, *p);
  clear_from(p->weights, *p, n_samples, 1);
  if (need_transmittances) clear_from(p->transmittances, *p, n_samples, 1);
  return outputs;
}

std::tuple<Tensor, Tensor> run_backward(CompositeParams* p, const Tensor& like) {
  const std::tuple<Tensor, Tensor> gradients = allocate_gradients(like, p, false);
  const int64_t n_samples = run(kernels().composite_backward, *p);
  clear_from(p->grad_sigmas, *p, n_samples, 1);
  clear_from(p->grad_features, *p, n_samples, p->n_features);
  return gradients;
}

CompositeOutputs composite_cpu(const Tensor& sigmas, const Tensor& features, const Tensor& t_starts,
                               const Tensor& t_ends, const Tensor& packed_info, double early_stop_eps, bool are_alphas,
                               bool need_transmittances) {
  CompositeParams p =
      make_composite_params(sigmas, features, t_starts, t_ends, packed_info, early_stop_eps, are_alphas);
  return run_forward(&p, sigmas, need_transmittances);
}

std::tuple<Tensor, Tensor> composite_backward_cpu(
    const std::optional<Tensor>& grad_ray_features, const std::optional<Tensor>& grad_opacities,
    const std::optional<Tensor>& grad_depths, const std::optional<Tensor>& grad_weights,
    const std::optional<Tensor>& grad_distortion, const std::optional<Tensor>& grad_transmittances,
    const Tensor& sigmas, const Tensor& features, const Tensor& t_starts, const Tensor& t_ends,
    const Tensor& packed_info, double early_stop_eps, bool are_alphas) {
  CompositeParams p =
      make_composite_params(sigmas, features, t_starts, t_ends, packed_info, early_stop_eps, are_alphas);
  set_gradients(grad_ray_features, grad_opacities, grad_depths, grad_weights, grad_distortion, grad_transmittances,
                sigmas, &p);
  return run_backward(&p, sigmas);
}

// Cotangents of (grad_sigmas, grad_features), each optional, pulled back to the six gradients and to (sigmas,
// features). The Jacobian of a gradient is symmetric: both are derivatives along the cotangents.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> composite_backward_backward_cpu(
    const std::optional<Tensor>& grad_grad_sigmas, const std::optional<Tensor>& grad_grad_features,
    const std::optional<Tensor>& grad_ray_features, const std::optional<Tensor>& grad_opacities,
    const std::optional<Tensor>& grad_depths, const std::optional<Tensor>& grad_weights,
    const std::optional<Tensor>& grad_distortion, const std::optional<Tensor>& grad_transmittances,
    const Tensor& sigmas, const Tensor& features, const Tensor& t_starts, const Tensor& t_ends,
    const Tensor& packed_info, double early_stop_eps, bool are_alphas) {
  CompositeParams p =
      make_composite_params(sigmas, features, t_starts, t_ends, packed_info, early_stop_eps, are_alphas);
  set_gradients(grad_ray_features, grad_opacities, grad_depths, grad_weights, grad_distortion, grad_transmittances,
                sigmas, &p);
  set_tangents(grad_grad_sigmas, grad_grad_features, sigmas, &p);
  return std::tuple_cat(run_forward(&p, sigmas, p.grad_transmittances != nullptr), run_backward(&p, sigmas));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) {
  m.impl("composite", TORCH_BOX(&composite_cpu));
  m.impl("composite_backward", TORCH_BOX(&composite_backward_cpu));
  m.impl("composite_backward_backward", TORCH_BOX(&composite_backward_backward_cpu));
}

}  // namespace hashgrid
