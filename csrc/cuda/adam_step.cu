// Adam on CUDA, fused with decay, average, half copy and the reset of the gradient.
//
// Rows with their own step counters (skip_zero): one thread per row; rows of 1, 2, 4 or 8 elements are one vector of
// each array. A thread whose row has no gradient touches nothing else, so that a step over a sparsely used table costs
// little more than reading its gradient. One counter per parameter: one thread per element, of several parameters in
// one launch, after one in which a thread per parameter works out the rate and advances the counter. Learning rate and
// step are read on the device: a captured graph follows a schedule.
#include "cuda/launch.cuh"

#include <algorithm>
#include <type_traits>

#include "core/adam_step_params.h"
#include "core/adam.h"
#include "core/bfloat16.h"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kThreads = 256;

// Logarithms for the rates of a row in fp32.
struct AdamLogs {
  float beta1, beta2, ema_decay;
};

__device__ inline double learning_rate(const AdamStepParams& p) {
  if (p.lr_tensor == nullptr) return p.lr;
  return p.lr_dtype == DType::kFloat64 ? *static_cast<const double*>(p.lr_tensor)
                                       : static_cast<double>(*static_cast<const float*>(p.lr_tensor));
}

// Rounded to nearest, ties to even; the pattern of a half NaN is the device's own.
__device__ inline uint16_t to_half_bits(float x, DType dtype) {
  return dtype == DType::kBFloat16 ? float_to_bfloat16(x) : __half_as_ushort(__float2half_rn(x));
}

// kF elements from element `first` on, as one vector of each array. `rate`: learning rate times bias correction;
// `keep`: weight of the old average beside the values of the steps since.
template <typename T, int kF>
__device__ inline void update_elements(const AdamStepParams& p, const AdamConstants<T>& constants, int64_t first,
                                       const T* grad, T rate, T keep) {
  T param[kF], avg[kF], sq[kF];
  load_row<T, kF>(static_cast<const T*>(p.param) + first, param);
  load_row<T, kF>(static_cast<const T*>(p.exp_avg) + first, avg);
  load_row<T, kF>(static_cast<const T*>(p.exp_avg_sq) + first, sq);
  T old[kF];  // the average catches up with the value the row had while it was idle
#pragma unroll
  for (int f = 0; f < kF; ++f) {
    old[f] = param[f];
    adam_moments(constants, grad[f], old[f], &avg[f], &sq[f]);
    param[f] = adam_apply(constants, old[f], rate, avg[f], static_cast<T>(::sqrt(sq[f])));
  }
  store_row<T, kF>(static_cast<T*>(p.param) + first, param);
  store_row<T, kF>(static_cast<T*>(p.exp_avg) + first, avg);
  store_row<T, kF>(static_cast<T*>(p.exp_avg_sq) + first, sq);
  if (p.ema != nullptr) {
    T ema[kF];
    load_row<T, kF>(static_cast<const T*>(p.ema) + first, ema);
#pragma unroll
    for (int f = 0; f < kF; ++f) ema[f] = ema_update(constants, ema_catch_up(ema[f], old[f], keep), param[f]);
    store_row<T, kF>(static_cast<T*>(p.ema) + first, ema);
  }
  if (p.shadow != nullptr) {
    uint16_t shadow[kF];
#pragma unroll
    for (int f = 0; f < kF; ++f) shadow[f] = to_half_bits(static_cast<float>(param[f]), p.shadow_dtype);
    store_row<uint16_t, kF>(p.shadow + first, shadow);
  }
  if (p.zero_grad) {
    const T zeros[kF] = {};
    store_row<T, kF>(static_cast<T*>(p.grad) + first, zeros);
  }
}

// Thread: row global_thread() of [n_rows, row_size], which lies in one piece in every array; threads share nothing. kF
// is row_size, and a row one vector; with kF = 0 it is taken element by element. Reads the gradient first and, where
// that is zero, nothing else. Writes param, exp_avg, exp_avg_sq and what there is of ema, shadow and grad (zeros) of
// its row, and the row's counters. Nothing is added up over rows.
template <typename T, int kF>
__global__ void adam_step_rows_kernel(HASHGRID_PARAMS AdamStepParams p, HASHGRID_PARAMS AdamConstants<T> constants,
                                      AdamLogs logs) {
  const int64_t row = global_thread();
  if (row >= p.n_rows) return;
  const int64_t first = row * p.row_size;
  const T* source = static_cast<const T*>(p.grad) + first;
  T grad[kF > 0 ? kF : 1];
  bool touched = false;
  if constexpr (kF > 0) {
    load_row<T, kF>(source, grad);
#pragma unroll
    for (int f = 0; f < kF; ++f) touched = touched || grad[f] != T(0);
  } else {
    for (int64_t f = 0; f < p.row_size && !touched; ++f) touched = source[f] != T(0);
  }
  if (!touched) return;  // NaN is no zero: a broken gradient shows
  const int32_t step = p.steps[row] + 1;
  p.steps[row] = step;
  int32_t idle = 0;
  if (p.ema != nullptr) {
    const int32_t global_step = *p.global_step_data;
    idle = global_step - 1 - p.ema_last[row];
    p.ema_last[row] = global_step;
  }
  T rate, keep;
  // fp64 serves checks and takes its time; in fp32, pow in double would be most of the kernel on many cards.
  if constexpr (std::is_same<T, double>::value) {
    rate = learning_rate(p) * adam_bias_correction(p.beta1, p.beta2, step);
    keep = ::pow(p.ema_decay, static_cast<double>(idle));
  } else {
    rate = static_cast<float>(learning_rate(p)) * adam_bias_correction_from_logs(logs.beta1, logs.beta2, step);
    keep = ema_keep(logs.ema_decay, idle);
  }
  if constexpr (kF > 0) {
    update_elements<T, kF>(p, constants, first, grad, rate, keep);
  } else {
    for (int64_t f = 0; f < p.row_size; ++f) update_elements<T, 1>(p, constants, first + f, source + f, rate, keep);
  }
}

