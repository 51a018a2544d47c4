// march_rays: checks, allocation and launch.
//
// Rays are marched in chunks, whose samples go to memory of the thread that took the chunk. Once all counts are known,
// they are copied to where their ray belongs: the result does not depend on who marched what.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "ops/march_rays.h"

namespace hashgrid {
namespace {

constexpr int64_t kRayGrain = 512;                   // rays per chunk: many more than there are lanes to refill
constexpr int64_t kBlockSamples = int64_t{1} << 16;  // smallest block of a thread's memory

// Samples of the chunks one thread marched. Blocks stay where they are; memory is touched only where samples lie.
class SampleArena {
 public:
  explicit SampleArena(int64_t sample_bytes) : sample_bytes_(sample_bytes) {}

  char* reserve(int64_t n_samples) {
    const int64_t bytes = n_samples * sample_bytes_;
    if (blocks_.empty() || used_ + bytes > capacity_) {
      capacity_ = std::max(bytes, kBlockSamples * sample_bytes_);
      used_ = 0;
      blocks_.emplace_back(new char[capacity_]);
    }
    return blocks_.back().get() + used_;
  }
  void commit(int64_t n_samples) { used_ += n_samples * sample_bytes_; }

 private:
  int64_t sample_bytes_;
  int64_t capacity_ = 0, used_ = 0;
  std::vector<std::unique_ptr<char[]>> blocks_;
};

// An upper bound of the samples of one ray.
int64_t sample_bound(const MarchRaysParams& p, int64_t ray) {
  const auto distance = [&](const void* values) {
    return p.dtype == DType::kFloat64 ? static_cast<const double*>(values)[ray]
                                      : static_cast<double>(static_cast<const float*>(values)[ray]);
  };
  const double t_stop = distance(p.t_stop);
  if (!(t_stop < INFINITY)) return 0;
  // The slack covers the rounding of t: less than one step in 2^20 for the distances a float can still step along.
  const double n_steps = (t_stop - distance(p.t_begin)) / p.step_size * (1.0 + 1e-5) + 2.0;
  if (!(n_steps > 0.0)) return 0;
  return n_steps < static_cast<double>(p.max_samples_per_ray) ? static_cast<int64_t>(n_steps) : p.max_samples_per_ray;
}

// Cuts and fills up a result of fixed size once all counts are known: see `n_samples` of hashgrid.ops.march_rays.
Tensor fit_result(const MarchRaysParams& p, int64_t n_rays_in_use, const Tensor& like, int64_t* n_marched) {
  Tensor totals = empty_like_dtype(like, {2}, ScalarType::Long);
  int64_t* total = static_cast<int64_t*>(totals.mutable_data_ptr());
  total[0] = *n_marched;
  total[1] = n_rays_in_use;
  if (*n_marched <= p.n_samples) return totals;
  int64_t ray = 0;
  while (p.packed_info[2 * ray] + p.packed_info[2 * ray + 1] <= p.n_samples) ++ray;
  total[1] = ray;
  *n_marched = p.packed_info[2 * ray];
  for (; ray < p.n_rays; ++ray) {
    p.packed_info[2 * ray] = *n_marched;
    p.packed_info[2 * ray + 1] = 0;
  }
  return totals;
}

template <typename T>
void fill_up(const MarchRaysParams& p, int64_t n_marched) {
  T* t_starts = static_cast<T*>(p.t_starts);
  for (int64_t i = n_marched; i < p.n_samples; ++i) {
    t_starts[i] = n_marched > 0 ? t_starts[i % n_marched] : T(0);
    static_cast<T*>(p.t_ends)[i] = t_starts[i];
    p.ray_indices[i] = n_marched > 0 ? p.ray_indices[i % n_marched] : i % p.n_rays;
  }
}

MarchRaysOutputs march_rays_cpu(const Tensor& rays_o, const Tensor& rays_d, const Tensor& aabb, const Tensor& bits,
                                const std::vector<int64_t>& resolution, int64_t n_cascades, double step_size,
                                double cone_angle, double near, double far, const std::optional<Tensor>& limits,
                                const std::optional<Tensor>& counter, const std::optional<Tensor>& n_rays,
                                int64_t max_samples_per_ray, std::optional<int64_t> n_samples) {
  MarchRaysParams p = make_march_rays_params(rays_o, rays_d, aabb, bits, resolution, n_cascades, step_size, cone_angle,
                                             near, far, limits, counter, n_rays, max_samples_per_ray, n_samples);
  const int64_t n_rays_in_use =
      p.n_rays_in_use != nullptr ? std::clamp<int64_t>(*p.n_rays_in_use, 0, p.n_rays) : p.n_rays;
  const KernelTable& kernel = kernels();
  const int64_t sample_bytes = element_bytes(p.dtype);

  // The kernels read whole words.
  std::vector<uint32_t> padded;
  const void* bytes = bits.const_data_ptr();
  if (bits.numel() % 4 != 0 || reinterpret_cast<uintptr_t>(bytes) % 4 != 0) {
    padded.resize((bits.numel() + 3) / 4);
    std::memcpy(padded.data(), bytes, bits.numel());
    bytes = padded.data();
  }
  p.bits = static_cast<const uint8_t*>(bytes);
  std::vector<uint32_t> bricks;
  if (bricks_fit(p)) {
    const int64_t n_words = (n_bricks_of(p) + 3) / 4;
    bricks.resize(2 * n_words + int64_t{p.n_cascades} * p.resolution[2] / 4);
    p.bricks = reinterpret_cast<uint8_t*>(bricks.data());
    p.brick_copies = reinterpret_cast<uint8_t*>(bricks.data() + n_words);
    parallel_units(p.n_cascades, 1, [&](int64_t begin, int64_t end) { kernel.march_rays_bricks(p, begin, end); });
  }

  Tensor span = empty_like_dtype(rays_o, {2, p.n_rays});
  p.t_begin = span.mutable_data_ptr();
  p.t_stop = static_cast<char*>(p.t_begin) + p.n_rays * sample_bytes;
  Tensor packed_info = empty_like_dtype(rays_o, {p.n_rays, 2}, ScalarType::Long);
  p.packed_info = static_cast<int64_t*>(packed_info.mutable_data_ptr());
  std::unique_ptr<const void*[]> ray_samples(new const void*[p.n_rays]);
  p.ray_samples = ray_samples.get();
  parallel_units(p.n_rays, 4096, [&](int64_t begin, int64_t end) { kernel.march_rays_begin(p, begin, end); });

  std::vector<int64_t> bounds(p.n_rays);
  int64_t longest = 0;
  for (int64_t ray = 0; ray < n_rays_in_use; ++ray) {
    bounds[ray] = sample_bound(p, ray);
    longest = std::max(longest, bounds[ray]);
  }
  // An odd number of cache lines apart, or the lanes' buffers would compete for one set of the cache.
  p.lane_capacity = (std::min<int64_t>(longest, int64_t{1} << 24) / 32 + 1) * 32 + 16;

  const int64_t n_workers = n_threads_in_use();
  std::vector<SampleArena> arenas;
  for (int64_t worker = 0; worker < n_workers; ++worker) arenas.emplace_back(sample_bytes);
  std::atomic<int64_t> next_ray{0};
  const auto work = [&](int64_t worker) {
    MarchRaysParams q = p;
    std::unique_ptr<char[]> lanes(new char[kMarchGroups * kMaxLanes * p.lane_capacity * sample_bytes]);
    q.lane_samples = lanes.get();
    for (;;) {
      const int64_t begin = next_ray.fetch_add(kRayGrain);
      if (begin >= n_rays_in_use) return;
      const int64_t end = std::min(begin + kRayGrain, n_rays_in_use);
      int64_t bound = 0, count = 0;
      for (int64_t ray = begin; ray < end; ++ray) bound += bounds[ray];
      q.samples = arenas[worker].reserve(bound);
      kernel.march_rays(q, begin, end);
      for (int64_t ray = begin; ray < end; ++ray) count += p.packed_info[2 * ray + 1];
      arenas[worker].commit(count);
    }
  };
  parallel_units(n_workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) work(worker);
  });

