// Multiresolution hash encoding on CUDA.
//
// Forward and table gradient: one thread per point and level, groups of levels along the grid's y axis, so that the
// blocks in flight work on a few levels whose rows (4 MB each at T = 19, F = 2) stay in the L2 cache; the levels of a
// group share a warp, so that together they fill sectors of y. Gradients to positions and the second order: one thread
// per point, which walks over the levels and keeps its sums in registers.
// fp32 is specialised for 2, 3 and 4 dimensions whose axes are alike; other dimensions, axes that differ, and fp64 (for
// checks), read their number from the params. Cells are computed again in every pass: storing d y / d x would take D
// times the memory of y.
#include "cuda/hash_encode.cuh"

#include "cuda/atomics.cuh"
#include "cuda/warp.cuh"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kThreads = 256;
constexpr int kLevelWeightPoints = 1024;  // points per chunk of the level weights' gradient

// What happens to contributions to the table's gradient.
enum class TableSum { kAdd, kFindLargest, kAddFixed };

// ---- threads of points and levels --------------------------------------------------------------------------------

struct PointAndLevel {
  int64_t n;
  int l;
};

// A warp takes 2^log2_levels levels of 32 / 2^log2_levels points: y is [n_points, n_levels * F], and a warp of one
// level would touch 32 sectors of 32 bytes to read or write 4 F bytes of each.
__device__ inline PointAndLevel point_and_level(int log2_levels) {
  constexpr int kLog2Warp = 5;
  const int lane = threadIdx.x % kWarpSize, log2_points = kLog2Warp - log2_levels;
  const int64_t first = (global_thread() >> kLog2Warp) << log2_points;
  return {first + (lane & ((1 << log2_points) - 1)),
          static_cast<int>((blockIdx.y << log2_levels) + (lane >> log2_points))};
}

// How many levels share a warp: as many as fill a sector of y, unless the rows of so many would fill half of the L2
// cache or more. Where tables are that large, each level by itself misses it less often.
inline int log2_levels_of(const HashEncodeParams& p) {
  constexpr int64_t kSector = 32;
  const int64_t number = p.dtype == DType::kFloat64 ? 8 : 4;
  const int64_t element = p.table_dtype == DType::kFloat64 ? 8 : p.table_dtype == DType::kFloat32 ? 4 : 2;
  int64_t largest = 0;
  for (int l = 0; l < p.n_levels; ++l) {
    const int64_t bytes = p.levels[l].size * p.n_features * element;
    largest = bytes > largest ? bytes : largest;
  }
  const int64_t cache = device_attribute<cudaDevAttrL2CacheSize>();
  int log2_levels = 0;
  while (number * p.n_features << (log2_levels + 1) <= kSector && 1 << log2_levels < p.n_levels &&
         largest << (log2_levels + 1) <= cache / 2) {
    ++log2_levels;
  }
  return log2_levels;
}

// A thread for each point and level, in whole warps; blocks of one group of levels follow each other in the x
// direction, so that those in flight work on the same rows.
inline LaunchShape points_and_levels(const HashEncodeParams& p, int log2_levels) {
  const int64_t levels = int64_t{1} << log2_levels;
  const int64_t n_warps = divide_up(p.n_points, kWarpSize / levels);
  return blocks_of(n_warps * kWarpSize, kThreads, static_cast<unsigned>(divide_up(p.n_levels, levels)));
}

// ---- forward -----------------------------------------------------------------------------------------------------

// Thread: a point at a level (point_and_level), on its own. Reads 2^D rows of the table, all before it uses one, and
// adds them up in the order of corners; writes kF numbers of y.
template <typename T, typename Element, int kDims, int kF>
__global__ void hash_encode_forward_kernel(HASHGRID_PARAMS HashEncodeParams p, int log2_levels) {
  const auto [n, l] = point_and_level(log2_levels);
  if (n >= p.n_points || l >= p.n_levels) return;
  T total[kF];
  interpolate<T, Element>(p, l, level_of<kDims>(p, l), load_point<T, kDims>(p, n), kF, 0, total);
  store_row<T, kF>(static_cast<T*>(p.y) + (n * p.n_levels + l) * kF, total);
}

// ---- gradient to the table ---------------------------------------------------------------------------------------

// 2^e such that the sum of all contributions, each at most `largest`, stays below 2^62.
__device__ inline int fixed_exponent(const HashEncodeParams& p) {
  const double bound = static_cast<double>(__uint_as_float(*p.largest)) * static_cast<double>(p.n_points) *
                       static_cast<double>(1 << p.n_dims);
  int exponent = 0;
  frexp(bound, &exponent);  // bound < 2^exponent
  return 62 - exponent;
}

