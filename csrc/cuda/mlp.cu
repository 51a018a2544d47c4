// Multilayer perceptron on CUDA: the choice between tensor cores (mlp_fused.cuh) and the plain path (mlp_plain.cuh).
//
// Both add partial sums of parameter gradients in a fixed order, so that results have the same bits in every run.
#include "cuda/mlp_fused.cuh"
#include "cuda/mlp_plain.cuh"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kPackThreads = 128;

// Thread: a unit of PackedWeights, 16 bytes, of layer blockIdx.y / 2; odd blockIdx.y packs the transposed weight, for
// gradients. Units lie as [tiles of outputs, tiles of depth, lane], in the order in which the lanes of a product read
// them; values beyond the weight are zero. The first threads of a layer also copy its bias, padded with zeros. Threads
// share nothing, and every value is rounded to 16 bits here, once per call.
__global__ void mlp_pack_kernel(HASHGRID_PARAMS MlpParams p) {
  const MlpLayer& layer = p.layers[blockIdx.y / 2];
  const bool transposed = blockIdx.y % 2 != 0;
  const int64_t offset = transposed ? layer.packed_transposed : layer.packed_weight;
  const int n_columns = transposed ? layer.n_in : layer.n_out;
  const int n_depth = transposed ? layer.n_out : layer.n_in;
  const int unit = static_cast<int>(global_thread());
  if (offset < 0 || unit >= tiles_of(n_columns) * tiles_of(n_depth) * kWarpSize) return;
  const int lane = unit % kWarpSize, tile = unit / kWarpSize;
  const int column = tile / tiles_of(n_depth) * kTile + lane / 4;
  const int depth = tile % tiles_of(n_depth) * kTile + lane % 4 * 2;
  const float* weight = static_cast<const float*>(layer.weight);
  PackedWeights packed;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float pair[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int c = column + 8 * (i / 2), d = depth + 8 * (i % 2) + e;
      const bool inside = c < n_columns && d < n_depth;
      pair[e] = inside ? weight[transposed ? d * layer.n_in + c : c * layer.n_in + d] : 0.0f;
    }
    packed.values[i] = p.factors == MlpFactors::kFloat16 ? pack_pair<Float16>(pair[0], pair[1])
                                                         : pack_pair<BFloat16>(pair[0], pair[1]);
  }
  char* memory = static_cast<char*>(p.packed);
  reinterpret_cast<PackedWeights*>(memory + offset)[unit] = packed;
  if (transposed || unit >= tiles_of(n_columns) * kTile) return;
  const bool has_bias = layer.bias != nullptr && unit < n_columns;
  reinterpret_cast<float*>(memory + layer.packed_bias)[unit] =
      has_bias ? static_cast<const float*>(layer.bias)[unit] : 0.0f;
}

// One grid for all layers, as wide as the largest needs.
void launch_pack(const MlpParams& p, cudaStream_t stream) {
  int64_t units = 0;
  for (int l = 0; l < p.n_layers; ++l) {
    units = std::max<int64_t>(units, tiles_of(p.layers[l].n_in) * tiles_of(p.layers[l].n_out) * kWarpSize);
  }
  HASHGRID_LAUNCH(mlp_pack_kernel, blocks_of(units, kPackThreads, static_cast<unsigned>(2 * p.n_layers)), stream, p);
}

}  // namespace HASHGRID_ISA

using namespace HASHGRID_ISA;

bool has_tensor_cores() {
  static PerDevice known;
  return known.get([](int) {
    if (device_attribute<cudaDevAttrComputeCapabilityMajor>() < 8) return 0;
    cudaFuncAttributes attributes;
    check_cuda(cudaFuncGetAttributes(&attributes, mlp_pack_kernel), "cudaFuncGetAttributes");
    return attributes.ptxVersion >= 80 ? 1 : 0;
  }) != 0;
}

MlpWorkspace plan_mlp(MlpParams& p, bool backward, bool need_params) {
  p.halves = has_fused_layers(p);
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
  if (p.n_rows == 0) return clear_parameter_gradients(p, stream);
  if (p.grad_x == nullptr && p.grad_params == nullptr) return;
  if (p.dtype == DType::kFloat64) return launch_plain_backward<double>(p, stream);
  if (!p.halves) return launch_plain_backward<float>(p, stream);
  if (p.factors == MlpFactors::kFloat16) return launch_fused_backward<Float16>(p, stream);
  launch_fused_backward<BFloat16>(p, stream);
}

}  // namespace hashgrid
