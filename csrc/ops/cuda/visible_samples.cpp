// visible_samples on CUDA: checks, allocation and launch. The number of samples kept decides how much is
// allocated: the host waits for it once, and learns then whether packed_info is in order.
#include "ops/visible_samples.h"
#include "ops/cuda/device.h"

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
  const int64_t n_chunks = (p.n_rays + kScanChunk - 1) / kScanChunk;
  Tensor scan = torch::stable::new_zeros(packed_info, {n_chunks + 2});
  p.scan = static_cast<int64_t*>(scan.mutable_data_ptr());
  launch_visible_samples_count(p, device.stream());
  int64_t results[2] = {};  // number of samples kept, fault
  device.read_back(results, p.scan + n_chunks, sizeof(results));
  if (results[1] != 0) {
    std::vector<int64_t> info(2 * p.n_rays);
    device.read_back(info.data(), p.packed_info, info.size() * sizeof(int64_t));
    check_back_to_back(info.data(), p.n_rays, p.n_samples);
  }
  Tensor index = empty_like_dtype(packed_info, {results[0]});
  p.index = static_cast<int64_t*>(index.mutable_data_ptr());
  launch_visible_samples_write(p, device.stream());
  return {index, kept_info};
}

}  // namespace

HASHGRID_CUDA_LIBRARY(m) { m.impl("visible_samples", TORCH_BOX(&visible_samples_cuda)); }

}  // namespace hashgrid
