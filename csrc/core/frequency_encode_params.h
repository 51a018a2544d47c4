// What the kernels of frequency_encode take.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace hashgrid {

constexpr int kMaxFrequencies = 64;

struct FrequencyEncodeParams {
  int64_t n_inputs;               // points times dimensions
  int32_t n_frequencies;          // 1..kMaxFrequencies
  DType dtype;                    // kFloat32 or kFloat64
  bool pi;                        // whether frequencies are 2^k pi, not 2^k
  const void* x;                  // [n_inputs]
  void* y;                        // [n_inputs, n_frequencies, 2] sine, cosine
  const void* grad_y;             // [n_inputs, n_frequencies, 2]
  void* grad_x;                   // [n_inputs]
  float scales[kMaxFrequencies];  // 2^k
};

}  // namespace hashgrid
