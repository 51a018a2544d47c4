// Volume compositing on the CPU.
//
// Rays are taken in groups of about kCompositeGroup samples. The exponentials of a group are vector code over its flat
// samples, the sums along each ray are scalar. One code serves fp32, fp64 and, with dual numbers, the second order.
#include "core/composite_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

// The per-sample rows of a group of rays.
template <typename V>
struct CompositeScratch {
  V* thickness;      // sigma dt; then unused
  V* transmittance;  // holds the sums of thickness in front before it is exponentiated
  V* alpha;          // 1 - exp(-sigma dt), or as given
  V* passed;         // 1 - alpha
  V* weight;
  V* spread;
};

// Of the calling thread, one row after the other.
template <typename V>
static inline CompositeScratch<V> composite_scratch(const CompositeParams& p) {
  V* rows = static_cast<V*>(p.scratch);
  const int64_t n = p.scratch_capacity;
  return {rows, rows + n, rows + 2 * n, rows + 3 * n, rows + 4 * n, rows + 5 * n};
}

// exp(x) and exp(x) - 1, each to about one rounding; x in [-inf, 88], NaN stays NaN.
static inline void exponentials(VecF x, VecF* exp, VecF* exp_minus_one) {
  x = clamp(x, -88.1f, 88.0f);
  VecI n;
  const VecF whole = round_down(x * 1.44269504f + 0.5f, &n);
  const VecF r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;  // ln 2 in two parts (Cody & Waite)
  VecF q = splat(1.0f / 5040.0f);
  q = q * r + 1.0f / 720.0f;
  q = q * r + 1.0f / 120.0f;
  q = q * r + 1.0f / 24.0f;
  q = q * r + 1.0f / 6.0f;
  q = q * r + 0.5f;
  const VecF reduced = q * (r * r) + r;  // exp(r) - 1
  const VecF scale = reinterpret_cast<VecF>((n + 127) << 23);
  *exp = scale * reduced + scale;
  *exp_minus_one = scale * reduced + (scale - 1.0f);
}

// transmittance = exp(-transmittance), alpha and passed from thickness. Rows are padded to whole vectors.
static void exponentiate(const CompositeScratch<float>& s, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    VecF transmittance, passed, negative_alpha, unused;
    exponentials(-load(s.transmittance + i), &transmittance, &unused);
    exponentials(-load(s.thickness + i), &passed, &negative_alpha);
    store(s.transmittance + i, transmittance);
    store(s.passed + i, passed);
    store(s.alpha + i, -negative_alpha);
  }
}

// fp64 and dual numbers, sample by sample.
template <typename V>
static void exponentiate(const CompositeScratch<V>& s, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    s.transmittance[i] = exponential(-s.transmittance[i]);
    s.passed[i] = exponential(-s.thickness[i]);
    s.alpha[i] = -exponential_minus_one(-s.thickness[i]);
  }
}

// Calls body(ray, first, count, offset) for each ray; `offset` is where its samples lie in the scratch rows, with
// transmittance, alpha and passed ready.
template <typename V, typename Body>
static inline void for_each_ray(const CompositeParams& p, int64_t begin, int64_t end, const Body& body) {
  typedef typename RealOf<V>::Type T;
  typedef typename SumOf<V>::Type A;
  const T* t_starts = static_cast<const T*>(p.t_starts);
  const T* t_ends = static_cast<const T*>(p.t_ends);
  const CompositeScratch<V> s = composite_scratch<V>(p);
  for (int64_t ray = begin; ray < end;) {
    const int64_t first = p.packed_info[2 * ray];
    int64_t count = 0, next = ray;
    // Sums in front of each sample of the group, ray by ray; the loop below the last ray makes vectors of them.
    do {
      const int64_t n = p.packed_info[2 * next + 1];
      if (p.are_alphas) {
        A in_front = A(1.0);
        for (int64_t i = count; i < count + n; ++i) {
          s.alpha[i] = read_value<V>(p.sigmas, p.tangent_sigmas, first + i);
          s.passed[i] = V(T(1)) - s.alpha[i];
          s.transmittance[i] = V(in_front);
          in_front = in_front * (A(1.0) - A(s.alpha[i]));
        }
      } else {
        A in_front = A(0.0);
        for (int64_t i = count; i < count + n; ++i) {
          const V sigma = read_value<V>(p.sigmas, p.tangent_sigmas, first + i);
          s.thickness[i] = sigma * V(t_ends[first + i] - t_starts[first + i]);
          s.transmittance[i] = V(in_front);
          in_front += A(s.thickness[i]);
        }
      }
      count += n;
      ++next;
    } while (next < end && count + p.packed_info[2 * next + 1] <= kCompositeGroup);
    if (!p.are_alphas) {
      for (int64_t i = count; i < count + kLanes; ++i) s.thickness[i] = s.transmittance[i] = V(T(0));
      exponentiate(s, count);
    }
    for (int64_t offset = 0; ray < next; ++ray) {
      const int64_t n = p.packed_info[2 * ray + 1];
      body(ray, first + offset, n, offset);
      offset += n;
    }
  }
}

