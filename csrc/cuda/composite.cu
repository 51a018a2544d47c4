// Volume compositing on CUDA: one warp per ray, one lane per sample, 32 samples at a time.
//
// Sums along a ray are prefix sums of lanes in fp64, carried from one group of 32 samples to the next: few additions
// per sample, in an order that depends on nothing but the sample's place in its ray. Loads and stores of samples are
// consecutive; arrays of samples come as zeros, which stay where a sample is hidden. One code serves fp32, fp64 and,
// with dual numbers, the second order, of densities and of alphas (kAlphas); fp32 with three channels is specialised,
// other channel counts are a loop. Alphas are multiplied where densities are added: 1 - alpha may be 0.
//
// A ray that does not start where the one in front ends (the CPU op raises) is not followed: its outputs and the
// gradients of the samples it claims are NaN. Raising would need to wait for the device in every call.
#include "cuda/launch.cuh"

#include "core/composite_params.h"
#include "cuda/samples.cuh"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kThreads = 128;

// ---- groups of 32 samples ----------------------------------------------------------------------------------------

// One sample per lane.
template <typename V>
struct Group {
  typedef typename RealOf<V>::Type T;
  typedef typename SumOf<V>::Type A;
  LaneSample<V> sample;
  bool exists;
  bool counts;
  int n_counted;  // lanes whose samples count: the first ones
  V transmittance;
  V weight;  // 0 where the sample does not count
  A spread;  // sum w_j (m - m_j) over the samples in front
};

// What the groups in front leave behind, the same in every lane.
template <typename A, bool kAlphas>
struct GroupCarry {
  A in_front = A(kAlphas ? 1.0 : 0.0);  // transmittance with kAlphas, else thickness
  A weight = A(0.0);
  A spread = A(0.0);
  double middle = 0.0;  // of the latest sample
};

template <bool kAlphas, typename V>
__device__ inline V alpha_of(const LaneSample<V>& sample) {
  return kAlphas ? sample.thickness : -exponential_minus_one(-sample.thickness);
}

// The group that starts at sample `start` of a ray, front to back.
template <typename V, bool kAlphas>
__device__ inline Group<V> next_group(const CompositeParams& p, const RayRange& range, int64_t start,
                                      GroupCarry<typename SumOf<V>::Type, kAlphas>* carry) {
  typedef typename RealOf<V>::Type T;
  typedef typename SumOf<V>::Type A;
  const int lane = lane_index();
  // Lanes that do not count stay: they take part in every exchange below, with zeros.
  Group<V> g;
  g.exists = start + lane < range.count;
  const int64_t i = range.first + start + lane;
  g.sample = load_sample<V, kAlphas>(p.sigmas, p.tangent_sigmas, p.t_starts, p.t_ends, i, g.exists);
  g.transmittance = kAlphas ? lane_transmittance_of_alphas(g.sample.thickness, &carry->in_front)
                            : lane_transmittance(g.sample.thickness, &carry->in_front);
  g.n_counted = lanes_that_count(g.transmittance, g.exists, static_cast<T>(p.early_stop_eps));
  g.counts = lane < g.n_counted;
  g.weight = g.counts ? g.transmittance * alpha_of<kAlphas>(g.sample) : V(T(0));

  // Moving from one middle to the next moves every difference by the gap: no difference of two large sums.
  const A weight_up_to = carry->weight + sum_up_to_lane(A(g.weight));
  const double middle = static_cast<double>(g.sample.middle);
  const double gap = middle - from_lane_in_front(middle, carry->middle);
  const A weight_in_front = from_lane_in_front(weight_up_to, carry->weight);
  g.spread = carry->spread + sum_up_to_lane(g.counts ? weight_in_front * A(gap) : A(0.0));
  carry->weight = broadcast(weight_up_to, kWarpSize - 1);
  carry->spread = broadcast(g.spread, kWarpSize - 1);
  carry->middle = broadcast(middle, kWarpSize - 1);
  return g;
}

// ---- forward -----------------------------------------------------------------------------------------------------