// Adds values [F] to the row that starts at feature `first`. `scale` is 2^fixed_exponent, or NaN where a contribution
// is not finite: then every entry that receives any becomes NaN.
template <typename T, int kF, TableSum kSum>
__device__ inline void add_to_table(const HashEncodeParams& p, int64_t first, const T* values, double scale,
                                    float* largest) {
  if constexpr (kSum == TableSum::kAdd) {
    add_row<kF>(static_cast<T*>(p.grad_table) + first, values, rows_are_aligned<kF>(p.grad_table));
  } else if constexpr (kSum == TableSum::kFindLargest) {
#pragma unroll
    for (int f = 0; f < kF; ++f) {
      const float magnitude = fabsf(__double2float_ru(fabs(static_cast<double>(values[f]))));
      if (!(magnitude <= *largest) && *largest == *largest) *largest = magnitude;  // NaN stays
    }
  } else {
#pragma unroll
    for (int f = 0; f < kF; ++f) {
      if (scale == scale) {
        const long long steps = llrint(static_cast<double>(values[f]) * scale);
        atomicAdd(reinterpret_cast<unsigned long long*>(p.fixed + first + f), static_cast<unsigned long long>(steps));
      } else {
        static_cast<T*>(p.grad_table)[first + f] = std::numeric_limits<T>::quiet_NaN();
      }
    }
  }
}

// 2^fixed_exponent where integers are added, NaN where some contribution is not finite.
template <TableSum kSum>
__device__ inline double fixed_scale(const HashEncodeParams& p) {
  if constexpr (kSum != TableSum::kAddFixed) return 0.0;
  const float largest = __uint_as_float(*p.largest);
  return largest - largest == 0.0f ? ldexp(1.0, fixed_exponent(p)) : std::numeric_limits<double>::quiet_NaN();
}

// Positive floats are ordered as their bits are, NaN above all.
__device__ inline void record_largest(const HashEncodeParams& p, float largest) {
  if (largest != 0.0f) atomicMax(p.largest, __float_as_uint(largest));
}

// Thread: a point at a level (point_and_level), on its own; it adds to 2^D rows of the table, in an order that only
// kAddFixed makes without effect. Any number of dimensions, axes that may differ, any kind of sum.
template <typename T, int kF, TableSum kSum>
__global__ void hash_encode_backward_table_any_kernel(HASHGRID_PARAMS HashEncodeParams p, int log2_levels) {
  const auto [n, l] = point_and_level(log2_levels);
  if (n >= p.n_points || l >= p.n_levels) return;
  const auto level = level_of<0>(p, l);
  const GridPoint<T, 0> point = load_point<T, 0>(p, n);
  if (point.state != PointState::kInside) return;
  T grad[kF];
  load_row<T, kF>(static_cast<const T*>(p.grad_y) + (n * p.n_levels + l) * kF, grad);
  // Samples behind a surface, and those that fill up a result of fixed size, have none: no need for atomics.
  bool any = false;
#pragma unroll
  for (int f = 0; f < kF; ++f) any = any || grad[f] != T(0);
  if (!any) return;
  const T factor = level_weight<T>(p, l);
  const double scale = fixed_scale<kSum>(p);
  float largest = 0.0f;
  const GridCell<T, 0> cell = find_cell<T>(p, level, point);
  for_each_corner<0>(p, level, cell, [&](uint32_t c, uint32_t entry) {
    const T weight = corner_weight(cell.weights, c, -1, -1) * factor;
    T values[kF];
#pragma unroll
    for (int f = 0; f < kF; ++f) values[f] = weight * grad[f];
    add_to_table<T, kF, kSum>(p, (level.offset + entry) * kF, values, scale, &largest);
  });
  if constexpr (kSum == TableSum::kFindLargest) record_largest(p, largest);
}

// Lanes whose points are neighbours and lie in the same cell, as they do along rays at coarse levels, are a run: its
// first lane adds for all of them.
struct Run {
  bool first;
  int length;   // from this lane on
  int longest;  // of the warp; 1 where runs would save less than a quarter of the reductions, and every lane is one
};

// The run of this lane, from its point's cell and those of its neighbours. Points of another level are no neighbours; a
// lane that is not `active`, because it has nothing to add, is a run by itself.
template <int kDims>
__device__ inline Run find_run(bool active, const uint32_t* cell, int log2_levels) {
  const int lane = lane_index();
  bool same = shuffle_up(static_cast<int>(active), 1) != 0 && active;
#pragma unroll
  for (int d = 0; d < kDims; ++d) same = (shuffle_up(cell[d], 1) == cell[d]) && same;
  same = same && lane % (kWarpSize >> log2_levels) != 0;
  const unsigned firsts = __ballot_sync(kAllLanes, !same);
  const unsigned behind = lane + 1 < kWarpSize ? firsts >> (lane + 1) : 0u;
  Run run = {!same, behind == 0 ? kWarpSize - lane : __ffs(static_cast<int>(behind)), 1};
  const int n_active = __popc(__ballot_sync(kAllLanes, active));
  const int n_rows = __popc(__ballot_sync(kAllLanes, active && !same));
  if (4 * n_rows <= 3 * n_active) {
    while (__any_sync(kAllLanes, run.length > run.longest)) run.longest *= 2;
  } else {
    run.first = true;
  }
  return run;
}

