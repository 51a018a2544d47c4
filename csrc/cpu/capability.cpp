#include "cpu/capability.h"

#include <cstdlib>
#include <stdexcept>

#include "cpu/kernels.h"

namespace hashgrid {

namespace {

struct Capability {
  const char* name;
  bool supported;
  const KernelTable* table;
};

std::vector<Capability> capabilities() {
  std::vector<Capability> all = {{"default", true, &kernels_default()}};
#if defined(HASHGRID_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  all.push_back({"avx2", avx2, &kernels_avx2()});
  all.push_back({"avx512", avx512, &kernels_avx512()});
  all.push_back({"avx512_bf16", bf16, &kernels_avx512_bf16()});
#endif
  return all;
}

Capability choose() {
  const std::vector<Capability> all = capabilities();
  const char* wanted = std::getenv("HASHGRID_CPU_CAPABILITY");
  Capability best = all.front();
  std::string names;
  for (const Capability& candidate : all) {
    if (!candidate.supported) continue;
    if (wanted != nullptr && wanted == std::string(candidate.name)) return candidate;
    names += (names.empty() ? "" : ", ") + std::string(candidate.name);
    best = candidate;
  }
  if (wanted != nullptr && *wanted != '\0') {
    throw std::runtime_error("HASHGRID_CPU_CAPABILITY must be one of [" + names + "] on this machine, got '" + wanted +
                             "'");
  }
  return best;
}

const Capability& chosen() {
  static const Capability capability = choose();
  return capability;
}

}  // namespace

std::vector<std::string> available_cpu_capabilities() {
  std::vector<std::string> names;
  for (const Capability& candidate : capabilities()) {
    if (candidate.supported) names.push_back(candidate.name);
  }
  return names;
}

const std::string& cpu_capability() {
  static const std::string name = chosen().name;
  return name;
}

const KernelTable& kernels() { return *chosen().table; }

}  // namespace hashgrid