// row[c] += sum w_i features[i, c] over the group's samples that count, in their order. Lanes take channels here: rows
// of features are read whole, and each element of `row` [n_features] belongs to one lane.
template <typename V>
__device__ inline void add_features(const CompositeParams& p, const V& weight, int n_counted, int64_t first_sample,
                                    typename RealOf<V>::Type* row) {
  typedef typename RealOf<V>::Type T;
  for (int64_t base = 0; base < p.n_features; base += kWarpSize) {
    const int64_t c = base + lane_index();
    const bool exists = c < p.n_features;
    T total = exists ? row[c] : T(0);
    for (int k = 0; k < n_counted; ++k) {
      const V w = broadcast(weight, k);
      if (!exists) continue;
      const int64_t i = (first_sample + k) * p.n_features + c;
      total += written(w * read_value<V>(p.features, p.tangent_features, i));
    }
    if (exists) row[c] = total;
  }
}

// Warp: one ray, front to back, 32 samples at a time, a lane for each; lanes exchange registers, nothing else is
// shared. Sums along the ray are scans over the lanes (next_group). Those over the ray are of each lane's samples in
// their order, then of the lanes by halves; with kC = 0 a lane takes a channel instead and adds samples in their order.
// Writes weights [n_samples], transmittances [n_samples] where they are asked for, ray_features [n_rays, n_features],
// the rest [n_rays]. kC: number of features, 0 when only known at run time.
template <typename V, int kC, bool kAlphas>
__global__ void composite_forward_kernel(HASHGRID_PARAMS CompositeParams p) {
  typedef typename RealOf<V>::Type T;
  typedef typename SumOf<V>::Type A;
  const int64_t ray = global_thread() / kWarpSize;
  if (ray >= p.n_rays) return;
  const int lane = lane_index();
  const RayRange range = ray_range(p.packed_info, p.n_samples, ray);
  const T nan = std::numeric_limits<T>::quiet_NaN();
  const int64_t count = range.valid ? range.count : 0;
  const int64_t n_features = kC > 0 ? kC : p.n_features;
  T* weights = static_cast<T*>(p.weights) + range.first;
  T* row = static_cast<T*>(p.ray_features) + ray * n_features;
  if (kC == 0 || !range.valid) {
    for (int64_t c = lane; c < n_features; c += kWarpSize) row[c] = range.valid ? T(0) : nan;
  }
  GroupCarry<A, kAlphas> carry;
  // Of this lane's samples; lanes are added up once, behind the last group.
  A depth = A(0.0), distortion = A(0.0);
  V fixed[kC > 0 ? kC : 1] = {};
  int64_t start = 0;
  for (bool visible = true; visible && start < count; start += kWarpSize) {
    const Group<V> g = next_group<V, kAlphas>(p, range, start, &carry);
    if (g.exists) weights[start + lane] = written(g.weight);
    if (p.transmittances != nullptr && g.counts) {
      static_cast<T*>(p.transmittances)[range.first + start + lane] = written(g.transmittance);
    }
    if (g.counts) {
      const A w = A(g.weight);
      depth += w * A(static_cast<double>(g.sample.middle));
      distortion += sample_distortion(w, g.spread, g.sample.step);
    }
    if constexpr (kC > 0) {
      const int64_t first_feature = (range.first + start + lane) * kC;
#pragma unroll
      for (int c = 0; c < kC; ++c) {
        if (g.counts) fixed[c] += g.weight * read_value<V>(p.features, p.tangent_features, first_feature + c);
      }
    } else {
      add_features<V>(p, g.weight, g.n_counted, range.first + start, row);
    }
    visible = g.n_counted == kWarpSize;
  }
  for (int64_t i = lane; !range.valid && i < range.count; i += kWarpSize) {
    weights[i] = nan;
    if (p.transmittances != nullptr) static_cast<T*>(p.transmittances)[range.first + i] = nan;
  }
  depth = sum_of_lanes(depth);
  distortion = sum_of_lanes(distortion);
  if constexpr (kC > 0) {
#pragma unroll
    for (int c = 0; c < kC; ++c) {
      const V total = sum_of_lanes(fixed[c]);
      if (lane == 0 && range.valid) row[c] = written(total);
    }
  }
  if (lane > 0) return;
  static_cast<T*>(p.opacities)[ray] = range.valid ? static_cast<T>(written(carry.weight)) : nan;
  static_cast<T*>(p.depths)[ray] = range.valid ? static_cast<T>(written(depth)) : nan;
  static_cast<T*>(p.distortion)[ray] = range.valid ? static_cast<T>(written(distortion)) : nan;
}

