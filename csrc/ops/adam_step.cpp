// adam_step: checks, the tables of bias corrections, launch.
#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "ops/checks.h"

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

double scalar_of(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.numel() == 1, "`", name, "` must have one element, got shape ", shape_of(tensor));
  return real_dtype_of(tensor, name) == DType::kFloat64 ? *static_cast<const double*>(tensor.const_data_ptr())
                                                         : *static_cast<const float*>(tensor.const_data_ptr());
}

void check_like(const Tensor& tensor, const char* name, const Tensor& param) {
  std::vector<int64_t> shape;
  for (int64_t d = 0; d < param.dim(); ++d) shape.push_back(param.size(d));
  check_shape(tensor, name, shape);
  STD_TORCH_CHECK(tensor.is_contiguous(), "`", name, "` must be contiguous");
}

int32_t* counters(const Tensor& tensor, const char* name, int64_t count) {
  check_shape(tensor, name, {count});
  check_dtype(tensor, name, ScalarType::Int);
  STD_TORCH_CHECK(tensor.is_contiguous(), "`", name, "` must be contiguous");
  return static_cast<int32_t*>(tensor.mutable_data_ptr());
}

void adam_step_cpu(const Tensor& param, const Tensor& grad, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                   const Tensor& steps, const Tensor& lr, double beta1, double beta2, double eps, double weight_decay,
                   bool skip_zero, const std::optional<Tensor>& ema, const std::optional<Tensor>& ema_last,
                   double ema_decay, int64_t global_step, const std::optional<Tensor>& shadow, bool zero_grad) {
  AdamStepParams p = {};
  p.dtype = real_dtype_of(param, "param");
  STD_TORCH_CHECK(param.is_contiguous(), "`param` must be contiguous");
  p.row_size = param.dim() > 0 ? param.size(-1) : 1;
  p.n_rows = p.row_size > 0 ? param.numel() / p.row_size : 0;
  const auto data_like = [&](const Tensor& tensor, const char* name) {
    check_like(tensor, name, param);
    check_dtype(tensor, name, param.scalar_type());
    return tensor.mutable_data_ptr();
  };
  p.param = param.mutable_data_ptr();
  p.grad = data_like(grad, "grad");
  p.exp_avg = data_like(exp_avg, "exp_avg");
  p.exp_avg_sq = data_like(exp_avg_sq, "exp_avg_sq");

  STD_TORCH_CHECK(beta1 >= 0.0 && beta1 < 1.0, "`beta1` must be in [0, 1), got ", beta1);
  STD_TORCH_CHECK(beta2 >= 0.0 && beta2 < 1.0, "`beta2` must be in [0, 1), got ", beta2);
  STD_TORCH_CHECK(ema_decay >= 0.0 && ema_decay < 1.0, "`ema_decay` must be in [0, 1), got ", ema_decay);
  p.lr = scalar_of(lr, "lr");
  p.beta1 = beta1;
  p.beta2 = beta2;
  p.eps = eps;
  p.weight_decay = weight_decay;
  p.ema_decay = ema_decay;
  p.skip_zero = skip_zero;
  p.zero_grad = zero_grad;

  const int64_t n_counters = skip_zero ? p.n_rows : 1;
  p.steps = counters(steps, "steps", n_counters);
  STD_TORCH_CHECK(ema.has_value() == ema_last.has_value(), "`ema` and `ema_last` must be given together");
  Table bias_corrections, ema_keeps;
  if (ema.has_value()) {
    STD_TORCH_CHECK(global_step >= 1 && global_step < (int64_t{1} << 31),
                    "`global_step` must be in 1..2^31-1 when an average is kept, got ", global_step);
    p.global_step = static_cast<int32_t>(global_step);
    p.ema = data_like(*ema, "ema");
    p.ema_last = counters(*ema_last, "ema_last", n_counters);
  }
  if (shadow.has_value()) {
    check_like(*shadow, "shadow", param);
    p.shadow_dtype = dtype_of(*shadow, "shadow");
    STD_TORCH_CHECK(p.shadow_dtype == DType::kFloat16 || p.shadow_dtype == DType::kBFloat16,
                    "`shadow` must be float16 or bfloat16, got ", name_of(shadow->scalar_type()));
    p.shadow = static_cast<uint16_t*>(shadow->mutable_data_ptr());
  }
  if (skip_zero && p.dtype == DType::kFloat32) {
    bias_corrections = cached({beta1, beta2}, [&] { return make_bias_corrections(beta1, beta2); });
    p.bias_corrections = bias_corrections->data();
    p.n_bias_corrections = static_cast<int32_t>(bias_corrections->size());
    if (ema.has_value()) {
      ema_keeps = cached({ema_decay, -1.0}, [&] { return make_ema_keeps(ema_decay); });  // no beta2 is negative
      p.ema_keeps = ema_keeps->data();
      p.n_ema_keeps = static_cast<int32_t>(ema_keeps->size());
    }
  }

  const int64_t row_grain = (kElementGrain + p.row_size - 1) / (p.row_size > 0 ? p.row_size : 1);
  parallel_units(skip_zero ? p.n_rows : param.numel(), skip_zero ? row_grain : kElementGrain,
                 [&](int64_t begin, int64_t end) { kernels().adam_step(p, begin, end); });
  if (!skip_zero) {
    *p.steps += 1;
    if (p.ema_last != nullptr) *p.ema_last = p.global_step;
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) { m.impl("adam_step", TORCH_BOX(&adam_step_cpu)); }

}  // namespace hashgrid
