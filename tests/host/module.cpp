// The Python module of the emulated kernels: how often each was launched, what their launchers asked the driver.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <map>
#include <string>

#include "ops/supports_module.h"

namespace hashgrid {
std::map<std::string, int64_t> emulated_launches();
int64_t emulated_questions();
}  // namespace hashgrid

namespace {

// "f<float, 3>" -> "f"
std::map<std::string, int64_t> launches() {
  std::map<std::string, int64_t> counts;
  for (const auto& [name, count] : hashgrid::emulated_launches()) counts[name.substr(0, name.find('<'))] += count;
  return counts;
}

}  // namespace

PYBIND11_MODULE(hashgrid_on_host, m) {
  m.doc() = "CUDA kernels of hashgrid, emulated on the CPU; loading it registers torch.ops.hashgrid_on_host";
  hashgrid::define_supports(m);
  m.def("launches", &launches, "Number of launches of each kernel in this process, 0 of those never launched.");
  m.def("questions", &hashgrid::emulated_questions, "How often the driver was asked about devices and kernels.");
  m.def("instances", &hashgrid::emulated_launches, "The same of each instance, by its name with template arguments.");
}
