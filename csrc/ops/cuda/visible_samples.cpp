// visible_samples on CUDA: checks, allocation and launch. The host waits once, for the number of samples kept.
#include "ops/visible_samples.h"
#include "ops/cuda/kept_samples.h"

namespace hashgrid {
namespace {

std::tuple<Tensor, Tensor> visible_samples_cuda(const Tensor& sigmas, const Tensor& t_starts, const Tensor& t_ends,
                                                const Tensor& packed_info, double early_stop_eps) {
  const DeviceScope device(sigmas);
  device.check(t_starts, "t_starts");
  device.check(t_ends, "t_ends");
  device.check(packed_info, "packed_info");
  Tensor kept_info;
  VisibleSamplesParams p =
      make_visible_samples_params(sigmas, t_starts, t_ends, packed_info, early_stop_eps, &kept_info);
  const int64_t n_kept = count_kept(device, packed_info, p, [&] { launch_visible_samples_count(p, device.stream()); });
  Tensor index = empty_like_dtype(packed_info, {n_kept});
  p.index = static_cast<int64_t*>(index.mutable_data_ptr());
  launch_visible_samples_write(p, device.stream());
  return {index, kept_info};
}

}  // namespace

HASHGRID_CUDA_LIBRARY(m) { m.impl("visible_samples", TORCH_BOX(&visible_samples_cuda)); }

}  // namespace hashgrid