// Walks the samples of a ray that count, front to back; returns their number.
template <typename V, typename T, typename Use>
static inline int64_t walk_forward(const CompositeParams& p, const CompositeScratch<V>& s, int64_t first, int64_t count,
                                   int64_t offset, RaySums<typename SumOf<V>::Type>* sums, const Use& use) {
  const T* t_starts = static_cast<const T*>(p.t_starts) + first;
  const T* t_ends = static_cast<const T*>(p.t_ends) + first;
  const T eps = static_cast<T>(p.early_stop_eps);
  int64_t i = 0;
  for (; i < count; ++i) {
    const V transmittance = s.transmittance[offset + i];
    if (!(primal(transmittance) >= eps)) break;
    const T middle = (t_starts[i] + t_ends[i]) / T(2);
    const V weight = composite_step<V, T>(transmittance, s.alpha[offset + i], t_ends[i] - t_starts[i], middle, sums);
    use(i, weight);
  }
  return i;
}

// kC: number of features, 0 when only known at run time.
template <typename V, int kC>
static void composite_forward_typed(const CompositeParams& p, int64_t begin, int64_t end) {
  typedef typename RealOf<V>::Type T;
  typedef typename SumOf<V>::Type A;
  const int64_t n_features = kC > 0 ? kC : p.n_features;
  const CompositeScratch<V> s = composite_scratch<V>(p);
  for_each_ray<V>(p, begin, end, [&](int64_t ray, int64_t first, int64_t count, int64_t offset) {
    RaySums<A> sums;
    T* weights = static_cast<T*>(p.weights) + first;
    T* row = static_cast<T*>(p.ray_features) + ray * n_features;
    V fixed[kC > 0 ? kC : 1] = {};
    for (int64_t c = 0; c < n_features; ++c) row[c] = T(0);
    const int64_t n = walk_forward<V, T>(p, s, first, count, offset, &sums, [&](int64_t i, V weight) {
      weights[i] = written(weight);
      for (int64_t c = 0; c < n_features; ++c) {
        const V product = weight * read_value<V>(p.features, p.tangent_features, (first + i) * n_features + c);
        if constexpr (kC > 0) {
          fixed[c] += product;
        } else {
          row[c] += written(product);
        }
      }
    });
    // Hidden samples: zeros, not what happened to be there.
    for (int64_t i = n; i < count; ++i) weights[i] = T(0);
    if (p.transmittances != nullptr) {
      T* transmittances = static_cast<T*>(p.transmittances) + first;
      for (int64_t i = 0; i < n; ++i) transmittances[i] = written(s.transmittance[offset + i]);
      for (int64_t i = n; i < count; ++i) transmittances[i] = T(0);
    }
    if constexpr (kC > 0) {
      for (int c = 0; c < kC; ++c) row[c] = written(fixed[c]);
    }
    static_cast<T*>(p.opacities)[ray] = static_cast<T>(written(sums.weight));
    static_cast<T*>(p.depths)[ray] = static_cast<T>(written(sums.depth));
    static_cast<T*>(p.distortion)[ray] = static_cast<T>(written(sums.distortion));
  });
}