// Adds up values [kCount] over each run, for its first lane.
template <int kCount>
__device__ inline void sum_run(const Run& run, float (&values)[kCount]) {
#pragma unroll 1
  for (int distance = 1; distance < run.longest; distance *= 2) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float other = shuffle_down(values[i], distance);
      if (distance < run.length) values[i] += other;
    }
  }
}

// Thread: a point at a level (point_and_level). Neighbouring lanes in one cell exchange their values, by halves of the
// run, and the first of them adds to the table, in any order. fp32, grad_table begins at a multiple of 16 bytes.
template <int kDims, int kF>
__global__ void hash_encode_backward_table_kernel(HASHGRID_PARAMS HashEncodeParams p, int log2_levels) {
  constexpr int kCorners = 1 << kDims, kBatch = kCorners * kF <= 32 ? kCorners : 32 / kF;
  const auto [n, l] = point_and_level(log2_levels);
  const bool exists = n < p.n_points && l < p.n_levels;
  const GridLevel level = p.levels[exists ? l : 0];
  float grad[kF] = {};
  if (exists) load_row<float, kF>(static_cast<const float*>(p.grad_y) + (n * p.n_levels + l) * kF, grad);
  // Samples behind a surface, and those that fill up a result of fixed size, have none: no need for atomics.
  bool active = false;
#pragma unroll
  for (int f = 0; f < kF; ++f) active = active || grad[f] != 0.0f;
  if (!__any_sync(kAllLanes, active)) return;
  GridPoint<float, kDims> point = load_point<float, kDims>(p, exists ? n : 0);
  if (point.state != PointState::kInside) active = false;
#pragma unroll
  for (int d = 0; d < kDims; ++d) point.x[d] = active ? point.x[d] : 0.0f;  // NaN has no cell
  const GridCell<float, kDims> cell = find_cell<float>(p, level, point);
  const Run run = find_run<kDims>(active, cell.base, log2_levels);
  const float factor = exists ? level_weight<float>(p, l) : 0.0f;
  const uint32_t n_corners = n_corners_of(p, kDims);
  float* rows = static_cast<float*>(p.grad_table) + level.offset * kF;
  const bool in_pairs = level.offset % 2 == 0;
  uint32_t entries[kCorners];
  grid_indices<kDims>(level, cell.base, entries);
#pragma unroll
  for (int begin = 0; begin < kCorners; begin += kBatch) {
    float values[kBatch * kF];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const float weight = corner_weight(cell.weights, static_cast<uint32_t>(begin + i), -1, -1) * factor;
#pragma unroll
      for (int f = 0; f < kF; ++f) values[i * kF + f] = active ? weight * grad[f] : 0.0f;
    }
    sum_run(run, values);
    if (active && run.first) {
#pragma unroll
      for (int i = 0; i < kBatch; i += 2) {
        const uint32_t c = static_cast<uint32_t>(begin + i);
        if (c + 1 < n_corners) {
          add_two_rows<kF>(rows, entries[c], entries[c + 1], values + i * kF, in_pairs);
        } else if (c < n_corners) {
          add_aligned_row<kF>(rows + static_cast<int64_t>(entries[c]) * kF, values + i * kF);
        }
      }
    }
  }
}

// Thread: one element of the table [n_entries, n_features], on its own. Adds to grad_table the sum in `fixed`, an
// integer in steps of 2^-fixed_exponent; elements that nothing was added to are left alone.
template <typename T>
__global__ void hash_encode_add_fixed_kernel(HASHGRID_PARAMS HashEncodeParams p) {
  const int64_t i = global_thread();
  if (i >= p.n_entries * p.n_features || p.fixed[i] == 0) return;
  static_cast<T*>(p.grad_table)[i] += static_cast<T>(ldexp(static_cast<double>(p.fixed[i]), -fixed_exponent(p)));
}

// ---- gradient to positions ---------------------------------------------------------------------------------------

