// march_rays on CUDA: checks, allocation and launch. The number of samples decides how much is allocated: the host
// waits for it once, and not at all for a result of fixed size.
#include "ops/march_rays.h"
#include "ops/cuda/device.h"

namespace hashgrid {
namespace {

MarchRaysOutputs march_rays_cuda(const Tensor& rays_o, const Tensor& rays_d, const Tensor& aabb, const Tensor& bits,
                                 const std::vector<int64_t>& resolution, int64_t n_cascades, double step_size,
                                 double cone_angle, double near, double far, const std::optional<Tensor>& limits,
                                 const std::optional<Tensor>& counter, const std::optional<Tensor>& n_rays,
                                 int64_t max_samples_per_ray, std::optional<int64_t> n_samples) {
  const DeviceScope device(rays_o);
  device.check(rays_d, "rays_d");
  device.check(aabb, "aabb");
  device.check(bits, "bits");
  device.check(limits, "limits");
  device.check(counter, "counter");
  device.check(n_rays, "n_rays");
  MarchRaysParams p = make_march_rays_params(rays_o, rays_d, aabb, bits, resolution, n_cascades, step_size, cone_angle,
                                             near, far, limits, counter, n_rays, max_samples_per_ray, n_samples);
  const int64_t n_bricks = bricks_fit(p) ? n_bricks_of(p) : 0;
  Tensor bricks = empty_like_dtype(rays_o, {2 * n_bricks}, ScalarType::Byte);
  if (n_bricks > 0) {
    p.bricks = static_cast<uint8_t*>(bricks.mutable_data_ptr());
    p.brick_copies = p.bricks + n_bricks;
  }
  Tensor packed_info = empty_like_dtype(rays_o, {p.n_rays, 2}, ScalarType::Long);
  p.packed_info = static_cast<int64_t*>(packed_info.mutable_data_ptr());
  const int64_t n_chunks = (p.n_rays + kScanChunk - 1) / kScanChunk;
  Tensor scan = empty_like_dtype(rays_o, {n_chunks + 2}, ScalarType::Long);
  p.scan = static_cast<int64_t*>(scan.mutable_data_ptr());
  p.cut = p.scan + n_chunks + 1;
  Tensor totals = torch::stable::new_zeros(rays_o, {2}, ScalarType::Long);
  p.totals = static_cast<int64_t*>(totals.mutable_data_ptr());
  launch_march_rays_count(p, device.stream());
  if (!p.fixed) {
    device.read_back(&p.n_samples, p.scan + n_chunks, sizeof(p.n_samples));
    totals = torch::stable::new_empty(totals, {0});
  }

  Tensor t_starts = empty_like_dtype(rays_o, {p.n_samples});
  Tensor t_ends = empty_like_dtype(rays_o, {p.n_samples});
  Tensor ray_indices = empty_like_dtype(rays_o, {p.n_samples}, ScalarType::Long);
  p.t_starts = t_starts.mutable_data_ptr();
  p.t_ends = t_ends.mutable_data_ptr();
  p.ray_indices = static_cast<int64_t*>(ray_indices.mutable_data_ptr());
  if (p.fixed || p.n_samples > 0) launch_march_rays_write(p, device.stream());
  return {t_starts, t_ends, ray_indices, packed_info, totals};
}

}  // namespace

HASHGRID_CUDA_LIBRARY(m) { m.impl("march_rays", TORCH_BOX(&march_rays_cuda)); }

}  // namespace hashgrid
