// counter_uniform: checks, allocation and launch.
#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "ops/counter_uniform.h"

namespace hashgrid {
namespace {

Tensor counter_uniform_cpu(const Tensor& counter, const Tensor& index) {
  Tensor u;
  const CounterUniformParams p = make_counter_uniform_params(counter, index, &u);
  parallel_units(p.n, 32768, [&](int64_t begin, int64_t end) { kernels().counter_uniform(p, begin, end); });
  return u;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) { m.impl("counter_uniform", TORCH_BOX(&counter_uniform_cpu)); }

}  // namespace hashgrid
