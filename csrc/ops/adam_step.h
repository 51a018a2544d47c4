// adam_step: what the CPU and the CUDA op check and fill in alike.
#pragma once

#include "core/adam_step_params.h"
#include "ops/checks.h"

namespace hashgrid {

inline void check_like(const Tensor& tensor, const char* name, const Tensor& param) {
  std::vector<int64_t> shape;
  for (int64_t d = 0; d < param.dim(); ++d) shape.push_back(param.size(d));
  check_shape(tensor, name, shape);
  STD_TORCH_CHECK(tensor.is_contiguous(), "`", name, "` must be contiguous");
}

inline int32_t* counters(const Tensor& tensor, const char* name, int64_t count) {
  check_shape(tensor, name, {count});
  check_dtype(tensor, name, ScalarType::Int);
  STD_TORCH_CHECK(tensor.is_contiguous(), "`", name, "` must be contiguous");
  return static_cast<int32_t*>(tensor.mutable_data_ptr());
}

// The learning rate is left where it is, in `lr_tensor`.
inline AdamStepParams make_adam_step_params(const Tensor& param, const Tensor& grad, const Tensor& exp_avg,
                                            const Tensor& exp_avg_sq, const Tensor& steps, const Tensor& lr,
                                            double beta1, double beta2, double eps, double weight_decay, bool skip_zero,
                                            const std::optional<Tensor>& ema, const std::optional<Tensor>& ema_last,
                                            double ema_decay, const std::optional<Tensor>& global_step,
                                            const std::optional<Tensor>& shadow, bool zero_grad) {
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
  STD_TORCH_CHECK(lr.numel() == 1, "`lr` must have one element, got shape ", shape_of(lr));
  p.lr_dtype = real_dtype_of(lr, "lr");
  p.lr_tensor = lr.const_data_ptr();
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
  if (ema.has_value()) {
    STD_TORCH_CHECK(global_step.has_value(), "`global_step` must be given when an average is kept");
    p.global_step_data = counters(*global_step, "global_step", 1);
    p.ema = data_like(*ema, "ema");
    p.ema_last = counters(*ema_last, "ema_last", n_counters);
  }
  if (shadow.has_value()) {
    check_like(*shadow, "half_copy", param);
    p.shadow_dtype = dtype_of(*shadow, "half_copy");
    STD_TORCH_CHECK(p.shadow_dtype == DType::kFloat16 || p.shadow_dtype == DType::kBFloat16,
                    "`half_copy` must be float16 or bfloat16, got ", name_of(shadow->scalar_type()));
    p.shadow = static_cast<uint16_t*>(shadow->mutable_data_ptr());
  }
  return p;
}

// Parameter i of lists that belong together; `ema` and `ema_last` may be empty.
struct AdamLists {
  const std::vector<Tensor>&param, &grad, &exp_avg, &exp_avg_sq, &steps, &ema, &ema_last;

  void check() const {
    const auto as_long = [&](const std::vector<Tensor>& list, const char* name) {
      STD_TORCH_CHECK(list.size() == param.size(), "`", name, "` must have ", param.size(),
                      " tensors, one per parameter, got ", list.size());
    };
    STD_TORCH_CHECK(param.size() <= kMaxAdamList, "`params` must have at most ", kMaxAdamList, " tensors, got ",
                    param.size());
    as_long(grad, "grads");
    as_long(exp_avg, "exp_avgs");
    as_long(exp_avg_sq, "exp_avg_sqs");
    as_long(steps, "steps");
    if (!ema.empty()) as_long(ema, "emas");
    STD_TORCH_CHECK(ema.size() == ema_last.size(), "`emas` and `ema_lasts` must be given together");
    for (const Tensor& other : param) check_dtype(other, "params", param[0].scalar_type());
  }

  AdamStepParams params_of(size_t i, const Tensor& lr, double beta1, double beta2, double eps, double weight_decay,
                           double ema_decay, const std::optional<Tensor>& global_step, bool zero_grad) const {
    const auto given = [&](const std::vector<Tensor>& list) {
      return list.empty() ? std::nullopt : std::optional<Tensor>(list[i]);
    };
    return make_adam_step_params(param[i], grad[i], exp_avg[i], exp_avg_sq[i], steps[i], lr, beta1, beta2, eps,
                                 weight_decay, false, given(ema), given(ema_last), ema_decay, global_step, std::nullopt,
                                 zero_grad);
  }
};

}  // namespace hashgrid
