// sphere_trace on CUDA: checks, allocation and launch.
#include "ops/sphere_trace.h"

#include "ops/cuda/device.h"

namespace hashgrid {
namespace {

Tensor sphere_trace_cuda(const Tensor& distances, const Tensor& rays, const Tensor& rays_o, const Tensor& rays_d,
                         const Tensor& speed, const Tensor& t_max, Tensor state, Tensor status, Tensor n_evaluations,
                         double epsilon, double step_scale) {
  const DeviceScope device(rays_o);
  device.check(distances, "distances");
  device.check(rays, "rays");
  device.check(rays_d, "rays_d");
  device.check(speed, "speed");
  device.check(t_max, "t_max");
  device.check(state, "state");
  device.check(status, "status");
  device.check(n_evaluations, "n_evaluations");
  Tensor positions;
  const SphereTraceParams p = make_sphere_trace_params(distances, rays, rays_o, rays_d, speed, t_max, state, status,
                                                       n_evaluations, epsilon, step_scale, &positions);
  launch_sphere_trace(p, device.stream());
  return positions;
}

}  // namespace

HASHGRID_CUDA_LIBRARY(m) { m.impl("sphere_trace", TORCH_BOX(&sphere_trace_cuda)); }

}  // namespace hashgrid
