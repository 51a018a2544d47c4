// adam_step on CUDA: checks, allocation and launch. A learning rate in host memory is read now, one on the device by
// the kernel, so that a captured graph follows it.
#include "ops/adam_step.h"
#include "ops/cuda/device.h"

namespace hashgrid {
namespace {

// Memory for the rates that the elements of `n` parameters share.
Tensor allocate_rates(const Tensor& like, int64_t n) { return empty(like, {2 * n}, ScalarType::Double); }

void read_rate(const DeviceScope& device, const Tensor& lr, AdamStepParams& p) {
  if (device.holds(lr)) return;
  p.lr = p.lr_dtype == DType::kFloat64 ? *static_cast<const double*>(p.lr_tensor)
                                       : *static_cast<const float*>(p.lr_tensor);
  p.lr_tensor = nullptr;
}

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
  device.check(shadow, "half_copy");
  if (!lr.is_cpu()) device.check(lr, "lr");
  AdamStepParams p = make_adam_step_params(param, grad, exp_avg, exp_avg_sq, steps, lr, beta1, beta2, eps, weight_decay,
                                           skip_zero, ema, ema_last, ema_decay, global_step, shadow, zero_grad);
  read_rate(device, lr, p);
  if (skip_zero) return launch_adam_step_rows(p, device.stream());
  const Tensor rates = allocate_rates(param, 1);
  p.shared_rates = static_cast<double*>(rates.mutable_data_ptr());
  launch_adam_step_list({1, {p}}, device.stream());
}

void adam_step_foreach_cuda(const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
                            const std::vector<Tensor>& exp_avgs, const std::vector<Tensor>& exp_avg_sqs,
                            const std::vector<Tensor>& steps, const Tensor& lr, double beta1, double beta2, double eps,
                            double weight_decay, const std::vector<Tensor>& emas, const std::vector<Tensor>& ema_lasts,
                            double ema_decay, const std::optional<Tensor>& global_step, bool zero_grad) {
  if (params.empty()) return;
  const DeviceScope device(params[0]);
  const AdamLists lists = {params, grads, exp_avgs, exp_avg_sqs, steps, emas, ema_lasts};
  lists.check();
  for (const auto& [list, name] : {std::pair(&params, "params"),
                                   {&grads, "grads"},
                                   {&exp_avgs, "exp_avgs"},
                                   {&exp_avg_sqs, "exp_avg_sqs"},
                                   {&steps, "steps"},
                                   {&emas, "emas"},
                                   {&ema_lasts, "ema_lasts"}}) {
    device.check(*list, name);
  }
  device.check(global_step, "global_step");
  if (!lr.is_cpu()) device.check(lr, "lr");
  const Tensor rates = allocate_rates(params[0], static_cast<int64_t>(params.size()));
  AdamStepList all = {};
  for (const size_t n = params.size(); all.n < static_cast<int32_t>(n); ++all.n) {
    AdamStepParams& p = all.of[all.n];
    p = lists.params_of(all.n, lr, beta1, beta2, eps, weight_decay, ema_decay, global_step, zero_grad);
    p.shared_rates = static_cast<double*>(rates.mutable_data_ptr()) + 2 * all.n;
    read_rate(device, lr, p);
  }
  launch_adam_step_list(all, device.stream());
}

}  // namespace

HASHGRID_CUDA_LIBRARY(m) {
  m.impl("adam_step", TORCH_BOX(&adam_step_cuda));
  m.impl("adam_step_foreach", TORCH_BOX(&adam_step_foreach_cuda));
}

}  // namespace hashgrid
