// line_integrals: checks, allocation and launch.
#include <cstring>

#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "ops/line_integrals.h"

namespace hashgrid {
namespace {

constexpr int64_t kRayGrain = 256;

// Zeros for the samples that belong to no ray: those of `values` [n_samples, width] from number `begin` on.
void clear_from(void* values, const LineIntegralsParams& p, int64_t begin, int64_t width) {
  if (values == nullptr) return;
  const int64_t row_bytes = width * element_bytes(p.dtype);
  std::memset(static_cast<char*>(values) + begin * row_bytes, 0, (p.n_samples - begin) * row_bytes);
}

Tensor line_integrals_cpu(const Tensor& values, const Tensor& steps, const Tensor& packed_info) {
  LineIntegralsParams p = make_line_integrals_params(values, steps, packed_info);
  check_back_to_back(p.packed_info, p.n_rays, p.n_samples);
  Tensor sums = allocate_sums(values, &p);
  parallel_units(p.n_rays, kRayGrain,
                 [&](int64_t begin, int64_t end) { kernels().line_integrals_forward(p, begin, end); });
  return sums;
}

std::tuple<Tensor, Tensor> line_integrals_backward_cpu(const Tensor& grad_sums, const Tensor& values,
                                                       const Tensor& steps, const Tensor& packed_info, bool need_values,
                                                       bool need_steps) {
  LineIntegralsParams p = make_line_integrals_params(values, steps, packed_info);
  p.grad_sums = checked_data(grad_sums, "grad_sums", {p.n_rays, p.n_channels}, values.scalar_type());
  const int64_t n_placed = check_back_to_back(p.packed_info, p.n_rays, p.n_samples).n_samples;
  const std::tuple<Tensor, Tensor> gradients = allocate_integral_gradients(values, need_values, need_steps, false, &p);
  parallel_units(p.n_rays, kRayGrain,
                 [&](int64_t begin, int64_t end) { kernels().line_integrals_backward(p, begin, end); });
  clear_from(p.grad_values, p, n_placed, p.n_channels);
  clear_from(p.grad_steps, p, n_placed, 1);
  return gradients;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hashgrid, CPU, m) {
  m.impl("line_integrals", TORCH_BOX(&line_integrals_cpu));
  m.impl("line_integrals_backward", TORCH_BOX(&line_integrals_backward_cpu));
}

}  // namespace hashgrid
