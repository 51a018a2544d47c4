// Frequency encoding on CUDA. Forward: one thread per sine and cosine, which it stores as a pair; neighbours share
// their input. Backward: one thread per input, sums over its frequencies in order.
#include "cuda/launch.cuh"

#include "core/frequency_encode_params.h"
#include "core/frequency.h"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kThreads = 256;

// sin and cos of 2^k pi x, or of 2^k x.
template <typename T>
HASHGRID_HD void wave(T x, T scale, bool pi, T* sine, T* cosine) {
  if (pi) return sin_cos_pi(x * scale, sine, cosine);
  T high, low;
  divide_by_pi(x, &high, &low);
  sin_cos_pi(without_turns(high * scale, low * scale), sine, cosine);
}

// Thread: frequency i % n_frequencies of input i / n_frequencies. It writes the pair (sin, cos) at 2 i of y [n_inputs,
// n_frequencies, 2], one vector, next to its neighbour's. Threads share nothing; those of one input read the same x.
template <typename T>
__global__ void frequency_encode_forward_kernel(HASHGRID_PARAMS FrequencyEncodeParams p) {
  const int64_t i = global_thread();
  if (i >= p.n_inputs * p.n_frequencies) return;
  const T scale = static_cast<T>(p.scales[i % p.n_frequencies]);
  T pair[2];
  wave(static_cast<const T*>(p.x)[i / p.n_frequencies], scale, p.pi, &pair[0], &pair[1]);
  store_row<T, 2>(static_cast<T*>(p.y) + 2 * i, pair);
}

// Thread: input i of grad_x [n_inputs], from its row of grad_y [n_inputs, n_frequencies, 2]; threads share nothing. It
// takes sines and cosines again and adds up d x = sum_k 2^k pi (grad_sin cos - grad_cos sin) over the frequencies in
// order, in T; the factor pi, if there is one, comes last.
template <typename T>
__global__ void frequency_encode_backward_kernel(HASHGRID_PARAMS FrequencyEncodeParams p) {
  const int64_t i = global_thread();
  if (i >= p.n_inputs) return;
  const T x = static_cast<const T*>(p.x)[i];
  T total = T(0);
  for (int k = 0; k < p.n_frequencies; ++k) {
    const T scale = static_cast<T>(p.scales[k]);
    T sine, cosine, grad[2];
    wave(x, scale, p.pi, &sine, &cosine);
    load_row<T, 2>(static_cast<const T*>(p.grad_y) + 2 * (i * p.n_frequencies + k), grad);
    total += scale * (grad[0] * cosine - grad[1] * sine);
  }
  static_cast<T*>(p.grad_x)[i] = p.pi ? total * static_cast<T>(3.141592653589793) : total;
}

}  // namespace HASHGRID_ISA

using namespace HASHGRID_ISA;

void launch_frequency_encode_forward(const FrequencyEncodeParams& p, cudaStream_t stream) {
  const LaunchShape shape = blocks_of(p.n_inputs * p.n_frequencies, kThreads);
  if (p.dtype == DType::kFloat64) {
    HASHGRID_LAUNCH((frequency_encode_forward_kernel<double>), shape, stream, p);
  } else {
    HASHGRID_LAUNCH((frequency_encode_forward_kernel<float>), shape, stream, p);
  }
}

void launch_frequency_encode_backward(const FrequencyEncodeParams& p, cudaStream_t stream) {
  const LaunchShape shape = blocks_of(p.n_inputs, kThreads);
  if (p.dtype == DType::kFloat64) {
    HASHGRID_LAUNCH((frequency_encode_backward_kernel<double>), shape, stream, p);
  } else {
    HASHGRID_LAUNCH((frequency_encode_backward_kernel<float>), shape, stream, p);
  }
}

}  // namespace hashgrid
