// sh_encode: checks, allocation and launch.
#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "ops/checks.h"
#include "ops/sh_encode.h"
#include "ops/memory.h"

namespace hashgrid {
namespace {

constexpr int64_t kGrain = 4096;

Tensor sh_encode_cpu(const Tensor& directions, int64_t degree) {
  ShEncodeParams p = make_sh_encode_params(directions, degree);
  Tensor y = torch::stable::new_empty(directions, {p.n_points, degree * degree});
  p.y = y.mutable_data_ptr();
  advise_huge_pages(p.y, y.numel() * (p.dtype == DType::kFloat64 ? 8 : 4));
  parallel_units(p.n_points, kGrain, [&](int64_t begin, int64_t end) { kernels().sh_encode_forward(p, begin, end); });
  return y;
}

Tensor sh_encode_backward_cpu(const Tensor& grad_y, const Tensor& directions, int64_t degree) {
  ShEncodeParams p = make_sh_encode_params(directions, degree);
  set_grad_y(grad_y, directions, p);
  Tensor grad_directions = torch::stable::new_empty(directions, {p.n_points, 3});
  p.grad_directions = grad_directions.mutable_data_ptr();
  parallel_units(p.n_points, kGrain, [&](int64_t begin, int64_t end) { kernels().sh_encode_backward(p, begin, end); });
  return grad_directions;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) {
  m.impl("sh_encode", TORCH_BOX(&sh_encode_cpu));
  m.impl("sh_encode_backward", TORCH_BOX(&sh_encode_backward_cpu));
}

}  // namespace hashgrid
