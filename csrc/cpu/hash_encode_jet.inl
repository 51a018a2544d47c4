// The hash encoding along directions on the CPU: core/grid_jet.h over points and levels. A thread takes points for
// results and for the gradients of positions and directions, one (level, shard) for the table's, whose points add up in
// order whatever the number of threads. Products and sums are in double for either type, as in hash_encode_scalar.inl.
namespace hashgrid {
namespace HASHGRID_ISA {

template <typename T, int kDims>
static void jet_forward(const HashEncodeJetParams& p, int64_t begin, int64_t end) {
  const auto load = [&](int64_t i) { return load_feature(p.grid.table, p.grid.table_dtype, i); };
  for (int64_t n = begin; n < end; ++n) {
    const GridPoint<T, kDims> point = load_point<T, kDims>(p.grid, n);
    for (int l = 0; l < p.grid.n_levels; ++l) {
      write_jet<double>(p, point, n, l, std::numeric_limits<T>::quiet_NaN(), load);
    }
  }
}

template <typename T, int kDims>
static void jet_backward_points(const HashEncodeJetParams& p, int64_t begin, int64_t end) {
  const auto load = [&](int64_t i) { return load_feature(p.grid.table, p.grid.table_dtype, i); };
  for (int64_t n = begin; n < end; ++n) pull_back_jet<double>(p, load_point<T, kDims>(p.grid, n), n, load);
}

template <typename T, int kDims>
static void jet_backward_table(const HashEncodeJetParams& p, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const Shard shard = shard_of(p.grid, unit);
    T* rows = static_cast<T*>(p.grid.grad_table) + p.grid.levels[shard.level].offset * p.grid.n_features;
    const auto add = [&](uint32_t entry, int f, double value) {
      if (entry >= shard.low && entry < shard.high) rows[int64_t{entry} * p.grid.n_features + f] += value;
    };
    for (int64_t n = 0; n < p.grid.n_points; ++n) {
      scatter_jet<double>(p, load_point<T, kDims>(p.grid, n), n, shard.level, add);
    }
  }
}

// Work units of the three: points, points, (level, shard). Results of a point are rows [n_levels * F], of derivatives
// [K, n_levels * F]; its sums run over directions, levels and corners in order. The caller zeroes grad_table. fp32
// knows two and three dimensions whose axes are alike, what most fields have.
#define HASHGRID_JET_RANGE(name)                                                                     \
  static void hash_encode_##name##_range(const HashEncodeJetParams& p, int64_t begin, int64_t end) { \
    if (p.grid.dtype == DType::kFloat64) return name<double, 0>(p, begin, end);                      \
    const int n_dims = p.grid.per_axis ? 0 : p.grid.n_dims;                                          \
    if (n_dims == 2) return name<float, 2>(p, begin, end);                                           \
    if (n_dims == 3) return name<float, 3>(p, begin, end);                                           \
    name<float, 0>(p, begin, end);                                                                   \
  }
HASHGRID_JET_RANGE(jet_forward)
HASHGRID_JET_RANGE(jet_backward_points)
HASHGRID_JET_RANGE(jet_backward_table)
#undef HASHGRID_JET_RANGE

}  // namespace HASHGRID_ISA
}  // namespace hashgrid
