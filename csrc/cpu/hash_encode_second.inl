// Second order of the hash encoding in fp32: a cotangent v of the position gradient pulled back to grad_y, positions
// and table, what an eikonal loss needs. kLanes points advance together, level by level, as in hash_encode.inl.
//
// With w_c the weight of corner c, q_c = grad_y . T_c and a_c = sum_d v_d dw_c/dx_d, the three are sum_c a_c T_c,
// sum_c q_c grad a_c and a_c grad_y. Factors of w_c are carried as value and derivative along v; the derivative of
// their product is a_c. Two cores, D = 3, L = 16, F = 2, T = 18: see docs/kernels.md.
#include "core/hash_encode_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

// One axis of kLanes cells. A tangent is the derivative along v.
struct AxisGroup {
  VecF upper, lower;          // weight of the upper and the lower vertex
  VecF tangent;               // of upper; lower has its negative
  VecF first, first_tangent;  // d upper / dx and its tangent
};

template <int kDims>
static inline void load_axes(const HashEncodeParams& p, const AxisLevel& level, const CornerGroup& group, int64_t i,
                             AxisGroup* axes) {
#pragma GCC unroll 8
  for (int d = 0; d < kDims; ++d) {
    const VecF f = load(group.fraction[d]), scale = splat(level.scale[d]);
    const VecF v = load(p.soa_cotangents + d * p.soa_stride + i);
    const bool smooth = p.interpolation == Interpolation::kSmoothstep;
    axes[d].upper = smooth ? f * f * (3.0f - 2.0f * f) : f;
    axes[d].lower = 1.0f - axes[d].upper;
    axes[d].first = smooth ? 6.0f * f * (1.0f - f) * scale : scale;
    axes[d].first_tangent = smooth ? (6.0f - 12.0f * f) * scale * scale * v : splat(0.0f);
    axes[d].tangent = axes[d].first * v;
  }
}

// a_c of all corners into the group's weights.
template <int kDims>
static inline void store_along(const AxisGroup* axes, CornerGroup* group) {
  constexpr int kCorners = 1 << kDims;
  VecF weight[kCorners], along[kCorners];
  weight[0] = splat(1.0f);
  along[0] = splat(0.0f);
#pragma GCC unroll 8
  for (int d = 0; d < kDims; ++d) {
    const int half = 1 << d;
#pragma GCC unroll 64
    for (int c = 0; c < half; ++c) {
      const VecF change = weight[c] * axes[d].tangent;
      along[c + half] = along[c] * axes[d].upper + change;
      along[c] = along[c] * axes[d].lower - change;
      weight[c + half] = weight[c] * axes[d].upper;
      weight[c] = weight[c] * axes[d].lower;
    }
  }
#pragma GCC unroll 16
  for (int c = 0; c < kCorners; ++c) store(group->corner[c].weight, along[c]);
}

template <int kDims>
static void weigh_along(const HashEncodeParams& p, const AxisLevel& level, int64_t i, CornerGroup* group) {
  AxisGroup axes[kDims];
  load_axes<kDims>(p, level, *group, i, axes);
  store_along<kDims>(axes, group);
}

// sum_c q_c grad a_c of kLanes points, added to soa_grad_positions; a_c into the group's weights.
template <int kDims>
static void add_second_position_gradient(const HashEncodeParams& p, const AxisLevel& level, const float (*dots)[kLanes],
                                         int64_t i, CornerGroup* group) {
  AxisGroup axes[kDims];
  load_axes<kDims>(p, level, *group, i, axes);
  store_along<kDims>(axes, group);
#pragma GCC unroll 8
  for (int e = 0; e < kDims; ++e) {
    VecF total = splat(0.0f), tangent = splat(0.0f);
#pragma GCC unroll 8
    for (int c = 0; c < 1 << kDims; ++c) {
      if ((c >> e) & 1) continue;
      VecF value = load(dots[c | 1 << e]) - load(dots[c]), along = splat(0.0f);
#pragma GCC unroll 8
      for (int d = 0; d < kDims; ++d) {
        if (d == e) continue;
        const bool up = (c >> d) & 1;
        const VecF factor = up ? axes[d].upper : axes[d].lower;
        const VecF change = value * axes[d].tangent;
        along = up ? along * factor + change : along * factor - change;
        value = value * factor;
      }
      total += value;
      tangent += along;
    }
    float* out = p.soa_grad_positions + e * p.soa_stride + i;
    store(out, load(out) + (total * axes[e].first_tangent + tangent * axes[e].first));
  }
}

