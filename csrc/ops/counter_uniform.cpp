// counter_uniform: checks, allocation and launch.
#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "ops/checks.h"
#include "ops/rays.h"

namespace hashgrid {
namespace {

Tensor counter_uniform_cpu(int64_t seed, int64_t step, const Tensor& index) {
  STD_TORCH_CHECK(index.dim() == 1, "`index` must have shape [N], got ", shape_of(index));
  check_dtype(index, "index", ScalarType::Long);
  check_contiguous(index, "index");
  Tensor u = empty_like_dtype(index, {index.size(0)}, ScalarType::Float);
  CounterUniformParams p = {};
  p.seed = static_cast<uint64_t>(seed);
  p.step = static_cast<uint32_t>(step);
  p.index = static_cast<const int64_t*>(index.const_data_ptr());
  p.u = static_cast<float*>(u.mutable_data_ptr());
  parallel_units(index.size(0), 32768, [&](int64_t begin, int64_t end) { kernels().counter_uniform(p, begin, end); });
  return u;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) { m.impl("counter_uniform", TORCH_BOX(&counter_uniform_cpu)); }

}  // namespace hashgrid
