// What the CPU ops on hash grids share: blocks of points, their workspace, features level by level.
#pragma once

#include <type_traits>

#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "ops/hash_encode.h"
#include "ops/memory.h"

namespace hashgrid {

constexpr int64_t kPointGrain = 2048;  // points per unit of the point kernels

inline void run_points(RangeKernel<HashEncodeParams> kernel, const HashEncodeParams& p) {
  parallel_units(p.n_points, kPointGrain, [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

inline int64_t n_level_chunks(const HashEncodeParams& p) { return (p.n_points + kLevelChunk - 1) / kLevelChunk; }

// Points whose features are held transposed at a time: 32 MB of them, at least one chunk. Each block walks over the
// whole table, so that smaller ones read it more often: 49 MB per 2^18 points with 16 levels of 2^19 entries.
inline int64_t block_points(const HashEncodeParams& p) {
  constexpr int64_t kFeatures = int64_t{1} << 23;
  const int64_t chunks = kFeatures / (static_cast<int64_t>(p.n_levels) * p.n_features) / kLevelChunk;
  return (chunks > 0 ? chunks : 1) * kLevelChunk;
}

template <typename T>
T* advance(T* data, int64_t bytes) {
  using Byte = std::conditional_t<std::is_const<T>::value, const char, char>;
  return data == nullptr ? nullptr : reinterpret_cast<T*>(reinterpret_cast<Byte*>(data) + bytes);
}

// Points [begin, begin + count) of `p`.
inline HashEncodeParams slice_points(const HashEncodeParams& p, int64_t begin, int64_t count) {
  HashEncodeParams q = p;
  const int64_t element = p.dtype == DType::kFloat64 ? 8 : 4;
  const int64_t position = begin * p.n_dims * element;
  const int64_t feature = begin * p.n_levels * p.n_features * element;
  q.n_points = count;
  q.positions = advance(p.positions, position);
  q.grad_positions = advance(p.grad_positions, position);
  q.grad_grad_positions = advance(p.grad_grad_positions, position);
  q.y = advance(p.y, feature);
  q.grad_y = advance(p.grad_y, feature);
  q.grad_grad_y = advance(p.grad_grad_y, feature);
  return q;
}

// Calls `run(params)` for blocks of points in order, once where there are none. From the second on table gradients are
// accumulated: each entry still gets its contributions in the order of the points.
template <typename Run>
void for_each_block(const HashEncodeParams& p, const Run& run) {
  const int64_t step = p.dtype == DType::kFloat64 ? p.n_points : block_points(p);
  for (int64_t begin = 0; begin == 0 || begin < p.n_points; begin += step) {
    HashEncodeParams block = slice_points(p, begin, begin + step < p.n_points ? step : p.n_points - begin);
    block.accumulate = p.accumulate || begin > 0;
    run(block);
    if (step == 0) return;
  }
}

// Carves the transposed copies out of memory that the calling thread keeps.
struct LevelWorkspace {
  explicit LevelWorkspace(int64_t n_floats) {
    thread_local Scratch scratch;
    next = static_cast<float*>(scratch.at_least(n_floats * static_cast<int64_t>(sizeof(float))));
  }

  float* take(int64_t count) {
    float* data = next;
    next += count;
    return data;
  }

  float* next;
};

// At least `count` floats such that rows this far apart lie nine sets apart in an L1 cache of 64: the transposition
// goes through all levels at once, and with 2^18 points they would share a few sets.
inline int64_t skewed(int64_t count) {
  constexpr int64_t kLine = 16, kSets = 64, kSkew = 9;
  const int64_t lines = (count + kLine - 1) / kLine;
  return (lines + (kSkew + kSets - lines % kSets) % kSets) * kLine;
}

struct Wants {
  bool cotangents;      // of the position gradient
  bool grad_positions;  // summed over levels
  bool second;          // features of the second order
};

// Transposes the positions, and grad_y where `p` has one, for the fp32 passes; fp64 reads them as they are.
inline void prepare(HashEncodeParams& p, Wants wants = {}) {
  if (p.dtype == DType::kFloat64) return;
  constexpr int64_t kMultiple = 64;
  p.soa_stride = (p.n_points + kMultiple - 1) / kMultiple * kMultiple;
  p.level_stride = skewed(p.soa_stride * p.n_features);
  const int64_t points = p.n_dims * p.soa_stride, features = p.n_levels * p.level_stride;
  LevelWorkspace workspace(points * (1 + wants.cotangents + wants.grad_positions) + features * (1 + wants.second));
  const auto take_points = [&](bool zeros) {
    float* data = workspace.take(points);
    for (int d = 0; d < p.n_dims; ++d) {
      for (int64_t i = zeros ? 0 : p.n_points; i < p.soa_stride; ++i) data[d * p.soa_stride + i] = 0.0f;
    }
    return data;
  };
  p.soa_positions = take_points(false);
  if (wants.cotangents) p.soa_cotangents = take_points(false);
  if (wants.grad_positions) p.soa_grad_positions = take_points(true);
  p.level_features = workspace.take(features);
  if (wants.second) p.second_features = workspace.take(features);
  run_points(kernels().hash_encode_prepare, p);
}

// Features of all levels into workspace, from where hash_encode_finish_forward takes them; fp64 has none.
inline void encode_levels(HashEncodeParams& p) {
  prepare(p);
  if (p.dtype != DType::kFloat32) return;
  parallel_units(p.n_levels * n_level_chunks(p), 1,
                 [&](int64_t begin, int64_t end) { kernels().hash_encode_forward(p, begin, end); });
}

}  // namespace hashgrid
