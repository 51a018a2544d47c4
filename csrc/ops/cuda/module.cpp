// The Python module hashgrid._C_cuda: what it was built for. Loading it registers the CUDA kernels of the ops.
#include <pybind11/pybind11.h>

#include <string>

#include "ops/supports_module.h"

PYBIND11_MODULE(_C_cuda, m) {
  m.doc() = "CUDA kernels of hashgrid";
  m.def("toolkit", [] { return std::string(HASHGRID_CUDA_RELEASE); }, "Release of the CUDA toolkit it was built with.");
  hashgrid::define_supports(m);
  m.def("archs", [] { return std::string(HASHGRID_CUDA_ARCHS); }, "GPUs it was built for.");
}
