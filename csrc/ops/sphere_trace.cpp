// sphere_trace: checks, allocation and launch.
#include "ops/sphere_trace.h"

#include "cpu/capability.h"
#include "cpu/kernels.h"

namespace hashgrid {
namespace {

Tensor sphere_trace_cpu(const Tensor& distances, const Tensor& rays, const Tensor& rays_o, const Tensor& rays_d,
                        const Tensor& speed, const Tensor& t_max, Tensor state, Tensor status, Tensor n_evaluations,
                        double epsilon, double step_scale) {
  Tensor positions;
  const SphereTraceParams p = make_sphere_trace_params(distances, rays, rays_o, rays_d, speed, t_max, state, status,
                                                       n_evaluations, epsilon, step_scale, &positions);
  parallel_units(p.n_points, 4096, [&](int64_t begin, int64_t end) { kernels().sphere_trace(p, begin, end); });
  return positions;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) { m.impl("sphere_trace", TORCH_BOX(&sphere_trace_cpu)); }

}  // namespace hashgrid
