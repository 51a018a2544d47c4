// adam_step: checks, the tables of bias corrections, launch.
#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "ops/adam_step.h"

namespace hashgrid {
namespace {

constexpr int64_t kElementGrain = 1 << 15;  // elements per unit: 128 KB of gradient
constexpr size_t kMaxTable = size_t{1} << 22;

using Table = std::shared_ptr<const std::vector<float>>;

// sqrt(1 - beta2^t) / (1 - beta1^t) by t, up to where it is 1 in fp32; entry 0 is unused.
Table make_bias_corrections(double beta1, double beta2) {
  std::vector<float> values = {0.0f};
  for (double power1 = beta1, power2 = beta2;; power1 *= beta1, power2 *= beta2) {
    values.push_back(static_cast<float>(std::sqrt(1.0 - power2) / (1.0 - power1)));
    if (power1 < 1e-9 && power2 < 1e-9) break;
    STD_TORCH_CHECK(values.size() < kMaxTable, "`beta1` and `beta2` must be below 0.999995 with `skip_zero`, got ",
                    beta1, " and ", beta2);
  }
  return std::make_shared<const std::vector<float>>(std::move(values));
}

// decay^i by i, up to where it no longer counts beside 1.
Table make_ema_keeps(double decay) {
  std::vector<float> values;
  for (double power = 1.0; power > 1e-9; power *= decay) {
    values.push_back(static_cast<float>(power));
    STD_TORCH_CHECK(values.size() < kMaxTable, "`ema_decay` must be below 0.999995 with `skip_zero`, got ", decay);
  }
  values.push_back(0.0f);
  return std::make_shared<const std::vector<float>>(std::move(values));
}

// Training uses one pair of betas; a handful of tables is kept for programs that vary them.
template <typename Make>
Table cached(std::pair<double, double> key, Make make) {
  static std::mutex mutex;
  static std::map<std::pair<double, double>, Table> tables;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = tables.find(key);
  if (found != tables.end()) return found->second;
  if (tables.size() >= 16) tables.clear();
  return tables[key] = make();
}

void run_step(AdamStepParams p) {
  p.lr = p.lr_dtype == DType::kFloat64 ? *static_cast<const double*>(p.lr_tensor)
                                       : *static_cast<const float*>(p.lr_tensor);
  if (p.ema_last != nullptr) {
    p.global_step = *p.global_step_data;
    STD_TORCH_CHECK(p.global_step >= 1, "`global_step` must count from 1, got ", p.global_step);
  }
  Table bias_corrections, ema_keeps;
  if (p.skip_zero && p.dtype == DType::kFloat32) {
    bias_corrections = cached({p.beta1, p.beta2}, [&] { return make_bias_corrections(p.beta1, p.beta2); });
    p.bias_corrections = bias_corrections->data();
    p.n_bias_corrections = static_cast<int32_t>(bias_corrections->size());
    if (p.ema_last != nullptr) {
      ema_keeps = cached({p.ema_decay, -1.0}, [&] { return make_ema_keeps(p.ema_decay); });  // no beta2 is negative
      p.ema_keeps = ema_keeps->data();
      p.n_ema_keeps = static_cast<int32_t>(ema_keeps->size());
    }
  }

  const int64_t row_grain = (kElementGrain + p.row_size - 1) / (p.row_size > 0 ? p.row_size : 1);
  parallel_units(p.skip_zero ? p.n_rows : p.n_rows * p.row_size, p.skip_zero ? row_grain : kElementGrain,
                 [&](int64_t begin, int64_t end) { kernels().adam_step(p, begin, end); });
  if (!p.skip_zero) {
    *p.steps += 1;
    if (p.ema_last != nullptr) *p.ema_last = p.global_step;
  }
}

void adam_step_cpu(const Tensor& param, const Tensor& grad, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                   const Tensor& steps, const Tensor& lr, double beta1, double beta2, double eps, double weight_decay,
                   bool skip_zero, const std::optional<Tensor>& ema, const std::optional<Tensor>& ema_last,
                   double ema_decay, const std::optional<Tensor>& global_step, const std::optional<Tensor>& shadow,
                   bool zero_grad) {
  run_step(make_adam_step_params(param, grad, exp_avg, exp_avg_sq, steps, lr, beta1, beta2, eps, weight_decay,
                                 skip_zero, ema, ema_last, ema_decay, global_step, shadow, zero_grad));
}

void adam_step_foreach_cpu(const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
                           const std::vector<Tensor>& exp_avgs, const std::vector<Tensor>& exp_avg_sqs,
                           const std::vector<Tensor>& steps, const Tensor& lr, double beta1, double beta2, double eps,
                           double weight_decay, const std::vector<Tensor>& emas, const std::vector<Tensor>& ema_lasts,
                           double ema_decay, const std::optional<Tensor>& global_step, bool zero_grad) {
  const AdamLists lists = {params, grads, exp_avgs, exp_avg_sqs, steps, emas, ema_lasts};
  lists.check();
  std::vector<AdamStepParams> all;  // nothing is written before everything is checked
  for (size_t i = 0; i < params.size(); ++i) {
    all.push_back(lists.params_of(i, lr, beta1, beta2, eps, weight_decay, ema_decay, global_step, zero_grad));
  }
  for (const AdamStepParams& p : all) run_step(p);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) {
  m.impl("adam_step", TORCH_BOX(&adam_step_cpu));
  m.impl("adam_step_foreach", TORCH_BOX(&adam_step_foreach_cpu));
}

}  // namespace hashgrid