// ---- gradients ---------------------------------------------------------------------------------------------------

// Warp: one ray, 32 samples at a time, a lane for each; lanes exchange registers, nothing else is shared. Front to back
// for transmittance and spread, which go to `saved` [2, n_samples], then back to front for the sums over the samples
// behind, which are scans from the last lane on; each lane reads what it wrote itself. Writes grad_sigmas [n_samples]
// and grad_features [n_samples, n_features].
template <typename V, int kC, bool kAlphas>
__global__ void composite_backward_kernel(HASHGRID_PARAMS CompositeParams p) {
  typedef typename RealOf<V>::Type T;
  typedef typename SumOf<V>::Type A;
  const int64_t ray = global_thread() / kWarpSize;
  if (ray >= p.n_rays) return;
  const int lane = lane_index();
  const RayRange range = ray_range(p.packed_info, p.n_samples, ray);
  const int64_t count = range.valid ? range.count : 0;
  const int64_t n_features = kC > 0 ? kC : p.n_features;
  T* grad_sigmas = static_cast<T*>(p.grad_sigmas) + range.first;
  T* grad_features = static_cast<T*>(p.grad_features) + range.first * n_features;
  V* transmittances = static_cast<V*>(p.saved) + range.first;
  V* spreads = transmittances + p.n_samples;

  // Subtracting from the totals on the way back would lose the last bits, and turn an opaque ray into NaN.
  GroupCarry<A, kAlphas> carry;
  int64_t n_counted = 0;
  for (int64_t start = 0; start < count; start += kWarpSize) {
    const Group<V> g = next_group<V, kAlphas>(p, range, start, &carry);
    if (g.counts) {
      transmittances[start + lane] = g.transmittance;
      spreads[start + lane] = V(g.spread);
    }
    n_counted += g.n_counted;
    if (g.n_counted < kWarpSize) break;
  }
  if (!range.valid) {
    const T nan = std::numeric_limits<T>::quiet_NaN();
    for (int64_t i = lane; i < range.count; i += kWarpSize) grad_sigmas[i] = nan;
    for (int64_t i = lane; i < range.count * n_features; i += kWarpSize) grad_features[i] = nan;
    return;
  }

  const RayGradients<T> grads = {read_or_zero<T>(p.grad_opacities, ray), read_or_zero<T>(p.grad_depths, ray),
                                 read_or_zero<T>(p.grad_distortion, ray)};
  T fixed[kC > 0 ? kC : 1] = {};
  const T* row = fixed;
  if constexpr (kC > 0) {
#pragma unroll
    for (int c = 0; c < kC; ++c) fixed[c] = read_or_zero<T>(p.grad_ray_features, ray * kC + c);
  } else {
    row = p.grad_ray_features != nullptr ? static_cast<const T*>(p.grad_ray_features) + ray * n_features : nullptr;
  }
  RaySuffix<A> suffix;  // of the groups behind; `spread` and `middle` from their first sample
  const int64_t n_groups = (n_counted + kWarpSize - 1) / kWarpSize;
  for (int64_t start = (n_groups - 1) * kWarpSize; start >= 0; start -= kWarpSize) {
    const int64_t i = start + lane;
    const bool counts = i < n_counted;
    const LaneSample<V> sample =
        load_sample<V, kAlphas>(p.sigmas, p.tangent_sigmas, p.t_starts, p.t_ends, range.first + i, counts);
    const V transmittance = counts ? transmittances[i] : V(T(0));
    const V weight = counts ? transmittance * alpha_of<kAlphas>(sample) : V(T(0));

    // Each lane takes the features of its own sample: a dot product per sample needs no exchange.
    V grad_weight = V(T(0));
    if (counts) {
      grad_weight = V(read_or_zero<T>(p.grad_weights, range.first + i));
      const int64_t first_feature = (range.first + i) * n_features;
#pragma unroll(kC > 0 ? kC : 1)
      for (int64_t c = 0; c < n_features; ++c) {
        T grad_row = T(0);
        if (row != nullptr) {
          grad_row = row[c];
          grad_weight += V(grad_row) * read_value<V>(p.features, p.tangent_features, first_feature + c);
        }
        grad_features[i * n_features + c] = row != nullptr ? written(weight * V(grad_row)) : T(0);
      }
    }

    // The mirror image of next_group: sums over the samples behind.
    const A w = A(weight);
    const A weight_from = suffix.weight + sum_from_lane(w);
    const double middle = static_cast<double>(sample.middle);
    const double gap = from_lane_behind(middle, suffix.middle) - middle;
    const A weight_behind = from_lane_behind(weight_from, suffix.weight);
    const A spread_behind = suffix.spread + sum_from_lane(counts ? weight_behind * A(gap) : A(0.0));
    const A spread = A(counts ? spreads[i] : V(T(0))) + spread_behind;
    const A grad = weight_gradient(A(grad_weight), w, spread, sample.step, middle, grads);
    const A grad_transmittance =
        A(counts ? static_cast<double>(read_or_zero<T>(p.grad_transmittances, range.first + i)) : 0.0);
    A gradient_from;  // see thickness_gradient and alpha_gradient
    if constexpr (kAlphas) {
      const A alpha = A(sample.thickness);  // 0 in lanes without a sample: they pass on what is behind them
      const A term = grad_transmittance + (counts ? alpha * grad : A(0.0));
      gradient_from = recurrence_from_lane(A(1.0) - alpha, term, suffix.gradient);
    } else {
      A term = counts ? grad * w : A(0.0);
      if (p.grad_transmittances != nullptr && counts) term += A(transmittance) * grad_transmittance;
      gradient_from = suffix.gradient + sum_from_lane(term);
    }
    const A gradient_behind = from_lane_behind(gradient_from, suffix.gradient);
    if (counts && kAlphas) grad_sigmas[i] = written(V(A(transmittance) * (grad - gradient_behind)));
    if (counts && !kAlphas) {
      const V passed = exponential(-sample.thickness);
      const A result = grad * A(transmittance * passed) - gradient_behind;
      grad_sigmas[i] = written(V(result) * V(sample.step));
    }
    suffix.weight = broadcast(weight_from, 0);
    suffix.spread = broadcast(spread_behind, 0);
    suffix.gradient = broadcast(gradient_from, 0);
    suffix.middle = broadcast(middle, 0);
  }
}

