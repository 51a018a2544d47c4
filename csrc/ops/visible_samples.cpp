// visible_samples: checks, allocation and launch.
#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "ops/visible_samples.h"

namespace hashgrid {
namespace {

constexpr int64_t kRayGrain = 256;

std::tuple<Tensor, Tensor> visible_samples_cpu(const Tensor& sigmas, const Tensor& t_starts, const Tensor& t_ends,
                                               const Tensor& packed_info, double early_stop_eps) {
  Tensor kept_info;
  VisibleSamplesParams p =
      make_visible_samples_params(sigmas, t_starts, t_ends, packed_info, early_stop_eps, &kept_info);
  check_back_to_back(p.packed_info, p.n_rays, p.n_samples);
  parallel_units(p.n_rays, kRayGrain,
                 [&](int64_t begin, int64_t end) { kernels().visible_samples_count(p, begin, end); });
  Tensor index = empty_like_dtype(packed_info, {place_rays(p.kept_info, p.n_rays)});
  p.index = static_cast<int64_t*>(index.mutable_data_ptr());
  parallel_units(p.n_rays, kRayGrain,
                 [&](int64_t begin, int64_t end) { kernels().visible_samples_write(p, begin, end); });
  return {index, kept_info};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) { m.impl("visible_samples", TORCH_BOX(&visible_samples_cpu)); }

}  // namespace hashgrid
