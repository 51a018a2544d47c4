// Multilayer perceptron on CUDA: the choice between tensor cores (mlp_fused.cuh) and the plain path (mlp_plain.cuh).
//
// Both add partial sums of parameter gradients in a fixed order, so that results have the same bits in every run.
#include "cuda/mlp_fused.cuh"
#include "cuda/mlp_plain.cuh"

namespace hashgrid {

using namespace HASHGRID_ISA;

// sm_75 has float16 products of half this depth, and none of bfloat16: both run in fp32 there, rounded alike.
MlpWorkspace plan_mlp(MlpParams& p, bool backward, bool need_params) {
  p.halves = p.factors != MlpFactors::kReal && widest_of(p) <= kMaxFusedWidth &&
             device_attribute(cudaDevAttrComputeCapabilityMajor) >= 8;
  return p.halves ? plan_fused(p, backward, need_params) : plan_plain(p, backward, need_params);
}

void launch_mlp_forward(const MlpParams& p, cudaStream_t stream) {
  if (p.n_rows == 0) return;
  if (p.dtype == DType::kFloat64) return launch_plain_forward<double>(p, stream);
  if (!p.halves) return launch_plain_forward<float>(p, stream);
  if (p.factors == MlpFactors::kFloat16) return launch_fused_forward<Float16>(p, stream);
  launch_fused_forward<BFloat16>(p, stream);
}

// Without rows, gradients of parameters are zero.
void launch_mlp_backward(const MlpParams& p, cudaStream_t stream) {
  if (p.grad_x == nullptr && p.grad_params == nullptr) return;
  if (p.n_rows == 0) {
    if (p.grad_params == nullptr) return;
    int64_t bytes = 0;
    for (int l = 0; l < p.n_layers; ++l) {
      bytes += int64_t{p.layers[l].n_out} * (p.layers[l].n_in + (p.layers[l].bias != nullptr ? 1 : 0)) *
               (p.dtype == DType::kFloat64 ? 8 : 4);
    }
    check_cuda(cudaMemsetAsync(p.grad_params, 0, static_cast<size_t>(bytes), stream), "cudaMemsetAsync");
    return;
  }
  if (p.dtype == DType::kFloat64) return launch_plain_backward<double>(p, stream);
  if (!p.halves) return launch_plain_backward<float>(p, stream);
  if (p.factors == MlpFactors::kFloat16) return launch_fused_backward<Float16>(p, stream);
  launch_fused_backward<BFloat16>(p, stream);
}

}  // namespace hashgrid
