// sample_rays on CUDA: checks, allocation and launch. The host does not wait; of views that do not lie back to back in
// the data, which the CPU reports, it is only sure that nothing outside of the tensors is read.
#include "ops/sample_rays.h"
#include "ops/cuda/device.h"

#include <tuple>

namespace hashgrid {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> sample_rays_cuda(const Tensor& counter, int64_t n_rays, const Tensor& data,
                                                            const Tensor& offsets, const Tensor& sizes,
                                                            const Tensor& c2w, const Tensor& intrinsics,
                                                            const std::optional<Tensor>& plane_points,
                                                            const std::optional<Tensor>& plane_rows) {
  const DeviceScope device(data);
  device.check(counter, "counter");
  device.check(offsets, "offsets");
  device.check(sizes, "sizes");
  device.check(c2w, "c2w");
  device.check(intrinsics, "intrinsics");
  device.check(plane_points, "plane_points");
  device.check(plane_rows, "plane_rows");
  SampledRays rays;
  const SampleRaysParams p =
      make_sample_rays_params(counter, n_rays, data, offsets, sizes, c2w, intrinsics, plane_points, plane_rows, &rays);
  launch_sample_rays(p, device.stream());
  return {rays.rays_o, rays.rays_d, rays.rgba, rays.noise};
}

}  // namespace

HASHGRID_CUDA_LIBRARY(m) { m.impl("sample_rays", TORCH_BOX(&sample_rays_cuda)); }

}  // namespace hashgrid
