// Multiresolution hash encoding one point at a time: fp64, level weights, and what is rare of the second order.
//
// T is the type of positions and gradients. Products and a point's sums are in double for either: the second order
// adds up to 2^D F L terms of either sign. Only the cell is found in T, so that every pass finds the same one.
#include "core/hash_encode_params.h"

namespace hashgrid {
namespace HASHGRID_ISA {

// Number i of the table, in double.
static inline double load_feature(const void* table, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kFloat64:
      return static_cast<const double*>(table)[i];
    case DType::kFloat16:
      return float16_to_float(static_cast<const uint16_t*>(table)[i]);
    case DType::kBFloat16:
      return bfloat16_to_float(static_cast<const uint16_t*>(table)[i]);
    default:
      return static_cast<const float*>(table)[i];
  }
}

// All levels of a grid, of either kind.
struct AxisLevels {
  AxisLevel level[kMaxLevels];
};

static AxisLevels all_levels(const HashEncodeParams& p) {
  AxisLevels levels;
  for (int l = 0; l < p.n_levels; ++l) levels.level[l] = axis_level(p, l);
  return levels;
}

// Points [begin, end), each on its own: levels, then corners, then features in order, added up in the row of y.
template <typename T>
static void scalar_forward(const HashEncodeParams& p, int64_t begin, int64_t end) {
  const AxisLevels levels = all_levels(p);
  const uint32_t n_corners = n_corners_of(p, p.n_dims);
  const int64_t row = static_cast<int64_t>(p.n_levels) * p.n_features;
  for (int64_t n = begin; n < end; ++n) {
    T* y = static_cast<T*>(p.y) + n * row;
    const GridPoint<T, 0> point = load_point<T>(p, n);
    const bool finite = point.state != PointState::kNotFinite;
    // Outside of the bounds features are zero, of what is not finite NaN.
    for (int64_t k = 0; k < row; ++k) y[k] = finite ? T(0) : std::numeric_limits<T>::quiet_NaN();
    if (point.state != PointState::kInside) continue;
    for (int l = 0; l < p.n_levels; ++l) {
      const GridCell<double, 0> cell = find_cell<double>(p, levels.level[l], point);
      for (uint32_t c = 0; c < n_corners; ++c) {
        const double weight = corner_weight(cell.weights, c, -1, -1) * level_weight<T>(p, l);
        const int64_t first = first_feature(p, levels.level[l], cell, c);
        for (int f = 0; f < p.n_features; ++f) {
          y[l * p.n_features + f] += weight * load_feature(p.table, p.table_dtype, first + f);
        }
      }
    }
  }
}

// A unit zeroes what it owns, before it adds to it.
template <typename T>
static inline void zero_shard(const HashEncodeParams& p, const Shard& shard) {
  const GridLevel& level = p.levels[shard.level];
  T* grad = static_cast<T*>(p.grad_table);
  for (int64_t i = (level.offset + shard.low) * p.n_features; i < (level.offset + shard.high) * p.n_features; ++i) {
    grad[i] = T(0);
  }
}

// Units (level, shard): all points in order, of which the shard's rows are added to.
template <typename T>
static void scalar_backward_table(const HashEncodeParams& p, int64_t begin, int64_t end) {
  const uint32_t n_corners = n_corners_of(p, p.n_dims);
  const int64_t row = static_cast<int64_t>(p.n_levels) * p.n_features;
  T* grad_table = static_cast<T*>(p.grad_table);
  for (int64_t unit = begin; unit < end; ++unit) {
    const Shard shard = shard_of(p, unit);
    const AxisLevel level = axis_level(p, shard.level);
    if (!p.accumulate) zero_shard<T>(p, shard);
    for (int64_t n = 0; n < p.n_points; ++n) {
      const GridPoint<T, 0> point = load_point<T>(p, n);
      if (point.state != PointState::kInside) continue;
      const GridCell<double, 0> cell = find_cell<double>(p, level, point);
      const T* grad_y = static_cast<const T*>(p.grad_y) + n * row + shard.level * p.n_features;
      for (uint32_t c = 0; c < n_corners; ++c) {
        const uint32_t entry = grid_index(level, p.n_dims, cell.base, c);
        if (entry < shard.low || entry >= shard.high) continue;  // another unit's
        const double weight = corner_weight(cell.weights, c, -1, -1) * level_weight<T>(p, shard.level);
        T* target = grad_table + (level.offset + entry) * p.n_features;
        for (int f = 0; f < p.n_features; ++f) target[f] += weight * grad_y[f];
      }
    }
  }
}

// Points [begin, end), each on its own: a dot product over features per corner, added up over corners and levels in
// order in the row of grad_positions.
template <typename T>
static void scalar_backward_positions(const HashEncodeParams& p, int64_t begin, int64_t end) {
  const AxisLevels levels = all_levels(p);
  const uint32_t n_corners = n_corners_of(p, p.n_dims);
  const int64_t row = static_cast<int64_t>(p.n_levels) * p.n_features;
  for (int64_t n = begin; n < end; ++n) {
    T* grad_x = static_cast<T*>(p.grad_positions) + n * p.n_dims;
    const T* grad_y = static_cast<const T*>(p.grad_y) + n * row;
    for (int d = 0; d < p.n_dims; ++d) grad_x[d] = T(0);
    const GridPoint<T, 0> point = load_point<T>(p, n);
    if (point.state != PointState::kInside) continue;
    for (int l = 0; l < p.n_levels; ++l) {
      const GridCell<double, 0> cell = find_cell<double>(p, levels.level[l], point);
      double factor[kMaxDims];  // d position in the cell / d x, times the level's weight
      for (int d = 0; d < p.n_dims; ++d) factor[d] = level_weight<T>(p, l) * levels.level[l].scale[d];
      for (uint32_t c = 0; c < n_corners; ++c) {
        const int64_t first = first_feature(p, levels.level[l], cell, c);
        double dot = 0.0;
        for (int f = 0; f < p.n_features; ++f) {
          dot += grad_y[l * p.n_features + f] * load_feature(p.table, p.table_dtype, first + f);
        }
        for (int d = 0; d < p.n_dims; ++d) {
          if (!point.stopped[d]) grad_x[d] += factor[d] * corner_weight_first(cell.weights, c, d) * dot;
        }
      }
    }
  }
}

// A chunk's sums [n_levels], over its points in order; of a point, over corners and features.
template <typename T>
static void backward_level_weights(const HashEncodeParams& p, int64_t begin, int64_t end) {
  const AxisLevels levels = all_levels(p);
  const uint32_t n_corners = n_corners_of(p, p.n_dims);
  const int64_t row = static_cast<int64_t>(p.n_levels) * p.n_features;
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    double* sums = p.grad_level_chunks + chunk * p.n_levels;
    for (int l = 0; l < p.n_levels; ++l) sums[l] = 0.0;
    const int64_t last = min_count((chunk + 1) * kLevelWeightChunk, p.n_points);
    for (int64_t n = chunk * kLevelWeightChunk; n < last; ++n) {
      const GridPoint<T, 0> point = load_point<T>(p, n);
      if (point.state != PointState::kInside) continue;
      const T* grad_y = static_cast<const T*>(p.grad_y) + n * row;
      for (int l = 0; l < p.n_levels; ++l) {
        const GridCell<double, 0> cell = find_cell<double>(p, levels.level[l], point);
        double total = 0.0;
        for (uint32_t c = 0; c < n_corners; ++c) {
          const double weight = corner_weight(cell.weights, c, -1, -1);
          const int64_t first = first_feature(p, levels.level[l], cell, c);
          for (int f = 0; f < p.n_features; ++f) {
            total += weight * grad_y[l * p.n_features + f] * load_feature(p.table, p.table_dtype, first + f);
          }
        }
        sums[l] += total;
      }
    }
  }
}