// kC: as above. kAlphas: `sigmas` are alphas, and gradients go back through products of 1 - alpha, which may be 0.
template <typename V, int kC, bool kAlphas>
static void composite_backward_instance(const CompositeParams& p, int64_t begin, int64_t end) {
  typedef typename RealOf<V>::Type T;
  typedef typename SumOf<V>::Type A;
  const int64_t n_features = kC > 0 ? kC : p.n_features;
  const CompositeScratch<V> s = composite_scratch<V>(p);
  const T* t_starts = static_cast<const T*>(p.t_starts);
  const T* t_ends = static_cast<const T*>(p.t_ends);
  for_each_ray<V>(p, begin, end, [&](int64_t ray, int64_t first, int64_t count, int64_t offset) {
    T* grad_sigmas = static_cast<T*>(p.grad_sigmas) + first;
    T* grad_features = static_cast<T*>(p.grad_features) + first * n_features;
    RaySums<A> sums;
    const int64_t n = walk_forward<V, T>(p, s, first, count, offset, &sums, [&](int64_t i, V weight) {
      s.weight[offset + i] = weight;
      s.spread[offset + i] = V(sums.spread);
    });
    for (int64_t i = n; i < count; ++i) grad_sigmas[i] = T(0);
    for (int64_t i = n * n_features; i < count * n_features; ++i) grad_features[i] = T(0);

    const RayGradients<T> grads = {read_or_zero<T>(p.grad_opacities, ray), read_or_zero<T>(p.grad_depths, ray),
                                   read_or_zero<T>(p.grad_distortion, ray)};
    T fixed[kC > 0 ? kC : 1] = {};
    const T* row = fixed;
    if constexpr (kC > 0) {
      for (int c = 0; c < kC; ++c) fixed[c] = read_or_zero<T>(p.grad_ray_features, ray * kC + c);
    } else {
      row = p.grad_ray_features != nullptr ? static_cast<const T*>(p.grad_ray_features) + ray * n_features : nullptr;
    }
    const T* grad_transmittances =
        p.grad_transmittances != nullptr ? static_cast<const T*>(p.grad_transmittances) + first : nullptr;
    RaySuffix<A> suffix;
    for (int64_t i = n - 1; i >= 0; --i) {
      const V weight = s.weight[offset + i];
      V grad_weight = V(read_or_zero<T>(p.grad_weights, first + i));
      if (row != nullptr) {
        for (int64_t c = 0; c < n_features; ++c) {
          const int64_t k = i * n_features + c;
          grad_weight += V(row[c]) * read_value<V>(p.features, p.tangent_features, first * n_features + k);
          grad_features[k] = written(weight * V(row[c]));
        }
      } else {
        for (int64_t c = 0; c < n_features; ++c) grad_features[i * n_features + c] = T(0);
      }
      const T step = t_ends[first + i] - t_starts[first + i];
      const T middle = (t_starts[first + i] + t_ends[first + i]) / T(2);
      const A grad =
          weight_gradient_reverse<V, T, A>(weight, s.spread[offset + i], grad_weight, step, middle, grads, &suffix);
      const V transmittance = s.transmittance[offset + i], passed = s.passed[offset + i];
      if constexpr (kAlphas) {
        const A grad_alpha = alpha_gradient(transmittance, s.alpha[offset + i], passed, grad, &suffix.gradient);
        grad_sigmas[i] = written(V(grad_alpha));
        if (grad_transmittances != nullptr) suffix.gradient += A(static_cast<double>(grad_transmittances[i]));
      } else {
        const A grad_thickness = thickness_gradient(transmittance, passed, weight, grad, &suffix.gradient);
        grad_sigmas[i] = written(V(grad_thickness) * V(step));
        if (grad_transmittances != nullptr)
          suffix.gradient += A(transmittance) * A(static_cast<double>(grad_transmittances[i]));
      }
    }
  });
}

template <typename V, int kC>
static void composite_backward_typed(const CompositeParams& p, int64_t begin, int64_t end) {
  if (p.are_alphas) return composite_backward_instance<V, kC, true>(p, begin, end);
  composite_backward_instance<V, kC, false>(p, begin, end);
}

// Work units: rays. One thread takes a range of them, in groups of about kCompositeGroup samples that have a scratch of
// its own, [kCompositeRows, scratch_capacity]; rays share nothing. Samples of a ray lie side by side, and its sums run
// front to back in their order: thickness (or transmittance of alphas), opacity, depth and distortion in fp64, features
// in T. Writes weights and transmittances [n_samples], features [n_rays, n_features], the rest [n_rays].
static void composite_forward_range(const CompositeParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kFloat64) {
    if (p.second_order) return composite_forward_typed<Dual<double>, 0>(p, begin, end);
    return composite_forward_typed<double, 0>(p, begin, end);
  }
  if (p.second_order) return composite_forward_typed<Dual<float>, 0>(p, begin, end);
  if (p.n_features == 3) return composite_forward_typed<float, 3>(p, begin, end);
  composite_forward_typed<float, 0>(p, begin, end);
}

// Work units: rays, in the same groups. A ray is walked front to back for weights and spreads, which stay in the
// scratch, then back to front for the sums over the samples behind, in fp64. Writes grad_sigmas [n_samples] and
// grad_features [n_samples, n_features], zeros behind the last sample that counts; no two rays write the same place.
static void composite_backward_range(const CompositeParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kFloat64) {
    if (p.second_order) return composite_backward_typed<Dual<double>, 0>(p, begin, end);
    return composite_backward_typed<double, 0>(p, begin, end);
  }
  if (p.second_order) return composite_backward_typed<Dual<float>, 0>(p, begin, end);
  if (p.n_features == 3) return composite_backward_typed<float, 3>(p, begin, end);
  composite_backward_typed<float, 0>(p, begin, end);
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
