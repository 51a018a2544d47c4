// march_rays on CUDA: checks, allocation and launch. The number of samples decides how much is
// allocated: the host waits for it once.
#include "ops/march_rays.h"
#include "ops/cuda/device.h"

namespace hashgrid {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> march_rays_cuda(const Tensor& rays_o, const Tensor& rays_d,
                                                           const Tensor& aabb, const Tensor& bits,
                                                           const std::vector<int64_t>& resolution, int64_t n_cascades,
                                                           double step_size, double cone_angle, double near, double far,
                                                           std::optional<int64_t> seed, int64_t step,
                                                           int64_t max_samples_per_ray) {
  const DeviceScope device(rays_o);
  device.check(rays_d, "rays_d");
  device.check(aabb, "aabb");
  device.check(bits, "bits");
  MarchRaysParams p = make_march_rays_params(rays_o, rays_d, aabb, bits, resolution, n_cascades, step_size, cone_angle,
                                             near, far, seed, step, max_samples_per_ray);
  Tensor packed_info = empty_like_dtype(rays_o, {p.n_rays, 2}, ScalarType::Long);
  p.packed_info = static_cast<int64_t*>(packed_info.mutable_data_ptr());
  const int64_t n_chunks = (p.n_rays + kScanChunk - 1) / kScanChunk;
  Tensor scan = empty_like_dtype(rays_o, {n_chunks + 2}, ScalarType::Long);
  p.scan = static_cast<int64_t*>(scan.mutable_data_ptr());
  launch_march_rays_count(p, device.stream());
  int64_t n_samples = 0;
  device.read_back(&n_samples, p.scan + n_chunks, sizeof(n_samples));

  Tensor t_starts = empty_like_dtype(rays_o, {n_samples});
  Tensor t_ends = empty_like_dtype(rays_o, {n_samples});
  Tensor ray_indices = empty_like_dtype(rays_o, {n_samples}, ScalarType::Long);
  p.t_starts = t_starts.mutable_data_ptr();
  p.t_ends = t_ends.mutable_data_ptr();
  p.ray_indices = static_cast<int64_t*>(ray_indices.mutable_data_ptr());
  if (n_samples > 0) launch_march_rays_write(p, device.stream());
  return {t_starts, t_ends, ray_indices, packed_info};
}

}  // namespace

HASHGRID_CUDA_LIBRARY(m) { m.impl("march_rays", TORCH_BOX(&march_rays_cuda)); }

}  // namespace hashgrid