// Thread: one point, on its own; it walks over the levels and the corners of each, sums stay in registers, in that
// order.
template <typename T, typename Element, int kDims, int kF>
__global__ void hash_encode_backward_positions_kernel(HASHGRID_PARAMS HashEncodeParams p) {
  using A = typename Arithmetic<T, kDims>::Type;
  constexpr int kSize = GridPoint<T, kDims>::kSize;
  const int64_t n = global_thread();
  if (n >= p.n_points) return;
  const int n_dims = n_dims_of<kDims>(p);
  const GridPoint<T, kDims> point = load_point<T, kDims>(p, n);
  A total[kSize] = {};
  const bool active = point.state == PointState::kInside && p.interpolation != Interpolation::kNearest;
  for (int l = 0; active && l < p.n_levels; ++l) {
    const auto level = level_of<kDims>(p, l);
    const GridCell<A, kDims> cell = find_cell<A>(p, level, point);
    const A m = static_cast<A>(level_weight<T>(p, l));
    T grad[kF];
    load_row<T, kF>(static_cast<const T*>(p.grad_y) + (n * p.n_levels + l) * kF, grad);
    for_each_row<kDims, kF, Element>(p, level, cell, kF, 0, [&](uint32_t c, const A* row) {
      A dot = A(0);
#pragma unroll
      for (int f = 0; f < kF; ++f) dot += static_cast<A>(grad[f]) * row[f];
#pragma unroll
      for (int d = 0; d < kSize; ++d) {
        if (d < n_dims)
          total[d] += m * static_cast<A>(scale_on(level, d)) * corner_weight_first(cell.weights, c, d) * dot;
      }
    });
  }
  T* out = static_cast<T*>(p.grad_positions) + n * n_dims;
#pragma unroll
  for (int d = 0; d < kSize; ++d) {
    if (d < n_dims) out[d] = point.stopped[d] ? T(0) : static_cast<T>(total[d]);
  }
}

// ---- gradient to the level weights -------------------------------------------------------------------------------

// Number i of the table, in double.
template <typename Element>
__device__ inline double load_feature(const void* table, int64_t i) {
  return static_cast<double>(to_real(static_cast<const Element*>(table)[i]));
}

// The sum over a block of a value per thread, in thread 0. Pairs are added in a fixed order.
__device__ inline double block_sum(double value, double* shared) {
  shared[threadIdx.x] = value;
  for (int half = static_cast<int>(blockDim.x) / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) shared[threadIdx.x] += shared[threadIdx.x + half];
  }
  __syncthreads();
  const double total = shared[0];
  __syncthreads();
  return total;
}

// Block: chunk blockIdx.x of kLevelWeightPoints points at level blockIdx.y. A thread adds up every kThreads-th point in
// their order, the block its threads by halves in shared memory. Sums are in fp64; axes may differ.
template <typename T, typename Element>
__global__ void hash_encode_backward_level_weights_kernel(HASHGRID_PARAMS HashEncodeParams p) {
  __shared__ double shared[kThreads];
  const int l = blockIdx.y;
  const auto level = level_of<0>(p, l);
  double total = 0.0;
  const int64_t first_point = static_cast<int64_t>(blockIdx.x) * kLevelWeightPoints;
  for (int64_t n = first_point + threadIdx.x; n < first_point + kLevelWeightPoints && n < p.n_points; n += blockDim.x) {
    const GridPoint<T, 0> point = load_point<T, 0>(p, n);
    if (point.state != PointState::kInside) continue;
    const GridCell<double, 0> cell = find_cell<double>(p, level, point);
    const T* grad = static_cast<const T*>(p.grad_y) + (n * p.n_levels + l) * p.n_features;
    const uint32_t n_corners = n_corners_of(p, p.n_dims);
    for (uint32_t c = 0; c < n_corners; ++c) {
      const double weight = corner_weight(cell.weights, c, -1, -1);
      const int64_t first = first_feature(p, level, cell, c);
      for (int f = 0; f < p.n_features; ++f) total += weight * grad[f] * load_feature<Element>(p.table, first + f);
    }
  }
  total = block_sum(total, shared);
  if (threadIdx.x == 0) p.grad_level_chunks[static_cast<int64_t>(blockIdx.x) * p.n_levels + l] = total;
}

// One block. Thread: one level; adds up its column of grad_level_chunks [n_chunks, n_levels] in the order of chunks, in
// fp64.
template <typename T>
__global__ void hash_encode_sum_level_chunks_kernel(HASHGRID_PARAMS HashEncodeParams p, int64_t n_chunks) {
  const int l = threadIdx.x;
  if (l >= p.n_levels) return;
  double total = 0.0;
  for (int64_t chunk = 0; chunk < n_chunks; ++chunk) total += p.grad_level_chunks[chunk * p.n_levels + l];
  static_cast<T*>(p.grad_level_weights)[l] = static_cast<T>(total);
}

// ---- second order ------------------------------------------------------------------------------------------------

