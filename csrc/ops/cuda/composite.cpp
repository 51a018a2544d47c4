// composite on CUDA: checks, allocation and launch. The kernels check that the rays lie back to back: an
// error would have to wait for them, so that NaN shows it instead.
#include "ops/composite.h"
#include "ops/cuda/device.h"

namespace hashgrid {
namespace {

CompositeParams make_params(const DeviceScope& device, const Tensor& sigmas, const Tensor& features,
                            const Tensor& t_starts, const Tensor& t_ends, const Tensor& packed_info,
                            double early_stop_eps, bool are_alphas) {
  device.check(features, "features");
  device.check(t_starts, "t_starts");
  device.check(t_ends, "t_ends");
  device.check(packed_info, "packed_info");
  return make_composite_params(sigmas, features, t_starts, t_ends, packed_info, early_stop_eps, are_alphas);
}

void check_gradients(const DeviceScope& device, const std::optional<Tensor>& grad_ray_features,
                     const std::optional<Tensor>& grad_opacities, const std::optional<Tensor>& grad_depths,
                     const std::optional<Tensor>& grad_weights, const std::optional<Tensor>& grad_distortion,
                     const std::optional<Tensor>& grad_transmittances) {
  device.check(grad_ray_features, "grad_ray_features");
  device.check(grad_opacities, "grad_opacities");
  device.check(grad_depths, "grad_depths");
  device.check(grad_weights, "grad_weights");
  device.check(grad_distortion, "grad_distortion");
  device.check(grad_transmittances, "grad_transmittances");
}

CompositeOutputs run_forward(const DeviceScope& device, CompositeParams* p, const Tensor& like,
                             bool need_transmittances) {
  const CompositeOutputs outputs = allocate_outputs(like, p, true, need_transmittances);
  launch_composite_forward(*p, device.stream());
  return outputs;
}

// Torch's allocator hands the memory of `saved` to later work of the same stream only.
std::tuple<Tensor, Tensor> run_backward(const DeviceScope& device, CompositeParams* p, const Tensor& like) {
  const std::tuple<Tensor, Tensor> gradients = allocate_gradients(like, p, true);
  Tensor saved = empty_like_dtype(like, {p->second_order ? 4 : 2, p->n_samples});
  p->saved = saved.mutable_data_ptr();
  launch_composite_backward(*p, device.stream());
  return gradients;
}

CompositeOutputs composite_cuda(const Tensor& sigmas, const Tensor& features, const Tensor& t_starts,
                                const Tensor& t_ends, const Tensor& packed_info, double early_stop_eps, bool are_alphas,
                                bool need_transmittances) {
  const DeviceScope device(sigmas);
  CompositeParams p = make_params(device, sigmas, features, t_starts, t_ends, packed_info, early_stop_eps, are_alphas);
  return run_forward(device, &p, sigmas, need_transmittances);
}

std::tuple<Tensor, Tensor> composite_backward_cuda(
    const std::optional<Tensor>& grad_ray_features, const std::optional<Tensor>& grad_opacities,
    const std::optional<Tensor>& grad_depths, const std::optional<Tensor>& grad_weights,
    const std::optional<Tensor>& grad_distortion, const std::optional<Tensor>& grad_transmittances,
    const Tensor& sigmas, const Tensor& features, const Tensor& t_starts, const Tensor& t_ends,
    const Tensor& packed_info, double early_stop_eps, bool are_alphas) {
  const DeviceScope device(sigmas);
  check_gradients(device, grad_ray_features, grad_opacities, grad_depths, grad_weights, grad_distortion,
                  grad_transmittances);
  CompositeParams p = make_params(device, sigmas, features, t_starts, t_ends, packed_info, early_stop_eps, are_alphas);
  set_gradients(grad_ray_features, grad_opacities, grad_depths, grad_weights, grad_distortion, grad_transmittances,
                sigmas, &p);
  return run_backward(device, &p, sigmas);
}

// As on the CPU: derivatives along the cotangents of (grad_sigmas, grad_features).
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> composite_backward_backward_cuda(
    const std::optional<Tensor>& grad_grad_sigmas, const std::optional<Tensor>& grad_grad_features,
    const std::optional<Tensor>& grad_ray_features, const std::optional<Tensor>& grad_opacities,
    const std::optional<Tensor>& grad_depths, const std::optional<Tensor>& grad_weights,
    const std::optional<Tensor>& grad_distortion, const std::optional<Tensor>& grad_transmittances,
    const Tensor& sigmas, const Tensor& features, const Tensor& t_starts, const Tensor& t_ends,
    const Tensor& packed_info, double early_stop_eps, bool are_alphas) {
  const DeviceScope device(sigmas);
  device.check(grad_grad_sigmas, "grad_grad_sigmas");
  device.check(grad_grad_features, "grad_grad_features");
  check_gradients(device, grad_ray_features, grad_opacities, grad_depths, grad_weights, grad_distortion,
                  grad_transmittances);
  CompositeParams p = make_params(device, sigmas, features, t_starts, t_ends, packed_info, early_stop_eps, are_alphas);
  set_gradients(grad_ray_features, grad_opacities, grad_depths, grad_weights, grad_distortion, grad_transmittances,
                sigmas, &p);
  set_tangents(grad_grad_sigmas, grad_grad_features, sigmas, &p);
  return std::tuple_cat(run_forward(device, &p, sigmas, p.grad_transmittances != nullptr),
                        run_backward(device, &p, sigmas));
}

}  // namespace

HASHGRID_CUDA_LIBRARY(m) {
  m.impl("composite", TORCH_BOX(&composite_cuda));
  m.impl("composite_backward", TORCH_BOX(&composite_backward_cuda));
  m.impl("composite_backward_backward", TORCH_BOX(&composite_backward_backward_cuda));
}

}  // namespace hashgrid
