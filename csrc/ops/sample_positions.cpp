// sample_positions: checks, allocation and launch.
#include "ops/sample_positions.h"

#include "cpu/capability.h"
#include "cpu/kernels.h"

namespace hashgrid {
namespace {

constexpr int64_t kGrain = 8192;

Tensor sample_positions_cpu(const Tensor& rays_o, const Tensor& rays_d, const Tensor& ray_indices,
                            const Tensor& t_starts, const Tensor& t_ends) {
  Tensor positions;
  const SamplePositionsParams p =
      make_sample_positions_params(rays_o, rays_d, ray_indices, t_starts, t_ends, &positions);
  parallel_units(p.n_samples, kGrain, [&](int64_t begin, int64_t end) { kernels().sample_positions(p, begin, end); });
  return positions;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) { m.impl("sample_positions", TORCH_BOX(&sample_positions_cpu)); }

}  // namespace hashgrid
