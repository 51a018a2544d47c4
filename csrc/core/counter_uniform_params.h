// What the kernels of counter_uniform take.
#pragma once

#include <cstdint>

namespace hashgrid {

struct CounterUniformParams {
  int64_t n;
  const int64_t* counter;  // [2] seed, step
  const int64_t* index;    // [n]
  float* u;                // [n]
};

}  // namespace hashgrid
