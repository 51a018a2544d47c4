// The hash encoding along directions on CUDA: core/grid_jet.h, a thread per point and level for results and for the
// table's gradient, which atomics add up in any order; a thread per point for the gradients of positions and
// directions.
#include "cuda/hash_encode.cuh"

#include <type_traits>

#include "core/grid_jet.h"

namespace hashgrid {
namespace HASHGRID_ISA {

constexpr int kJetThreads = 128;

// Thread: point global_thread() at level blockIdx.y, on its own. Writes F values, [K, F] first derivatives and [K, F]
// second ones of the level into the point's rows of the three results, [n_points, n_levels * F] and [n_points, K,
// n_levels * F]. Sums over corners, in their order, are in A.
template <typename T, int kDims>
__global__ void hash_encode_jet_forward_kernel(HASHGRID_PARAMS HashEncodeJetParams p) {
  typedef typename Arithmetic<T, kDims>::Type A;
  const int64_t n = global_thread();
  if (n >= p.grid.n_points) return;
  const T* table = static_cast<const T*>(p.grid.table);
  write_jet<A>(p, load_point<T, kDims>(p.grid, n), n, static_cast<int>(blockIdx.y), std::numeric_limits<T>::quiet_NaN(),
               [=](int64_t i) { return static_cast<A>(table[i]); });
}

// Thread: one point, on its own; writes the gradients of its position [n_dims] and of its directions [K, n_dims], each
// unless it is not asked for. Sums run over the levels and their corners, of the position over the directions first, in
// that order, in A; they stay in registers.
template <typename T, int kDims>
__global__ void hash_encode_jet_backward_points_kernel(HASHGRID_PARAMS HashEncodeJetParams p) {
  typedef typename Arithmetic<T, kDims>::Type A;
  const int64_t n = global_thread();
  if (n >= p.grid.n_points) return;
  const T* table = static_cast<const T*>(p.grid.table);
  pull_back_jet<A>(p, load_point<T, kDims>(p.grid, n), n, [=](int64_t i) { return static_cast<A>(table[i]); });
}

// Thread: point global_thread() at level blockIdx.y. For every direction it adds to 2^D rows of grad_table by atomics,
// in any order; a value is a product of three in A, and zeros are not added.
template <typename T, int kDims>
__global__ void hash_encode_jet_backward_table_kernel(HASHGRID_PARAMS HashEncodeJetParams p) {
  typedef typename Arithmetic<T, kDims>::Type A;
  const int64_t n = global_thread();
  if (n >= p.grid.n_points) return;
  const int l = static_cast<int>(blockIdx.y);
  T* rows = static_cast<T*>(p.grid.grad_table) + p.grid.levels[l].offset * p.grid.n_features;
  const int n_features = p.grid.n_features;
  scatter_jet<A>(p, load_point<T, kDims>(p.grid, n), n, l, [=](uint32_t entry, int f, A value) {
    if (value != A(0)) atomicAdd(rows + static_cast<int64_t>(entry) * n_features + f, static_cast<T>(value));
  });
}

// launch(T, dims) with types as values: fp32 knows two and three dimensions whose axes are alike.
template <typename Launch>
void with_jet_types(const HashEncodeParams& p, Launch launch) {
  if (p.dtype == DType::kFloat64) return launch(double(), std::integral_constant<int, 0>());
  const int n_dims = p.per_axis ? 0 : p.n_dims;
  if (n_dims == 2) return launch(float(), std::integral_constant<int, 2>());
  if (n_dims == 3) return launch(float(), std::integral_constant<int, 3>());
  launch(float(), std::integral_constant<int, 0>());
}

}  // namespace HASHGRID_ISA

using namespace HASHGRID_ISA;

void launch_hash_encode_jet_forward(const HashEncodeJetParams& p, cudaStream_t stream) {
  with_jet_types(p.grid, [&](auto real, auto dims) {
    HASHGRID_LAUNCH((hash_encode_jet_forward_kernel<decltype(real), decltype(dims)::value>),
                    blocks_of(p.grid.n_points, kJetThreads, static_cast<unsigned>(p.grid.n_levels)), stream, p);
  });
}

void launch_hash_encode_jet_backward_points(const HashEncodeJetParams& p, cudaStream_t stream) {
  with_jet_types(p.grid, [&](auto real, auto dims) {
    HASHGRID_LAUNCH((hash_encode_jet_backward_points_kernel<decltype(real), decltype(dims)::value>),
                    blocks_of(p.grid.n_points, kJetThreads), stream, p);
  });
}

void launch_hash_encode_jet_backward_table(const HashEncodeJetParams& p, cudaStream_t stream) {
  with_jet_types(p.grid, [&](auto real, auto dims) {
    HASHGRID_LAUNCH((hash_encode_jet_backward_table_kernel<decltype(real), decltype(dims)::value>),
                    blocks_of(p.grid.n_points, kJetThreads, static_cast<unsigned>(p.grid.n_levels)), stream, p);
  });
}

}  // namespace hashgrid
