// window_samples: what the CPU and the CUDA op check and fill in alike.
#pragma once

#include "core/window_samples_params.h"
#include "ops/visible_samples.h"

namespace hashgrid {

// As make_visible_samples_params; `kept_info` is that of the window.
inline WindowSamplesParams make_window_samples_params(const Tensor& rays_o, const Tensor& rays_d, const Tensor& sigmas,
                                                      const Tensor& t_starts, const Tensor& t_ends,
                                                      const Tensor& packed_info, int64_t begin, int64_t end,
                                                      double early_stop_eps, Tensor* kept_info) {
  WindowSamplesParams p = {};
  static_cast<VisibleSamplesParams&>(p) =
      make_visible_samples_params(sigmas, t_starts, t_ends, packed_info, early_stop_eps, kept_info);
  check_shape(rays_o, "rays_o", {p.n_rays, 3});
  check_shape(rays_d, "rays_d", {p.n_rays, 3});
  check_dtype(rays_o, "rays_o", sigmas.scalar_type());
  check_dtype(rays_d, "rays_d", sigmas.scalar_type());
  check_contiguous(rays_o, "rays_o");
  check_contiguous(rays_d, "rays_d");
  STD_TORCH_CHECK(begin >= 0 && end >= begin, "`begin` and `end` must satisfy 0 <= begin <= end, got ", begin, " and ",
                  end);
  p.begin = begin;
  p.end = end;
  p.rays_o = rays_o.const_data_ptr();
  p.rays_d = rays_d.const_data_ptr();
  return p;
}

}  // namespace hashgrid
