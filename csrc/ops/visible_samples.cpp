// visible_samples: checks, allocation and launch.
#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "ops/checks.h"
#include "ops/rays.h"

namespace hashgrid {
namespace {

constexpr int64_t kRayGrain = 256;

std::tuple<Tensor, Tensor> visible_samples_cpu(const Tensor& sigmas, const Tensor& t_starts, const Tensor& t_ends,
                                               const Tensor& packed_info, double early_stop_eps) {
  STD_TORCH_CHECK(sigmas.dim() == 1, "`sigmas` must have shape [S], got ", shape_of(sigmas));
  const int64_t n_samples = sigmas.size(0);
  check_shape(t_starts, "t_starts", {n_samples});
  check_shape(t_ends, "t_ends", {n_samples});
  VisibleSamplesParams p = {};
  p.dtype = real_dtype_of(sigmas, "sigmas");
  check_dtype(t_starts, "t_starts", sigmas.scalar_type());
  check_dtype(t_ends, "t_ends", sigmas.scalar_type());
  check_contiguous(sigmas, "sigmas");
  check_contiguous(t_starts, "t_starts");
  check_contiguous(t_ends, "t_ends");
  check_packed_info(packed_info, n_samples);
  p.n_rays = packed_info.size(0);
  p.early_stop_eps = early_stop_eps;
  p.sigmas = sigmas.const_data_ptr();
  p.t_starts = t_starts.const_data_ptr();
  p.t_ends = t_ends.const_data_ptr();
  p.packed_info = static_cast<const int64_t*>(packed_info.const_data_ptr());
  Tensor kept_info = empty_like_dtype(packed_info, {p.n_rays, 2});
  p.kept_info = static_cast<int64_t*>(kept_info.mutable_data_ptr());
  parallel_units(p.n_rays, kRayGrain, [&](int64_t begin, int64_t end) { kernels().visible_samples_count(p, begin, end); });
  int64_t n_kept = 0;
  for (int64_t ray = 0; ray < p.n_rays; ++ray) {
    p.kept_info[2 * ray] = n_kept;
    n_kept += p.kept_info[2 * ray + 1];
  }
  Tensor index = empty_like_dtype(packed_info, {n_kept});
  p.index = static_cast<int64_t*>(index.mutable_data_ptr());
  parallel_units(p.n_rays, kRayGrain, [&](int64_t begin, int64_t end) { kernels().visible_samples_write(p, begin, end); });
  return {index, kept_info};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) { m.impl("visible_samples", TORCH_BOX(&visible_samples_cpu)); }

}  // namespace hashgrid
