// Which instruction set the CPU kernels use. Chosen once: the best the machine has, or HASHGRID_CPU_CAPABILITY.
#pragma once

#include <string>
#include <vector>

namespace hashgrid {

struct KernelTable;

// Names of the sets this build has and this machine supports, weakest first: "default", "avx2", "avx512", ...
std::vector<std::string> available_cpu_capabilities();

// The set in use. Throws std::runtime_error when HASHGRID_CPU_CAPABILITY names one that is unknown or unsupported.
const std::string& cpu_capability();

const KernelTable& kernels();

}  // namespace hashgrid