struct SecondKernels {
  void (*weigh)(const HashEncodeParams&, const AxisLevel&, int64_t, CornerGroup*);
  void (*add_position_gradient)(const HashEncodeParams&, const AxisLevel&, const float (*)[kLanes], int64_t,
                                CornerGroup*);
};

template <int kDims>
static constexpr SecondKernels second_kernels() {
  return {&weigh_along<kDims>, &add_second_position_gradient<kDims>};
}

static SecondKernels pick_second_kernels(int n_dims) {
  constexpr SecondKernels kByDims[kMaxDims] = {second_kernels<1>(), second_kernels<2>(), second_kernels<3>(),
                                               second_kernels<4>(), second_kernels<5>(), second_kernels<6>(),
                                               second_kernels<7>()};
  return kByDims[n_dims - 1];
}

// Work units: chunks of kLevelChunk points of level p.current_level; the caller goes from level to level. One thread
// takes kLanes points at a time; fills second_features [n_levels, n_points, F] and adds to soa_grad_positions [n_dims,
// soa_stride], if gradients of positions are asked for. Sums over corners are fp32, in their order, those over levels
// in the order of passes.
static void hash_encode_second_level_range(const HashEncodeParams& p, int64_t begin, int64_t end) {
  const ComputeCorners compute = pick_compute_corners(p.n_dims);
  const RowKernels rows_of = pick_row_kernels(p);
  const SecondKernels second = pick_second_kernels(p.n_dims);
  const int row_bytes = static_cast<int>(p.n_features * element_size(p.table_dtype));
  const int n_corners = static_cast<int>(n_corners_of(p, p.n_dims));
  const AxisLevel level = axis_level(p, p.current_level);
  const char* rows = level_rows(p, level);
  const int64_t offset = p.current_level * p.level_stride;
  float dots[kMaxCorners][kLanes] = {};
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t first = chunk * kLevelChunk;
    for_each_group(p, level, compute, first, min_count(first + kLevelChunk, p.n_points), rows, row_bytes,
                   [&](CornerGroup& group, int64_t i, int count) {
                     if (p.grad_positions == nullptr) {
                       second.weigh(p, level, i, &group);
                     } else {
                       rows_of.dot_rows(group, n_corners, rows, p.level_features + offset + i * p.n_features, count,
                                        dots);
                       second.add_position_gradient(p, level, dots, i, &group);
                     }
                     rows_of.interpolate(group, n_corners, rows, count, p.second_features + offset + i * p.n_features);
                   });
  }
}

// Work units: points: second_features to grad_grad_y [n_points, n_levels * F], and the sums over levels to
// grad_positions.
static void hash_encode_finish_second_range(const HashEncodeParams& p, int64_t begin, int64_t end) {
  write_features(p, p.second_features, 0.0f, p.grad_grad_y, begin, end);
  if (p.grad_positions != nullptr) hash_encode_finish_backward_positions_range(p, begin, end);
}

// Work units: (level, shard), as of the table gradient, with a_c in place of a corner's weight. Without a cotangent of
// positions, and in fp64, point by point.
static void hash_encode_second_table_range(const HashEncodeParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kFloat64) return second_table<double>(p, begin, end);
  if (p.soa_cotangents == nullptr) return second_table<float>(p, begin, end);
  const SecondKernels second = pick_second_kernels(p.n_dims);
  scatter_units(p, begin, end,
                [&](const AxisLevel& level, int64_t i, CornerGroup* group) { second.weigh(p, level, i, group); });
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
