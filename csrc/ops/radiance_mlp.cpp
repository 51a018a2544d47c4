// radiance_mlp: checks, allocation and launch. Both networks are one to the kernels of mlp, which meet in between.
#include "ops/radiance_mlp.h"

#include "ops/mlp_cpu.h"

namespace hashgrid {
namespace {

Mlp make_radiance_mlp(const Tensor& x, const Tensor& ray_features, const Tensor& rays,
                      const std::vector<Tensor>& density_weights, const std::vector<Tensor>& color_weights,
                      int64_t output_activation, int64_t factors) {
  Mlp mlp = make_mlp(
      make_radiance_mlp_params(x, ray_features, rays, density_weights, color_weights, output_activation, factors));
  for (int64_t n = 0; n < mlp.p.n_rows; ++n) {
    STD_TORCH_CHECK(mlp.p.rays[n] >= 0 && mlp.p.rays[n] < mlp.p.n_rays, "`rays[", n, "]` must be in 0..",
                    mlp.p.n_rays - 1, ", the rows of `ray_features`, got ", mlp.p.rays[n]);
  }
  return mlp;
}

std::tuple<Tensor, Tensor> radiance_mlp_cpu(const Tensor& x, const Tensor& ray_features, const Tensor& rays,
                                            const std::vector<Tensor>& density_weights,
                                            const std::vector<Tensor>& color_weights, int64_t output_activation,
                                            int64_t factors) {
  Mlp mlp = make_radiance_mlp(x, ray_features, rays, density_weights, color_weights, output_activation, factors);
  MlpParams& p = mlp.p;
  Tensor sigmas = empty(x, {p.n_rows}), colors = empty(x, {p.n_rows, p.layers[p.n_layers - 1].n_out});
  if (p.n_rows == 0) return {sigmas, colors};
  p.sigmas = sigmas.mutable_data_ptr();
  p.y = colors.mutable_data_ptr();
  choose_block(mlp, MlpPass::kForward, false);
  pack_weights(mlp, x, true, false);
  run_with_scratch(kernels().mlp_forward, mlp, p.n_blocks, kForwardGrain);
  return {sigmas, colors};
}

std::tuple<Tensor, Tensor> radiance_mlp_backward_cpu(const Tensor& grad_sigmas, const Tensor& grad_colors,
                                                     const Tensor& x, const Tensor& ray_features, const Tensor& rays,
                                                     const std::vector<Tensor>& density_weights,
                                                     const std::vector<Tensor>& color_weights,
                                                     int64_t output_activation, int64_t factors, bool need_x,
                                                     bool need_params) {
  Mlp mlp = make_radiance_mlp(x, ray_features, rays, density_weights, color_weights, output_activation, factors);
  set_radiance_gradients(grad_sigmas, grad_colors, x, mlp.p);
  return run_backward(kernels().mlp_backward, MlpPass::kBackward, mlp, x, need_x, need_params);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) {
  m.impl("radiance_mlp", TORCH_BOX(&radiance_mlp_cpu));
  m.impl("radiance_mlp_backward", TORCH_BOX(&radiance_mlp_backward_cpu));
}

}  // namespace hashgrid