// ---- choice of an instance ---------------------------------------------------------------------------------------

template <typename V, int kC, bool kOfAlphas>
struct Instance {
  typedef V Number;
  static constexpr int n_features = kC;
  static constexpr bool kAlphas = kOfAlphas;
};

// use(Instance<V, kC, kAlphas>)
template <bool kAlphas, typename Use>
void with_instance_of(const CompositeParams& p, Use use) {
  if (p.dtype == DType::kFloat64) {
    if (p.second_order) return use(Instance<Dual<double>, 0, kAlphas>());
    return use(Instance<double, 0, kAlphas>());
  }
  if (p.second_order) return use(Instance<Dual<float>, 0, kAlphas>());
  if (p.n_features == 3) return use(Instance<float, 3, kAlphas>());
  use(Instance<float, 0, kAlphas>());
}

template <typename Use>
void with_instance(const CompositeParams& p, Use use) {
  if (p.are_alphas) return with_instance_of<true>(p, use);
  with_instance_of<false>(p, use);
}

}  // namespace HASHGRID_ISA

using namespace HASHGRID_ISA;

void launch_composite_forward(const CompositeParams& p, cudaStream_t stream) {
  with_instance(p, [&](auto instance) {
    typedef decltype(instance) I;
    HASHGRID_LAUNCH_TOGETHER((composite_forward_kernel<typename I::Number, I::n_features, I::kAlphas>),
                             blocks_of(p.n_rays * kWarpSize, kThreads), stream, p);
  });
}

void launch_composite_backward(const CompositeParams& p, cudaStream_t stream) {
  with_instance(p, [&](auto instance) {
    typedef decltype(instance) I;
    HASHGRID_LAUNCH_TOGETHER((composite_backward_kernel<typename I::Number, I::n_features, I::kAlphas>),
                             blocks_of(p.n_rays * kWarpSize, kThreads), stream, p);
  });
}

}  // namespace hashgrid
