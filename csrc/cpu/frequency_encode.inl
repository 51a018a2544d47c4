// Frequency encoding on the CPU. The arguments 2^k x of a block are laid out in output order first; sines and cosines
// are then taken of full vectors, whatever the number of frequencies. Without pi they are 2^k x / pi, see
// core/frequency.h: their whole turns come off vector by vector, then what the quotient is off by is added.
#include "core/frequency_encode_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int64_t kFrequencyBlock = 1024;  // arguments per block, more if a single input has more

// Ties to even, for any x.
static inline VecF round_even(VecF x) {
  const VecU sign = reinterpret_cast<VecU>(x) & 0x80000000u;
  const VecF magnitude = reinterpret_cast<VecF>(reinterpret_cast<VecU>(x) & 0x7fffffffu);
  const VecF rounded = (magnitude + 8388608.0f) - 8388608.0f;  // 2^23: no fraction bits are left
  const VecF value = magnitude < 8388608.0f ? rounded : magnitude;
  return reinterpret_cast<VecF>(reinterpret_cast<VecU>(value) | sign);
}

// The vector form of core/frequency.h.
static inline void sin_cos_pi(VecF x, VecF* sine, VecF* cosine) {
  const VecF turn = x - 2.0f * round_even(x * 0.5f);
  const VecF quadrant = round_even(turn * 2.0f);
  const VecF f = turn - quadrant * 0.5f;
  const VecF s = sin_pi_octant(f), c = cos_pi_octant(f);
  const VecI q = __builtin_convertvector(quadrant == quadrant ? quadrant : VecF{}, VecI);
  const VecI odd = (q & 1) != 0;
  const VecU sine_sign = reinterpret_cast<VecU>(q & 2) << 30;
  const VecU cosine_sign = reinterpret_cast<VecU>((q + 1) & 2) << 30;
  *sine = reinterpret_cast<VecF>(reinterpret_cast<VecU>(odd ? c : s) ^ sine_sign);
  *cosine = reinterpret_cast<VecF>(reinterpret_cast<VecU>(odd ? s : c) ^ cosine_sign);
}

// sin and cos of 2^k pi x, or of 2^k x.
static inline void wave(double x, double scale, bool pi, double* sine, double* cosine) {
  if (pi) return sin_cos_pi(x * scale, sine, cosine);
  double high, low;
  divide_by_pi(x, &high, &low);
  sin_cos_pi(without_turns(high * scale, low * scale), sine, cosine);
}

// Half turns of a block of inputs, [n_inputs, n_frequencies] and zeros for the last vector, which runs past them.
static inline void frequency_arguments(const FrequencyEncodeParams& p, const float* x, int64_t count, float* arguments,
                                       float* rests) {
  const int64_t n_frequencies = p.n_frequencies;
  for (int64_t j = 0; j < count; j += n_frequencies) {
    float value = x[j / n_frequencies], rest = 0.0f;
    if (!p.pi) divide_by_pi(value, &value, &rest);
    for (int64_t k = 0; k < n_frequencies; ++k) arguments[j + k] = value * p.scales[k];
    if (p.pi) continue;
    for (int64_t k = 0; k < n_frequencies; ++k) rests[j + k] = rest * p.scales[k];
  }
  for (int64_t j = count; j < count + kLanes; ++j) arguments[j] = rests[j] = 0.0f;
}

static inline VecF frequency_argument(const FrequencyEncodeParams& p, const float* arguments, const float* rests) {
  const VecF high = load(arguments);
  return p.pi ? high : high - 2.0f * round_even(high * 0.5f) + load(rests);
}