  int64_t n_marched = 0;
  for (int64_t ray = 0; ray < p.n_rays; ++ray) {
    if (ray >= n_rays_in_use) p.packed_info[2 * ray + 1] = 0;
    p.packed_info[2 * ray] = n_marched;
    n_marched += p.packed_info[2 * ray + 1];
  }
  Tensor totals;
  if (p.fixed) {
    totals = fit_result(p, n_rays_in_use, rays_o, &n_marched);
  } else {
    p.n_samples = n_marched;
    totals = empty_like_dtype(rays_o, {0}, ScalarType::Long);
  }
  Tensor t_starts = empty_like_dtype(rays_o, {p.n_samples});
  Tensor t_ends = empty_like_dtype(rays_o, {p.n_samples});
  Tensor ray_indices = empty_like_dtype(rays_o, {p.n_samples}, ScalarType::Long);
  p.t_starts = t_starts.mutable_data_ptr();
  p.t_ends = t_ends.mutable_data_ptr();
  p.ray_indices = static_cast<int64_t*>(ray_indices.mutable_data_ptr());
  parallel_units(p.n_rays, kRayGrain, [&](int64_t begin, int64_t end) { kernel.march_rays_write(p, begin, end); });
  p.dtype == DType::kFloat64 ? fill_up<double>(p, n_marched) : fill_up<float>(p, n_marched);
  return {t_starts, t_ends, ray_indices, packed_info, totals};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) { m.impl("march_rays", TORCH_BOX(&march_rays_cpu)); }

}  // namespace hashgrid