// Thread: one point, on its own. Pulls the cotangents of (grad_positions, grad_table, grad_level_weights) back to its
// row of grad_grad_y [n_points, n_levels * F] and of grad_positions [n_points, n_dims]; formulas are in
// core/grid_point.h. It walks over the levels and the corners of each in order: sums over corners (of a feature) and
// over levels (of a coordinate) stay in registers, in A.
template <typename T, typename Element, int kDims>
__global__ void hash_encode_second_points_kernel(HASHGRID_PARAMS HashEncodeParams p) {
  using A = typename Arithmetic<T, kDims>::Type;
  constexpr int kSize = GridPoint<T, kDims>::kSize;
  const int64_t n = global_thread();
  if (n >= p.n_points) return;
  const int n_dims = n_dims_of<kDims>(p);
  const int64_t row = static_cast<int64_t>(p.n_levels) * p.n_features;
  const T* grad_y = static_cast<const T*>(p.grad_y) + n * row;
  const T* v = p.grad_grad_positions != nullptr ? static_cast<const T*>(p.grad_grad_positions) + n * n_dims : nullptr;
  const T* table_cotangents = static_cast<const T*>(p.grad_grad_table);
  const T* u = static_cast<const T*>(p.grad_grad_level_weights);
  T* out_y = static_cast<T*>(p.grad_grad_y) + n * row;
  const GridPoint<T, kDims> point = load_point<T, kDims>(p, n);
  A total_x[kSize] = {};
  for (int l = 0; l < p.n_levels; ++l) {
    A total_y[kMaxFeatures] = {};
    if (point.state == PointState::kInside) {
      const auto level = level_of<kDims>(p, l);
      const GridCell<A, kDims> cell = find_cell<A>(p, level, point);
      const A m = level_weight<T>(p, l), u_level = u != nullptr ? u[l] : T(0);
      const uint32_t n_corners = n_corners_of(p, n_dims);
      for (uint32_t c = 0; c < n_corners; ++c) {
        const SecondOrderCorner<A, kDims> corner = second_order_corner(level, point, cell, c, v);
        const int64_t first = first_feature(p, level, cell, c);
        A dot_value = A(0), dot_cotangent = A(0);  // with grad_y; features first, which rounds less than term by term
#pragma unroll
        for (int f = 0; f < kMaxFeatures; ++f) {
          if (f >= p.n_features) break;
          const A value = static_cast<A>(load_feature<Element>(p.table, first + f));
          const A cotangent = table_cotangents != nullptr ? static_cast<A>(table_cotangents[first + f]) : A(0);
          const A grad = grad_y[l * p.n_features + f];
          total_y[f] += m * (corner.along * value + corner.weight * cotangent) + u_level * corner.weight * value;
          dot_value += grad * value;
          dot_cotangent += grad * cotangent;
        }
#pragma unroll
        for (int e = 0; e < kSize; ++e) {
          if (e >= n_dims) break;
          total_x[e] += m * (corner.second[e] * dot_value + corner.first[e] * dot_cotangent) +
                        u_level * corner.first[e] * dot_value;
        }
      }
    }
#pragma unroll
    for (int f = 0; f < kMaxFeatures; ++f) {
      if (f < p.n_features) out_y[l * p.n_features + f] = static_cast<T>(total_y[f]);
    }
  }
  if (p.grad_positions == nullptr) return;
  T* out_x = static_cast<T*>(p.grad_positions) + n * n_dims;
#pragma unroll
  for (int e = 0; e < kSize; ++e) {
    if (e < n_dims) out_x[e] = static_cast<T>(total_x[e]);
  }
}

// Block: chunk blockIdx.x of kLevelWeightPoints points at level blockIdx.y, of the cotangents pulled back to the level
// weights. As in hash_encode_backward_level_weights_kernel a thread adds up every kThreads-th point in their order, the
// block its threads by halves in shared memory, all in fp64; writes one number of grad_level_chunks [n_chunks,
// n_levels].
template <typename T, typename Element>
__global__ void hash_encode_second_level_weights_kernel(HASHGRID_PARAMS HashEncodeParams p) {
  __shared__ double shared[kThreads];
  const int l = blockIdx.y;
  const auto level = level_of<0>(p, l);
  const T* table_cotangents = static_cast<const T*>(p.grad_grad_table);
  double total = 0.0;
  const int64_t first_point = static_cast<int64_t>(blockIdx.x) * kLevelWeightPoints;
  for (int64_t n = first_point + threadIdx.x; n < first_point + kLevelWeightPoints && n < p.n_points; n += blockDim.x) {
    const GridPoint<T, 0> point = load_point<T, 0>(p, n);
    if (point.state != PointState::kInside) continue;
    const T* v =
        p.grad_grad_positions != nullptr ? static_cast<const T*>(p.grad_grad_positions) + n * p.n_dims : nullptr;
    const GridCell<double, 0> cell = find_cell<double>(p, level, point);
    const T* grad = static_cast<const T*>(p.grad_y) + (n * p.n_levels + l) * p.n_features;
    const uint32_t n_corners = n_corners_of(p, p.n_dims);
    for (uint32_t c = 0; c < n_corners; ++c) {
      const SecondOrderCorner<double, 0> corner = second_order_corner(level, point, cell, c, v);
      const int64_t first = first_feature(p, level, cell, c);
      for (int f = 0; f < p.n_features; ++f) {
        const double cotangent = table_cotangents != nullptr ? table_cotangents[first + f] : 0.0;
        total += grad[f] * (corner.along * load_feature<Element>(p.table, first + f) + corner.weight * cotangent);
      }
    }
  }
  total = block_sum(total, shared);
  if (threadIdx.x == 0) p.grad_level_chunks[static_cast<int64_t>(blockIdx.x) * p.n_levels + l] = total;
}

