// Checks shared by the ops that take rays, and allocation.
#pragma once

#include "core/march_rays_params.h"
#include "ops/checks.h"
#include "ops/memory.h"

namespace hashgrid {

// On the device of `like`.
inline Tensor empty_like_dtype(const Tensor& like, std::vector<int64_t> shape,
                               std::optional<ScalarType> dtype = std::nullopt) {
  Tensor tensor = torch::stable::new_empty(like, shape, dtype);
  if (!tensor.is_cpu()) return tensor;
  const int64_t element_size = tensor.scalar_type() == ScalarType::Bool ? 1 : 4;  // or more
  advise_huge_pages(tensor.mutable_data_ptr(), tensor.numel() * element_size);
  return tensor;
}

inline int64_t element_bytes(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }

// The dtype of rays_o [R, 3], which rays_d and aabb [6] share.
inline DType check_rays(const Tensor& rays_o, const Tensor& rays_d, const Tensor& aabb) {
  STD_TORCH_CHECK(rays_o.dim() == 2 && rays_o.size(1) == 3, "`rays_o` must have shape [R, 3], got ", shape_of(rays_o));
  STD_TORCH_CHECK(rays_d.dim() == 2 && rays_d.size(0) == rays_o.size(0) && rays_d.size(1) == 3,
                  "`rays_d` must have the shape of `rays_o`, ", shape_of(rays_o), ", got ", shape_of(rays_d));
  check_shape(aabb, "aabb", {6});
  const DType dtype = real_dtype_of(rays_o, "rays_o");
  check_dtype(rays_d, "rays_d", rays_o.scalar_type());
  check_dtype(aabb, "aabb", rays_o.scalar_type());
  check_contiguous(rays_o, "rays_o");
  check_contiguous(rays_d, "rays_d");
  check_contiguous(aabb, "aabb");
  return dtype;
}

// Cells of an occupancy grid; it must be possible to count them in 31 bits.
inline int64_t check_grid(const std::vector<int64_t>& resolution, int64_t n_cascades, int32_t* resolution_out) {
  STD_TORCH_CHECK(n_cascades >= 1 && n_cascades <= kMaxCascades, "`n_cascades` must be in 1..", kMaxCascades, ", got ",
                  n_cascades);
  bool positive = resolution.size() == 3;
  double n_cells = static_cast<double>(n_cascades);
  for (const int64_t cells : resolution) {
    positive = positive && cells > 0;
    n_cells *= static_cast<double>(cells);
  }
  STD_TORCH_CHECK(positive, "`resolution` must be three positive numbers");
  STD_TORCH_CHECK(n_cells < 2147483648.0, "the grid must have less than 2^31 cells, got ", n_cells);
  for (int axis = 0; axis < 3; ++axis) resolution_out[axis] = static_cast<int32_t>(resolution[axis]);
  return static_cast<int64_t>(n_cells);
}

// Seed and step [2] of counter-based random numbers.
inline const int64_t* counter_data(const Tensor& counter) {
  check_shape(counter, "counter", {2});
  check_dtype(counter, "counter", ScalarType::Long);
  check_contiguous(counter, "counter");
  return static_cast<const int64_t*>(counter.const_data_ptr());
}
inline const int64_t* counter_data(const std::optional<Tensor>& counter) {
  return counter.has_value() ? counter_data(*counter) : nullptr;
}

inline const int64_t* packed_info_data(const Tensor& packed_info) {
  STD_TORCH_CHECK(packed_info.dim() == 2 && packed_info.size(1) == 2, "`packed_info` must have shape [R, 2], got ",
                  shape_of(packed_info));
  check_dtype(packed_info, "packed_info", ScalarType::Long);
  check_contiguous(packed_info, "packed_info");
  return static_cast<const int64_t*>(packed_info.const_data_ptr());
}

// The first sample of each ray from the numbers of samples, the second column of `info` [n_rays, 2]; returns their sum.
inline int64_t place_rays(int64_t* info, int64_t n_rays) {
  int64_t total = 0;
  for (int64_t ray = 0; ray < n_rays; ++ray) {
    info[2 * ray] = total;
    total += info[2 * ray + 1];
  }
  return total;
}

struct PackedRays {
  int64_t n_samples;  // of all rays; samples behind these belong to no ray
  int64_t longest;    // ray
};

// `info` [n_rays, 2] lies in host memory and must list up to n_samples samples back to back.
inline PackedRays check_back_to_back(const int64_t* info, int64_t n_rays, int64_t n_samples) {
  int64_t total = 0, longest = 0;
  for (int64_t ray = 0; ray < n_rays; ++ray) {
    const int64_t start = info[2 * ray], count = info[2 * ray + 1];
    STD_TORCH_CHECK(count >= 0 && start == total, "`packed_info` must list rays back to back, in order: ray ", ray,
                    " must start at ", total, ", got start ", start, " and count ", count);
    total += count;
    longest = longest < count ? count : longest;
  }
  STD_TORCH_CHECK(total <= n_samples, "`packed_info` must count up to ", n_samples,
                  " samples, those of `t_starts`, got ", total);
  return {total, longest};
}

}  // namespace hashgrid
