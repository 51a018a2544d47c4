// Which fused ops have kernels on the CPU.
#include "ops/supports.h"

namespace hashgrid {

bool supports(const std::string& op, int64_t, const FusedShape& shape) {
  if (op == "radiance_mlp") return networks_of(shape).has_value() && shape.n_density_layers > 0;
  return false;
}

}  // namespace hashgrid