// Factor of grad_y in the gradient of corner c's row, at level l.
template <typename T, typename A, int kDims, class Level>
__device__ inline A second_table_factor(const HashEncodeParams& p, int l, const Level& level,
                                        const GridPoint<T, kDims>& point, const GridCell<A, kDims>& cell, uint32_t c,
                                        int64_t n) {
  const T* v = p.grad_grad_positions != nullptr ? static_cast<const T*>(p.grad_grad_positions) + n * n_dims_of<kDims>(p)
                                                : nullptr;
  const T* u = static_cast<const T*>(p.grad_grad_level_weights);
  const A m = level_weight<T>(p, l), u_level = u != nullptr ? u[l] : T(0);
  const SecondOrderCorner<A, kDims> corner = second_order_corner(level, point, cell, c, v);
  return m * corner.along + u_level * corner.weight;
}

// Thread: point global_thread() at level blockIdx.y, on its own; adds to 2^D rows of the table by atomics, feature by
// feature, in any order unless the sum is kAddFixed. Any number of dimensions, axes that may differ, any kind of sum.
template <typename T, TableSum kSum>
__global__ void hash_encode_second_table_any_kernel(HASHGRID_PARAMS HashEncodeParams p) {
  using A = typename Arithmetic<T, 0>::Type;
  const int64_t n = global_thread();
  if (n >= p.n_points) return;
  const int l = blockIdx.y;
  const auto level = level_of<0>(p, l);
  const GridPoint<T, 0> point = load_point<T, 0>(p, n);
  if (point.state != PointState::kInside) return;
  const T* grad_y = static_cast<const T*>(p.grad_y) + (n * p.n_levels + l) * p.n_features;
  const double scale = fixed_scale<kSum>(p);
  float largest = 0.0f;
  const GridCell<A, 0> cell = find_cell<A>(p, level, point);
  const uint32_t n_corners = n_corners_of(p, p.n_dims);
  for (uint32_t c = 0; c < n_corners; ++c) {
    const A factor = second_table_factor(p, l, level, point, cell, c, n);
    const int64_t first = first_feature(p, level, cell, c);
    for (int f = 0; f < p.n_features; ++f) {
      const T value = static_cast<T>(factor * static_cast<A>(grad_y[f]));
      add_to_table<T, 1, kSum>(p, first + f, &value, scale, &largest);
    }
  }
  if constexpr (kSum == TableSum::kFindLargest) record_largest(p, largest);
}

// Thread: point global_thread() at level blockIdx.y, on its own; adds to 8 rows of the table by atomics, in any order.
// fp32, 3 dimensions, grad_table begins at a multiple of 16 bytes: rows are added whole, x-neighbours together where
// they are a pair.
template <int kF>
__global__ void hash_encode_second_table_kernel(HASHGRID_PARAMS HashEncodeParams p) {
  const int64_t n = global_thread();
  if (n >= p.n_points) return;
  const int l = blockIdx.y;
  const GridLevel level = p.levels[l];
  const GridPoint<float, 3> point = load_point<float, 3>(p, n);
  if (point.state != PointState::kInside) return;
  float grad[kF];
  load_row<float, kF>(static_cast<const float*>(p.grad_y) + (n * p.n_levels + l) * kF, grad);
  const GridCell<float, 3> cell = find_cell<float>(p, level, point);
  float* rows = static_cast<float*>(p.grad_table) + level.offset * kF;
  const bool in_pairs = level.offset % 2 == 0;
  uint32_t entries[8];
  grid_indices<3>(level, cell.base, entries);
  const bool nearest = n_corners_of(p, 3) == 1;
#pragma unroll
  for (uint32_t c = 0; c < 8; c += 2) {
    if (nearest && c > 0) break;
    float values[2 * kF];
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      const float factor = second_table_factor(p, l, level, point, cell, c + i, n);
#pragma unroll
      for (int f = 0; f < kF; ++f) values[i * kF + f] = factor * grad[f];
    }
    if (nearest) {
      add_aligned_row<kF>(rows + static_cast<int64_t>(entries[0]) * kF, values);
    } else {
      add_two_rows<kF>(rows, entries[c], entries[c + 1], values, in_pairs);
    }
  }
}

// ---- choice of an instance ---------------------------------------------------------------------------------------

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

template <typename Element>
struct TypeOf {
  typedef Element Type;
};

[[noreturn]] inline void unsupported(const char* what, int64_t value, const char* supported) {
  throw std::runtime_error(std::string(what) + " must be " + supported + ", got " + std::to_string(value));
}

