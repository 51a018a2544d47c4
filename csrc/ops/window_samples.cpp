// window_samples: checks, allocation and launch.
#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "ops/window_samples.h"

namespace hashgrid {
namespace {

constexpr int64_t kRayGrain = 1024;

std::tuple<Tensor, Tensor> window_samples_cpu(const Tensor& rays_o, const Tensor& rays_d, const Tensor& sigmas,
                                              const Tensor& t_starts, const Tensor& t_ends, const Tensor& packed_info,
                                              int64_t begin, int64_t end, double early_stop_eps) {
  Tensor kept_info;
  WindowSamplesParams p = make_window_samples_params(rays_o, rays_d, sigmas, t_starts, t_ends, packed_info, begin, end,
                                                     early_stop_eps, &kept_info);
  check_back_to_back(p.packed_info, p.n_rays, p.n_samples);
  parallel_units(p.n_rays, kRayGrain,
                 [&](int64_t first, int64_t last) { kernels().window_samples_count(p, first, last); });
  const int64_t n_kept = place_rays(p.kept_info, p.n_rays);
  Tensor index = empty_like_dtype(packed_info, {n_kept});
  Tensor positions = empty_like_dtype(rays_o, {n_kept, 3});
  p.index = static_cast<int64_t*>(index.mutable_data_ptr());
  p.positions = positions.mutable_data_ptr();
  parallel_units(p.n_rays, kRayGrain,
                 [&](int64_t first, int64_t last) { kernels().window_samples_write(p, first, last); });
  return {index, positions};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) { m.impl("window_samples", TORCH_BOX(&window_samples_cpu)); }

}  // namespace hashgrid