// Work units: chunks of kLevelWeightChunk points, whose sums go to grad_level_chunks [n_chunks, n_levels], in fp64. The
// op adds up the chunks in order; their size is fixed, so that the bits do not depend on the number of threads.
static void hash_encode_backward_level_weights_range(const HashEncodeParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kFloat64) return backward_level_weights<double>(p, begin, end);
  backward_level_weights<float>(p, begin, end);
}

// The three cotangents pulled back to grad_y, positions and level weights; formulas are in core/grid_point.h. Points in
// order, of each its levels, corners and features.
template <typename T>
static void second_points(const HashEncodeParams& p, int64_t begin, int64_t end) {
  const AxisLevels levels = all_levels(p);
  const uint32_t n_corners = n_corners_of(p, p.n_dims);
  const int64_t row = static_cast<int64_t>(p.n_levels) * p.n_features;
  const T* grad_grad_positions = static_cast<const T*>(p.grad_grad_positions);
  const T* grad_grad_table = static_cast<const T*>(p.grad_grad_table);
  const T* u = static_cast<const T*>(p.grad_grad_level_weights);
  // Cotangents that are missing are zero.
  for (int64_t chunk_begin = begin; chunk_begin < end; ++chunk_begin) {
    // Without a gradient of level weights there are no chunks of it.
    double* sums = p.grad_level_chunks != nullptr ? p.grad_level_chunks + chunk_begin * p.n_levels : nullptr;
    for (int l = 0; sums != nullptr && l < p.n_levels; ++l) sums[l] = 0.0;
    const int64_t last = min_count((chunk_begin + 1) * kLevelWeightChunk, p.n_points);
    for (int64_t n = chunk_begin * kLevelWeightChunk; n < last; ++n) {
      const T* grad_y = static_cast<const T*>(p.grad_y) + n * row;
      const T* v = grad_grad_positions != nullptr ? grad_grad_positions + n * p.n_dims : nullptr;
      T* out_y = static_cast<T*>(p.grad_grad_y) + n * row;
      T* out_x = p.grad_positions != nullptr ? static_cast<T*>(p.grad_positions) + n * p.n_dims : nullptr;
      for (int64_t k = 0; k < row; ++k) out_y[k] = T(0);
      for (int d = 0; out_x != nullptr && d < p.n_dims; ++d) out_x[d] = T(0);
      const GridPoint<T, 0> point = load_point<T>(p, n);
      if (point.state != PointState::kInside) continue;
      double total_x[kMaxDims] = {};  // over all levels, rounded to T once
      for (int l = 0; l < p.n_levels; ++l) {
        const GridCell<double, 0> cell = find_cell<double>(p, levels.level[l], point);
        const double m = level_weight<T>(p, l);
        const double u_level = u != nullptr ? u[l] : 0.0;
        double total_y[kMaxFeatures] = {};
        for (uint32_t c = 0; c < n_corners; ++c) {
          const SecondOrderCorner<double, 0> corner = second_order_corner(levels.level[l], point, cell, c, v);
          const int64_t first = first_feature(p, levels.level[l], cell, c);
          for (int f = 0; f < p.n_features; ++f) {
            const double value = load_feature(p.table, p.table_dtype, first + f);
            const double table_cotangent = grad_grad_table != nullptr ? grad_grad_table[first + f] : 0.0;
            // The feature's change along v and along the table's cotangent, before the level's weight.
            const double plain = corner.along * value + corner.weight * table_cotangent;
            const double grad = grad_y[l * p.n_features + f];
            total_y[f] += m * plain + u_level * corner.weight * value;
            for (int e = 0; e < p.n_dims; ++e) {
              total_x[e] += grad * (m * (corner.second[e] * value + corner.first[e] * table_cotangent) +
                                    u_level * corner.first[e] * value);
            }
            if (sums != nullptr) sums[l] += grad * plain;
          }
        }
        for (int f = 0; f < p.n_features; ++f) out_y[l * p.n_features + f] = static_cast<T>(total_y[f]);
      }
      for (int d = 0; out_x != nullptr && d < p.n_dims; ++d) out_x[d] = static_cast<T>(total_x[d]);
    }
  }
}

