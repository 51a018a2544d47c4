// adam_step on CUDA: checks, allocation and launch. A learning rate in host memory is read now, one on the device by
// the kernel, so that a captured graph follows it.
#include "ops/adam_step.h"
#include "ops/cuda/device.h"

namespace hashgrid {
namespace {

void adam_step_cuda(const Tensor& param, const Tensor& grad, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                    const Tensor& steps, const Tensor& lr, double beta1, double beta2, double eps, double weight_decay,
                    bool skip_zero, const std::optional<Tensor>& ema, const std::optional<Tensor>& ema_last,
                    double ema_decay, const std::optional<Tensor>& global_step, const std::optional<Tensor>& shadow,
                    bool zero_grad) {
  const DeviceScope device(param);
  device.check(grad, "grad");
  device.check(exp_avg, "exp_avg");
  device.check(exp_avg_sq, "exp_avg_sq");
  device.check(steps, "steps");
  device.check(ema, "ema");
  device.check(ema_last, "ema_last");
  device.check(global_step, "global_step");
  device.check(shadow, "shadow");
  if (!lr.is_cpu()) device.check(lr, "lr");
  AdamStepParams p = make_adam_step_params(param, grad, exp_avg, exp_avg_sq, steps, lr, beta1, beta2, eps, weight_decay,
                                           skip_zero, ema, ema_last, ema_decay, global_step, shadow, zero_grad);
  if (!device.holds(lr)) {
    p.lr = p.lr_dtype == DType::kFloat64 ? *static_cast<const double*>(p.lr_tensor)
                                         : *static_cast<const float*>(p.lr_tensor);
    p.lr_tensor = nullptr;
  }
  std::optional<Tensor> rates;
  if (!skip_zero) {
    rates = torch::stable::new_empty(param, {2}, ScalarType::Double);
    p.shared_rates = static_cast<double*>(rates->mutable_data_ptr());
  }
  launch_adam_step(p, device.stream());
}

}  // namespace

HASHGRID_CUDA_LIBRARY(m) { m.impl("adam_step", TORCH_BOX(&adam_step_cuda)); }

}  // namespace hashgrid