// One block. Thread: one parameter of the list. Works out the rates that all of its elements share, shared_rates [2],
// in fp64, and advances its counters [1]; the next kernel in the stream reads the rates.
__global__ void adam_step_prepare_kernel(HASHGRID_PARAMS AdamStepList list) {
  if (static_cast<int>(threadIdx.x) >= list.n) return;
  const AdamStepParams& p = list.of[threadIdx.x];
  const int32_t step = *p.steps + 1;
  *p.steps = step;
  p.shared_rates[0] = learning_rate(p) * adam_bias_correction(p.beta1, p.beta2, step);
  if (p.ema_last == nullptr) return;  // `ema` is null where it is empty, too
  p.shared_rates[1] = ::pow(p.ema_decay, static_cast<double>(*p.global_step_data - 1 - *p.ema_last));
  *p.ema_last = *p.global_step_data;
}

// Thread: one of the n_rows * row_size elements of parameter blockIdx.y, so that neighbours touch neighbouring
// addresses of every array; threads share nothing but the rates, which they read. Blocks behind the end of a short
// parameter leave at once.
template <typename T>
__global__ void adam_step_elements_kernel(HASHGRID_PARAMS AdamStepList list,
                                          HASHGRID_PARAMS AdamConstants<T> constants) {
  const AdamStepParams& p = list.of[blockIdx.y];
  const int64_t i = global_thread();
  if (i >= p.n_rows * p.row_size) return;
  const T rate = static_cast<T>(p.shared_rates[0]);
  const T keep = p.ema != nullptr ? static_cast<T>(p.shared_rates[1]) : T(1);
  const T grad = static_cast<const T*>(p.grad)[i];
  update_elements<T, 1>(p, constants, i, &grad, rate, keep);
}

// ---- launchers ---------------------------------------------------------------------------------------------------

// Whether rows of `row_bytes` bytes of every array (half of that in the shadow) can be loaded as vectors.
inline bool takes_whole_rows(const AdamStepParams& p, int64_t row_bytes) {
  const auto aligned = [](const void* data, int64_t bytes) { return reinterpret_cast<uintptr_t>(data) % bytes == 0; };
  return aligned(p.param, row_bytes) && aligned(p.grad, row_bytes) && aligned(p.exp_avg, row_bytes) &&
         aligned(p.exp_avg_sq, row_bytes) && aligned(p.ema, row_bytes) && aligned(p.shadow, row_bytes / 2);
}

template <typename T>
void launch_list(const AdamStepList& list, cudaStream_t stream) {
  const AdamStepParams& first = list.of[0];
  const AdamConstants<T> constants =
      adam_constants<T>(first.beta1, first.beta2, first.eps, first.weight_decay, first.ema_decay);
  int64_t most = 0;
  for (int i = 0; i < list.n; ++i) most = std::max(most, list.of[i].n_rows * list.of[i].row_size);
  const LaunchShape counters = {dim3(1), dim3(kMaxAdamList), 0};
  HASHGRID_LAUNCH(adam_step_prepare_kernel, counters, stream, list);
  const LaunchShape shape = blocks_of(most, kThreads, static_cast<unsigned>(list.n));
  HASHGRID_LAUNCH((adam_step_elements_kernel<T>), shape, stream, list, constants);
}

template <typename T>
void launch_rows(const AdamStepParams& p, cudaStream_t stream) {
  if (p.n_rows == 0) return;
  const AdamConstants<T> constants = adam_constants<T>(p.beta1, p.beta2, p.eps, p.weight_decay, p.ema_decay);
  const AdamLogs logs = {static_cast<float>(std::log(p.beta1)), static_cast<float>(std::log(p.beta2)),
                         static_cast<float>(std::log(p.ema_decay))};
  const LaunchShape shape = blocks_of(p.n_rows, kThreads);
  // Views may start anywhere: their rows are taken element by element.
  if constexpr (std::is_same<T, float>::value) {
    switch (takes_whole_rows(p, p.row_size * 4) ? p.row_size : 0) {
      case 1:
        HASHGRID_LAUNCH((adam_step_rows_kernel<float, 1>), shape, stream, p, constants, logs);
        return;
      case 2:
        HASHGRID_LAUNCH((adam_step_rows_kernel<float, 2>), shape, stream, p, constants, logs);
        return;
      case 4:
        HASHGRID_LAUNCH((adam_step_rows_kernel<float, 4>), shape, stream, p, constants, logs);
        return;
      case 8:
        HASHGRID_LAUNCH((adam_step_rows_kernel<float, 8>), shape, stream, p, constants, logs);
        return;
    }
  }
  HASHGRID_LAUNCH((adam_step_rows_kernel<T, 0>), shape, stream, p, constants, logs);
}

}  // namespace HASHGRID_ISA

using namespace HASHGRID_ISA;

void launch_adam_step_rows(const AdamStepParams& p, cudaStream_t stream) {
  if (p.dtype == DType::kFloat64) return launch_rows<double>(p, stream);
  launch_rows<float>(p, stream);
}

void launch_adam_step_list(const AdamStepList& list, cudaStream_t stream) {
  if (list.n == 0) return;
  if (list.of[0].dtype == DType::kFloat64) return launch_list<double>(list, stream);
  launch_list<float>(list, stream);
}

}  // namespace hashgrid
