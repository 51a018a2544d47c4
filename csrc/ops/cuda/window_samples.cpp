// window_samples on CUDA: checks, allocation and launch. The host waits once, for the number of samples.
#include "ops/window_samples.h"
#include "ops/cuda/kept_samples.h"

namespace hashgrid {
namespace {

std::tuple<Tensor, Tensor> window_samples_cuda(const Tensor& rays_o, const Tensor& rays_d, const Tensor& sigmas,
                                               const Tensor& t_starts, const Tensor& t_ends, const Tensor& packed_info,
                                               int64_t begin, int64_t end, double early_stop_eps) {
  const DeviceScope device(sigmas);
  device.check(rays_o, "rays_o");
  device.check(rays_d, "rays_d");
  device.check(t_starts, "t_starts");
  device.check(t_ends, "t_ends");
  device.check(packed_info, "packed_info");
  Tensor kept_info;
  WindowSamplesParams p = make_window_samples_params(rays_o, rays_d, sigmas, t_starts, t_ends, packed_info, begin, end,
                                                     early_stop_eps, &kept_info);
  const int64_t n_kept = count_kept(device, packed_info, p, [&] { launch_window_samples_count(p, device.stream()); });
  Tensor index = empty_like_dtype(packed_info, {n_kept});
  Tensor positions = empty_like_dtype(rays_o, {n_kept, 3});
  p.index = static_cast<int64_t*>(index.mutable_data_ptr());
  p.positions = positions.mutable_data_ptr();
  launch_window_samples_write(p, device.stream());
  return {index, positions};
}

}  // namespace

HASHGRID_CUDA_LIBRARY(m) { m.impl("window_samples", TORCH_BOX(&window_samples_cuda)); }

}  // namespace hashgrid
