// counter_uniform: what the CPU and the CUDA op check, allocate and fill in alike.
#pragma once

#include "core/counter_uniform_params.h"
#include "ops/rays.h"

namespace hashgrid {

// `u` [N] receives the numbers.
inline CounterUniformParams make_counter_uniform_params(const Tensor& counter, const Tensor& index, Tensor* u) {
  STD_TORCH_CHECK(index.dim() == 1, "`index` must have shape [N], got ", shape_of(index));
  check_dtype(index, "index", ScalarType::Long);
  check_contiguous(index, "index");
  *u = empty_like_dtype(index, {index.size(0)}, ScalarType::Float);
  CounterUniformParams p = {};
  p.n = index.size(0);
  p.counter = counter_data(counter);
  p.index = static_cast<const int64_t*>(index.const_data_ptr());
  p.u = static_cast<float*>(u->mutable_data_ptr());
  return p;
}

}  // namespace hashgrid
