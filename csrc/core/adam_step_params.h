// What the kernels of adam_step take.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace hashgrid {

struct AdamStepParams {
  int64_t n_rows;
  int64_t row_size;    // elements per row, the last dimension
  DType dtype;         // of parameter, gradient and moments: kFloat32 or kFloat64
  DType shadow_dtype;  // kFloat16 or kBFloat16
  bool skip_zero;      // rows without gradient stay as they are; one step counter per row
  bool zero_grad;      // consumed gradients are overwritten with zeros
  double lr, beta1, beta2, eps, weight_decay, ema_decay;
  int32_t global_step;              // CPU: number of this step, from 1
  const int32_t* global_step_data;  // CUDA: [1] the same, read on the device
  void* param;                      // [n_rows, row_size]
  void* grad;                       // [n_rows, row_size]
  void* exp_avg;                    // [n_rows, row_size]
  void* exp_avg_sq;                 // [n_rows, row_size]
  void* ema;                        // [n_rows, row_size] or null
  uint16_t* shadow;                 // [n_rows, row_size] or null
  int32_t* steps;                   // [n_rows] if skip_zero, else [1]
  int32_t* ema_last;                // shaped like steps, or null
  // fp32 rows look these up instead of raising to a power; the last value holds for every larger index.
  const float* bias_corrections;  // [n_bias_corrections], by step count
  const float* ema_keeps;         // [n_ema_keeps], ema_decay^i
  int32_t n_bias_corrections;
  int32_t n_ema_keeps;
  const void* lr_tensor;  // [1]; CUDA reads it on the device, or `lr` where this is null
  DType lr_dtype;         // kFloat32 or kFloat64
  double* shared_rates;   // CUDA: [2] unless skip_zero: learning rate times bias correction, weight of the old average
};

constexpr int kMaxAdamList = 16;

// Parameters that are updated together; they share dtype, rates and options, none has `skip_zero`.
struct AdamStepList {
  int32_t n;
  AdamStepParams of[kMaxAdamList];
};

}  // namespace hashgrid
