// The Python module of the emulated kernels: how often each was launched.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <map>
#include <string>

namespace hashgrid {
std::map<std::string, int64_t> emulated_launches();
}

PYBIND11_MODULE(hashgrid_on_host, m) {
  m.doc() = "CUDA kernels of hashgrid, emulated on the CPU; loading it registers torch.ops.hashgrid_on_host";
  m.def("launches", &hashgrid::emulated_launches, "Number of launches of each kernel in this process.");
}
