// How many samples of packed rays an op keeps decides how much it allocates: shared by visible_samples and
// window_samples.
#pragma once

#include "core/visible_samples_params.h"
#include "ops/cuda/device.h"

namespace hashgrid {

// Runs `count`, which fills the counts of `p.kept_info` and sums them in `p.scan`. The host waits for the sum, and
// learns with it whether packed_info is in order.
template <typename Count>
int64_t count_kept(const DeviceScope& device, const Tensor& packed_info, VisibleSamplesParams& p, const Count& count) {
  const int64_t n_chunks = (p.n_rays + kScanChunk - 1) / kScanChunk;
  Tensor scan = torch::stable::new_zeros(packed_info, {n_chunks + 2});
  p.scan = static_cast<int64_t*>(scan.mutable_data_ptr());
  count();
  int64_t results[2] = {};  // number of samples kept, fault
  device.read_back(results, p.scan + n_chunks, sizeof(results));
  if (results[1] != 0) {
    std::vector<int64_t> info(2 * p.n_rays);
    device.read_back(info.data(), p.packed_info, info.size() * sizeof(int64_t));
    check_back_to_back(info.data(), p.n_rays, p.n_samples);
  }
  return results[0];
}

}  // namespace hashgrid
