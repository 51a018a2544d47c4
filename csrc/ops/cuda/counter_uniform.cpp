// counter_uniform on CUDA: checks, allocation and launch.
#include "ops/counter_uniform.h"
#include "ops/cuda/device.h"

namespace hashgrid {
namespace {

Tensor counter_uniform_cuda(const Tensor& counter, const Tensor& index) {
  const DeviceScope device(index);
  device.check(counter, "counter");
  Tensor u;
  const CounterUniformParams p = make_counter_uniform_params(counter, index, &u);
  launch_counter_uniform(p, device.stream());
  return u;
}

}  // namespace

HASHGRID_CUDA_LIBRARY(m) { m.impl("counter_uniform", TORCH_BOX(&counter_uniform_cuda)); }

}  // namespace hashgrid
