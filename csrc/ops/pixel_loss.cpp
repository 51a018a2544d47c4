// pixel_loss: checks, allocation and launch.
#include "ops/pixel_loss.h"

#include "cpu/capability.h"
#include "cpu/kernels.h"

namespace hashgrid {
namespace {

constexpr int64_t kGrain = 4;  // chunks per unit

std::tuple<Tensor, Tensor, Tensor, Tensor> pixel_loss_cpu(const Tensor& colors, const Tensor& opacities,
                                                          const Tensor& background, const Tensor& targets,
                                                          const std::optional<Tensor>& n_rays, double beta) {
  PixelLoss result;
  PixelLossParams p = make_pixel_loss_params(colors, opacities, background, targets, n_rays, beta, &result);
  const int64_t n_chunks = (p.n_rays + kLossChunk - 1) / kLossChunk;
  std::vector<double> losses(n_chunks), errors(n_chunks);
  p.chunk_losses = losses.data();
  p.chunk_errors = errors.data();
  parallel_units(n_chunks, kGrain, [&](int64_t begin, int64_t end) { kernels().pixel_loss(p, begin, end); });
  kernels().pixel_loss_sum(p, 0, 1);
  return result.all();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) { m.impl("pixel_loss", TORCH_BOX(&pixel_loss_cpu)); }

}  // namespace hashgrid