// Work units: inputs x [n_inputs]. One thread takes blocks of kFrequencyBlock / n_frequencies of them: their arguments
// are written to an array on its stack, in the order of y [n_inputs, n_frequencies, 2], and read back as vectors; sines
// and cosines are interleaved on the way out. Nothing is shared or added up. fp64 goes value by value.
static void frequency_encode_forward_range(const FrequencyEncodeParams& p, int64_t begin, int64_t end) {
  const int64_t n_frequencies = p.n_frequencies;
  if (p.dtype == DType::kFloat64) {
    const double* x = static_cast<const double*>(p.x);
    double* y = static_cast<double*>(p.y);
    for (int64_t i = begin; i < end; ++i) {
      double scale = 1.0;
      for (int64_t k = 0; k < n_frequencies; ++k, scale *= 2.0) {
        double* pair = y + (i * n_frequencies + k) * 2;
        wave(x[i], scale, p.pi, &pair[0], &pair[1]);
      }
    }
    return;
  }
  const float* x = static_cast<const float*>(p.x);
  const int64_t block = n_frequencies < kFrequencyBlock ? kFrequencyBlock / n_frequencies : 1;
  float arguments[kFrequencyBlock + kLanes], rests[kFrequencyBlock + kLanes];
  for (int64_t i = begin; i < end; i += block) {
    const int64_t count = min_count(block, end - i) * n_frequencies;
    frequency_arguments(p, x + i, count, arguments, rests);
    float* y = static_cast<float*>(p.y) + i * n_frequencies * 2;
    for (int64_t j = 0; j < count; j += kLanes) {
      VecF sine, cosine;
      sin_cos_pi(frequency_argument(p, arguments + j, rests + j), &sine, &cosine);
      const VecF low = permute<InterleaveLow>(sine, cosine), high = permute<InterleaveHigh>(sine, cosine);
      if (count - j >= kLanes) {
        store(y + 2 * j, low);
        store(y + 2 * j + kLanes, high);
      } else {
        float pairs[2 * kLanes];
        store(pairs, low);
        store(pairs + kLanes, high);
        std::memcpy(y + 2 * j, pairs, (count - j) * 2 * sizeof(float));
      }
    }
  }
}

// Work units: inputs, in the same blocks; writes grad_x [n_inputs]. An input's d x = sum_k 2^k pi (grad_sin cos -
// grad_cos sin) runs over its frequencies in order, in T; the terms are vector code over the block, kept on the stack.
static void frequency_encode_backward_range(const FrequencyEncodeParams& p, int64_t begin, int64_t end) {
  const double factor = p.pi ? 3.141592653589793 : 1.0;
  const int64_t n_frequencies = p.n_frequencies;
  if (p.dtype == DType::kFloat64) {
    const double* x = static_cast<const double*>(p.x);
    for (int64_t i = begin; i < end; ++i) {
      double total = 0.0, scale = 1.0;
      for (int64_t k = 0; k < n_frequencies; ++k, scale *= 2.0) {
        const double* grad = static_cast<const double*>(p.grad_y) + (i * n_frequencies + k) * 2;
        double sine, cosine;
        wave(x[i], scale, p.pi, &sine, &cosine);
        total += factor * scale * (grad[0] * cosine - grad[1] * sine);
      }
      static_cast<double*>(p.grad_x)[i] = total;
    }
    return;
  }
  const float* x = static_cast<const float*>(p.x);
  const int64_t block = n_frequencies < kFrequencyBlock ? kFrequencyBlock / n_frequencies : 1;
  float arguments[kFrequencyBlock + kLanes], rests[kFrequencyBlock + kLanes], terms[kFrequencyBlock + kLanes];
  for (int64_t i = begin; i < end; i += block) {
    const int64_t n_inputs = min_count(block, end - i);
    const int64_t count = n_inputs * n_frequencies;
    frequency_arguments(p, x + i, count, arguments, rests);
    const float* grad_y = static_cast<const float*>(p.grad_y) + i * n_frequencies * 2;
    for (int64_t j = 0; j < count; j += kLanes) {
      float pairs[2 * kLanes] = {};
      std::memcpy(pairs, grad_y + 2 * j, min_count(kLanes, count - j) * 2 * sizeof(float));
      const VecF low = load(pairs), high = load(pairs + kLanes);
      VecF sine, cosine;
      sin_cos_pi(frequency_argument(p, arguments + j, rests + j), &sine, &cosine);
      store(terms + j, permute<EvenLanes>(low, high) * cosine - permute<OddLanes>(low, high) * sine);
    }
    // Terms of an input lie side by side.
    for (int64_t n = 0; n < n_inputs; ++n) {
      float total = 0.0f;
      for (int64_t k = 0; k < n_frequencies; ++k) total += p.scales[k] * terms[n * n_frequencies + k];
      static_cast<float*>(p.grad_x)[i + n] = total * static_cast<float>(factor);
    }
  }
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
