// composite: checks, allocation and launch.
#include <algorithm>
#include <memory>

#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "ops/checks.h"
#include "ops/rays.h"

namespace hashgrid {
namespace {

constexpr int64_t kRayGrain = 64;

struct Composite {
  CompositeParams params = {};
  int64_t n_samples = 0;
  int64_t longest = 0;  // most samples of a ray
};

Composite make_params(const Tensor& sigmas, const Tensor& features, const Tensor& t_starts, const Tensor& t_ends,
                      const Tensor& packed_info, double early_stop_eps) {
  STD_TORCH_CHECK(sigmas.dim() == 1, "`sigmas` must have shape [S], got ", shape_of(sigmas));
  const int64_t n_samples = sigmas.size(0);
  STD_TORCH_CHECK(features.dim() == 2 && features.size(0) == n_samples, "`features` must have shape [", n_samples,
                  ", C], got ", shape_of(features));
  check_shape(t_starts, "t_starts", {n_samples});
  check_shape(t_ends, "t_ends", {n_samples});
  Composite c;
  CompositeParams& p = c.params;
  p.dtype = real_dtype_of(sigmas, "sigmas");
  check_dtype(features, "features", sigmas.scalar_type());
  check_dtype(t_starts, "t_starts", sigmas.scalar_type());
  check_dtype(t_ends, "t_ends", sigmas.scalar_type());
  check_contiguous(sigmas, "sigmas");
  check_contiguous(features, "features");
  check_contiguous(t_starts, "t_starts");
  check_contiguous(t_ends, "t_ends");
  p.n_rays = packed_info.size(0);
  p.n_features = features.size(1);
  p.early_stop_eps = early_stop_eps;
  p.sigmas = sigmas.const_data_ptr();
  p.features = features.const_data_ptr();
  p.t_starts = t_starts.const_data_ptr();
  p.t_ends = t_ends.const_data_ptr();
  p.packed_info = static_cast<const int64_t*>(packed_info.const_data_ptr());
  c.n_samples = n_samples;
  c.longest = check_packed_info(packed_info, n_samples);
  return c;
}

// Each chunk of rays gets scratch rows for the samples of its largest group.
void run(RangeKernel<CompositeParams> kernel, const Composite& c) {
  const int64_t capacity = std::max(kCompositeGroup, c.longest) + kMaxLanes;
  const int64_t bytes = kCompositeRows * capacity * element_bytes(c.params.dtype) * (c.params.second_order ? 2 : 1);
  parallel_units(c.params.n_rays, kRayGrain, [&](int64_t begin, int64_t end) {
    std::unique_ptr<char[]> scratch(new char[bytes]);
    CompositeParams p = c.params;
    p.scratch = scratch.get();
    p.scratch_capacity = capacity;
    kernel(p, begin, end);
  });
}

const void* optional_input(const std::optional<Tensor>& tensor, const char* name, const std::vector<int64_t>& shape,
                           const Tensor& like) {
  if (!tensor.has_value()) return nullptr;
  check_shape(*tensor, name, shape);
  check_dtype(*tensor, name, like.scalar_type());
  check_contiguous(*tensor, name);
  return tensor->const_data_ptr();
}

void set_gradients(const std::optional<Tensor>& grad_ray_features, const std::optional<Tensor>& grad_opacities,
                   const std::optional<Tensor>& grad_depths, const std::optional<Tensor>& grad_weights,
                   const std::optional<Tensor>& grad_distortion, const Tensor& like, Composite* c) {
  CompositeParams& p = c->params;
  p.grad_ray_features = optional_input(grad_ray_features, "grad_ray_features", {p.n_rays, p.n_features}, like);
  p.grad_opacities = optional_input(grad_opacities, "grad_opacities", {p.n_rays}, like);
  p.grad_depths = optional_input(grad_depths, "grad_depths", {p.n_rays}, like);
  p.grad_weights = optional_input(grad_weights, "grad_weights", {c->n_samples}, like);
  p.grad_distortion = optional_input(grad_distortion, "grad_distortion", {p.n_rays}, like);
}

typedef std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> Outputs;

Outputs run_forward(Composite* c, const Tensor& like) {
  CompositeParams& p = c->params;
  Tensor ray_features = empty_like_dtype(like, {p.n_rays, p.n_features});
  Tensor opacities = empty_like_dtype(like, {p.n_rays});
  Tensor depths = empty_like_dtype(like, {p.n_rays});
  Tensor weights = empty_like_dtype(like, {c->n_samples});
  Tensor distortion = empty_like_dtype(like, {p.n_rays});
  p.ray_features = ray_features.mutable_data_ptr();
  p.opacities = opacities.mutable_data_ptr();
  p.depths = depths.mutable_data_ptr();
  p.weights = weights.mutable_data_ptr();
  p.distortion = distortion.mutable_data_ptr();
  run(kernels().composite_forward, *c);
  return {ray_features, opacities, depths, weights, distortion};
}

std::tuple<Tensor, Tensor> run_backward(Composite* c, const Tensor& like) {
  CompositeParams& p = c->params;
  Tensor grad_sigmas = empty_like_dtype(like, {c->n_samples});
  Tensor grad_features = empty_like_dtype(like, {c->n_samples, p.n_features});
  p.grad_sigmas = grad_sigmas.mutable_data_ptr();
  p.grad_features = grad_features.mutable_data_ptr();
  run(kernels().composite_backward, *c);
  return {grad_sigmas, grad_features};
}

Outputs composite_cpu(const Tensor& sigmas, const Tensor& features, const Tensor& t_starts, const Tensor& t_ends,
                      const Tensor& packed_info, double early_stop_eps) {
  Composite c = make_params(sigmas, features, t_starts, t_ends, packed_info, early_stop_eps);
  return run_forward(&c, sigmas);
}

std::tuple<Tensor, Tensor> composite_backward_cpu(
    const std::optional<Tensor>& grad_ray_features, const std::optional<Tensor>& grad_opacities,
    const std::optional<Tensor>& grad_depths, const std::optional<Tensor>& grad_weights,
    const std::optional<Tensor>& grad_distortion, const Tensor& sigmas, const Tensor& features, const Tensor& t_starts,
    const Tensor& t_ends, const Tensor& packed_info, double early_stop_eps) {
  Composite c = make_params(sigmas, features, t_starts, t_ends, packed_info, early_stop_eps);
  set_gradients(grad_ray_features, grad_opacities, grad_depths, grad_weights, grad_distortion, sigmas, &c);
  return run_backward(&c, sigmas);
}

// Cotangents of (grad_sigmas, grad_features), each optional, pulled back to the five gradients and to (sigmas,
// features). The Jacobian of a gradient is symmetric: both are derivatives along the cotangents.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> composite_backward_backward_cpu(
    const std::optional<Tensor>& grad_grad_sigmas, const std::optional<Tensor>& grad_grad_features,
    const std::optional<Tensor>& grad_ray_features, const std::optional<Tensor>& grad_opacities,
    const std::optional<Tensor>& grad_depths, const std::optional<Tensor>& grad_weights,
    const std::optional<Tensor>& grad_distortion, const Tensor& sigmas, const Tensor& features, const Tensor& t_starts,
    const Tensor& t_ends, const Tensor& packed_info, double early_stop_eps) {
  Composite c = make_params(sigmas, features, t_starts, t_ends, packed_info, early_stop_eps);
  set_gradients(grad_ray_features, grad_opacities, grad_depths, grad_weights, grad_distortion, sigmas, &c);
  c.params.second_order = true;
  c.params.tangent_sigmas = optional_input(grad_grad_sigmas, "grad_grad_sigmas", {c.n_samples}, sigmas);
  c.params.tangent_features =
      optional_input(grad_grad_features, "grad_grad_features", {c.n_samples, c.params.n_features}, sigmas);
  return std::tuple_cat(run_forward(&c, sigmas), run_backward(&c, sigmas));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) {
  m.impl("composite", TORCH_BOX(&composite_cpu));
  m.impl("composite_backward", TORCH_BOX(&composite_backward_cpu));
  m.impl("composite_backward_backward", TORCH_BOX(&composite_backward_backward_cpu));
}

}  // namespace hashgrid
