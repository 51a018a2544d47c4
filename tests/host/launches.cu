#include "cuda/launch.cuh"

namespace hashgrid {
std::map<std::string, int64_t> emulated_launches() {
  std::map<std::string, int64_t> counts;
  for (const auto& [name, kernel] : hashgrid_on_host::kernels()) counts[name] = kernel.launches;
  return counts;
}
int64_t emulated_questions() { return hashgrid_on_host::questions; }
}  // namespace hashgrid
