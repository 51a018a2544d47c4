// Checks shared by the ops that take rays.
#pragma once

#include "ops/checks.h"
#include "ops/memory.h"

namespace hashgrid {

inline Tensor empty_like_dtype(const Tensor& like, std::vector<int64_t> shape,
                               std::optional<ScalarType> dtype = std::nullopt) {
  Tensor tensor = torch::stable::new_empty(like, shape, dtype);
  advise_huge_pages(tensor.mutable_data_ptr(), tensor.numel() * 4);
  return tensor;
}

inline int64_t element_bytes(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }

inline void check_contiguous(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.is_contiguous(), "`", name, "` must be contiguous");
}

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

}  // namespace hashgrid