// use(Constant<kDims>) for 2, 3, 4 and, as 0, all others and axes that differ.
template <typename Use>
void with_dims(const HashEncodeParams& p, Use use) {
  switch (p.per_axis ? 0 : p.n_dims) {
    case 2:
      return use(Constant<2>());
    case 3:
      return use(Constant<3>());
    case 4:
      return use(Constant<4>());
    default:
      return use(Constant<0>());
  }
}

// use(Constant<kF>) for the features per level.
template <typename Use>
void with_features(const HashEncodeParams& p, Use use) {
  switch (p.n_features) {
    case 1:
      return use(Constant<1>());
    case 2:
      return use(Constant<2>());
    case 4:
      return use(Constant<4>());
    case 8:
      return use(Constant<8>());
    default:
      unsupported("features per level", p.n_features, "1, 2, 4 or 8");
  }
}

// use(TypeOf<Element>) for the table of fp32 positions.
template <typename Use>
void with_table(const HashEncodeParams& p, Use use) {
  switch (p.table_dtype) {
    case DType::kFloat32:
      return use(TypeOf<float>());
    case DType::kFloat16:
      return use(TypeOf<Float16>());
    case DType::kBFloat16:
      return use(TypeOf<BFloat16>());
    default:
      unsupported("the table's dtype", static_cast<int>(p.table_dtype), "float32, float16 or bfloat16");
  }
}

template <typename T, typename TableElement, int kD>
struct Instance {
  typedef T Number;
  typedef TableElement Element;
  static constexpr int kDims = kD;
};

// use(Instance<Number, Element, kDims>) of kernels that read the table.
template <typename Use>
void with_instance(const HashEncodeParams& p, Use use) {
  if (p.dtype == DType::kFloat64) return use(Instance<double, double, 0>());
  with_table(p, [&](auto table) {
    with_dims(p, [&](auto dims) { use(Instance<float, typename decltype(table)::Type, decltype(dims)::value>()); });
  });
}

// ---- launchers ---------------------------------------------------------------------------------------------------

// One kind of sum over all points and levels. The kernel with runs takes what it is specialised for, the other the
// rest.
template <TableSum kSum>
void launch_backward_table(const HashEncodeParams& p, cudaStream_t stream) {
  const int log2_levels = log2_levels_of(p);
  const LaunchShape shape = points_and_levels(p, log2_levels);
  const bool specialised =
      !p.per_axis && p.n_dims >= 2 && p.n_dims <= 4 && kSum == TableSum::kAdd && rows_are_aligned<4>(p.grad_table);
  with_features(p, [&](auto features) {
    constexpr int kF = decltype(features)::value;
    if (p.dtype == DType::kFloat64) {
      HASHGRID_LAUNCH((hash_encode_backward_table_any_kernel<double, kF, kSum>), shape, stream, p, log2_levels);
    } else if (!specialised) {
      HASHGRID_LAUNCH((hash_encode_backward_table_any_kernel<float, kF, kSum>), shape, stream, p, log2_levels);
    } else {
      with_dims(p, [&](auto dims) {
        constexpr int kDims = decltype(dims)::value;
        if constexpr (kDims > 0) {
          HASHGRID_LAUNCH_TOGETHER((hash_encode_backward_table_kernel<kDims, kF>), shape, stream, p, log2_levels);
        }
      });
    }
  });
}

// The same of the second order.
template <TableSum kSum>
void launch_second_table(const HashEncodeParams& p, cudaStream_t stream) {
  const LaunchShape shape = blocks_of(p.n_points, kThreads, static_cast<unsigned>(p.n_levels));
  if (p.dtype == DType::kFloat64) {
    HASHGRID_LAUNCH((hash_encode_second_table_any_kernel<double, kSum>), shape, stream, p);
  } else if (!p.per_axis && p.n_dims == 3 && kSum == TableSum::kAdd && rows_are_aligned<4>(p.grad_table)) {
    with_features(p, [&](auto features) {
      HASHGRID_LAUNCH((hash_encode_second_table_kernel<decltype(features)::value>), shape, stream, p);
    });
  } else {
    HASHGRID_LAUNCH((hash_encode_second_table_any_kernel<float, kSum>), shape, stream, p);
  }
}

void launch_add_fixed(const HashEncodeParams& p, cudaStream_t stream) {
  const LaunchShape shape = blocks_of(p.n_entries * p.n_features, kThreads);
  if (p.dtype == DType::kFloat64) {
    HASHGRID_LAUNCH((hash_encode_add_fixed_kernel<double>), shape, stream, p);
  } else {
    HASHGRID_LAUNCH((hash_encode_add_fixed_kernel<float>), shape, stream, p);
  }
}

