// visible_samples: what the CPU and the CUDA op check and fill in alike.
#pragma once

#include "core/visible_samples_params.h"
#include "ops/rays.h"

namespace hashgrid {

// `kept_info` [R, 2] receives the first sample and the number of samples of each ray. That the rays lie back to back is
// left to the caller.
inline VisibleSamplesParams make_visible_samples_params(const Tensor& sigmas, const Tensor& t_starts,
                                                        const Tensor& t_ends, const Tensor& packed_info,
                                                        double early_stop_eps, Tensor* kept_info) {
  STD_TORCH_CHECK(sigmas.dim() == 1, "`sigmas` must have shape [S], got ", shape_of(sigmas));
  VisibleSamplesParams p = {};
  p.n_samples = sigmas.size(0);
  check_shape(t_starts, "t_starts", {p.n_samples});
  check_shape(t_ends, "t_ends", {p.n_samples});
  p.dtype = real_dtype_of(sigmas, "sigmas");
  check_dtype(t_starts, "t_starts", sigmas.scalar_type());
  check_dtype(t_ends, "t_ends", sigmas.scalar_type());
  check_contiguous(sigmas, "sigmas");
  check_contiguous(t_starts, "t_starts");
  check_contiguous(t_ends, "t_ends");
  p.packed_info = packed_info_data(packed_info);
  p.n_rays = packed_info.size(0);
  p.early_stop_eps = early_stop_eps;
  p.sigmas = sigmas.const_data_ptr();
  p.t_starts = t_starts.const_data_ptr();
  p.t_ends = t_ends.const_data_ptr();
  *kept_info = empty_like_dtype(packed_info, {p.n_rays, 2});
  p.kept_info = static_cast<int64_t*>(kept_info->mutable_data_ptr());
  return p;
}

}  // namespace hashgrid