// Work units: chunks of kLevelWeightChunk points. A thread writes its points' rows of grad_grad_y [n_points, n_levels *
// F] and grad_positions [n_points, n_dims], and the chunk's row of grad_level_chunks, each if it is asked for.
static void hash_encode_second_points_range(const HashEncodeParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kFloat64) return second_points<double>(p, begin, end);
  second_points<float>(p, begin, end);
}

// Units (level, shard), as scalar_backward_table: the factor of grad_y is of second order.
template <typename T>
static void second_table(const HashEncodeParams& p, int64_t begin, int64_t end) {
  const uint32_t n_corners = n_corners_of(p, p.n_dims);
  const int64_t row = static_cast<int64_t>(p.n_levels) * p.n_features;
  const T* grad_grad_positions = static_cast<const T*>(p.grad_grad_positions);
  const T* u = static_cast<const T*>(p.grad_grad_level_weights);
  T* grad_table = static_cast<T*>(p.grad_table);
  for (int64_t unit = begin; unit < end; ++unit) {
    const Shard shard = shard_of(p, unit);
    const AxisLevel level = axis_level(p, shard.level);
    if (!p.accumulate) zero_shard<T>(p, shard);
    const double m = level_weight<T>(p, shard.level);
    const double u_level = u != nullptr ? u[shard.level] : 0.0;
    for (int64_t n = 0; n < p.n_points; ++n) {
      const GridPoint<T, 0> point = load_point<T>(p, n);
      if (point.state != PointState::kInside) continue;
      const T* v = grad_grad_positions != nullptr ? grad_grad_positions + n * p.n_dims : nullptr;
      const T* grad_y = static_cast<const T*>(p.grad_y) + n * row + shard.level * p.n_features;
      const GridCell<double, 0> cell = find_cell<double>(p, level, point);
      for (uint32_t c = 0; c < n_corners; ++c) {
        const uint32_t entry = grid_index(level, p.n_dims, cell.base, c);
        if (entry < shard.low || entry >= shard.high) continue;  // another unit's
        const SecondOrderCorner<double, 0> corner = second_order_corner(level, point, cell, c, v);
        const double factor = m * corner.along + u_level * corner.weight;
        T* target = grad_table + (level.offset + entry) * p.n_features;
        for (int f = 0; f < p.n_features; ++f) target[f] += factor * grad_y[f];
      }
    }
  }
}

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