void launch_sum_level_chunks(const HashEncodeParams& p, int64_t n_chunks, cudaStream_t stream) {
  const LaunchShape shape = {dim3(1), dim3(kMaxLevels), 0};
  if (p.dtype == DType::kFloat64) {
    HASHGRID_LAUNCH((hash_encode_sum_level_chunks_kernel<double>), shape, stream, p, n_chunks);
  } else {
    HASHGRID_LAUNCH((hash_encode_sum_level_chunks_kernel<float>), shape, stream, p, n_chunks);
  }
}

}  // namespace HASHGRID_ISA

using namespace HASHGRID_ISA;

void launch_hash_encode_forward(const HashEncodeParams& p, cudaStream_t stream) {
  const int log2_levels = log2_levels_of(p);
  const LaunchShape shape = points_and_levels(p, log2_levels);
  with_features(p, [&](auto features) {
    constexpr int kF = decltype(features)::value;
    with_instance(p, [&](auto instance) {
      using I = decltype(instance);
      HASHGRID_LAUNCH((hash_encode_forward_kernel<typename I::Number, typename I::Element, I::kDims, kF>), shape,
                      stream, p, log2_levels);
    });
  });
}

// With `fixed`: the largest contribution, then all of them as multiples of a step that it decides, then their sums.
void launch_hash_encode_backward_table(const HashEncodeParams& p, cudaStream_t stream) {
  if (p.fixed == nullptr) return launch_backward_table<TableSum::kAdd>(p, stream);
  launch_backward_table<TableSum::kFindLargest>(p, stream);
  launch_backward_table<TableSum::kAddFixed>(p, stream);
  launch_add_fixed(p, stream);
}

void launch_hash_encode_backward_positions(const HashEncodeParams& p, cudaStream_t stream) {
  const LaunchShape shape = blocks_of(p.n_points, kThreads);
  with_features(p, [&](auto features) {
    constexpr int kF = decltype(features)::value;
    with_instance(p, [&](auto instance) {
      using I = decltype(instance);
      HASHGRID_LAUNCH((hash_encode_backward_positions_kernel<typename I::Number, typename I::Element, I::kDims, kF>),
                      shape, stream, p);
    });
  });
}

int64_t hash_encode_level_chunks(int64_t n_points) { return divide_up(n_points, kLevelWeightPoints); }

void launch_hash_encode_backward_level_weights(const HashEncodeParams& p, cudaStream_t stream) {
  const int64_t n_chunks = hash_encode_level_chunks(p.n_points);
  const LaunchShape shape = {dim3(static_cast<unsigned>(n_chunks), static_cast<unsigned>(p.n_levels)), dim3(kThreads),
                             0};
  if (p.dtype == DType::kFloat64) {
    HASHGRID_LAUNCH_TOGETHER((hash_encode_backward_level_weights_kernel<double, double>), shape, stream, p);
  } else {
    with_table(p, [&](auto table) {
      using Element = typename decltype(table)::Type;
      HASHGRID_LAUNCH_TOGETHER((hash_encode_backward_level_weights_kernel<float, Element>), shape, stream, p);
    });
  }
  launch_sum_level_chunks(p, n_chunks, stream);
}

void launch_hash_encode_second_points(const HashEncodeParams& p, cudaStream_t stream) {
  const LaunchShape shape = blocks_of(p.n_points, kThreads);
  const int64_t n_chunks = hash_encode_level_chunks(p.n_points);
  const LaunchShape chunks = {dim3(static_cast<unsigned>(n_chunks), static_cast<unsigned>(p.n_levels)), dim3(kThreads),
                              0};
  if (p.dtype == DType::kFloat64) {
    HASHGRID_LAUNCH((hash_encode_second_points_kernel<double, double, 0>), shape, stream, p);
    if (p.grad_level_chunks != nullptr) {
      HASHGRID_LAUNCH_TOGETHER((hash_encode_second_level_weights_kernel<double, double>), chunks, stream, p);
    }
  } else {
    with_table(p, [&](auto table) {
      using Element = typename decltype(table)::Type;
      if (!p.per_axis && p.n_dims == 3) {
        HASHGRID_LAUNCH((hash_encode_second_points_kernel<float, Element, 3>), shape, stream, p);
      } else {
        HASHGRID_LAUNCH((hash_encode_second_points_kernel<float, Element, 0>), shape, stream, p);
      }
      if (p.grad_level_chunks != nullptr) {
        HASHGRID_LAUNCH_TOGETHER((hash_encode_second_level_weights_kernel<float, Element>), chunks, stream, p);
      }
    });
  }
  if (p.grad_level_chunks != nullptr) launch_sum_level_chunks(p, n_chunks, stream);
}

void launch_hash_encode_second_table(const HashEncodeParams& p, cudaStream_t stream) {
  if (p.fixed == nullptr) return launch_second_table<TableSum::kAdd>(p, stream);
  launch_second_table<TableSum::kFindLargest>(p, stream);
  launch_second_table<TableSum::kAddFixed>(p, stream);
  launch_add_fixed(p, stream);
}

}  // namespace hashgrid
