// pixel_loss on CUDA: checks, allocation and launch.
#include "ops/pixel_loss.h"
#include "ops/cuda/device.h"

namespace hashgrid {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> pixel_loss_cuda(const Tensor& colors, const Tensor& opacities,
                                                           const Tensor& background, const Tensor& targets,
                                                           const std::optional<Tensor>& n_rays, double beta) {
  const DeviceScope device(colors);
  device.check(opacities, "opacities");
  device.check(background, "background");
  device.check(targets, "targets");
  device.check(n_rays, "n_rays");
  PixelLoss result;
  PixelLossParams p = make_pixel_loss_params(colors, opacities, background, targets, n_rays, beta, &result);
  const int64_t n_chunks = (p.n_rays + kLossChunk - 1) / kLossChunk;
  Tensor sums = empty(colors, {2 * n_chunks}, ScalarType::Double);
  p.chunk_losses = static_cast<double*>(sums.mutable_data_ptr());
  p.chunk_errors = p.chunk_losses + n_chunks;
  launch_pixel_loss(p, device.stream());
  return result.all();
}

}  // namespace

HASHGRID_CUDA_LIBRARY(m) { m.impl("pixel_loss", TORCH_BOX(&pixel_loss_cuda)); }

}  // namespace hashgrid
