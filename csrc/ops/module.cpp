// The Python module hashgrid._C: host functions that are no tensor ops. Loading it registers the ops.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/capability.h"
#include "cpu/fma_rate.h"
#include "ops/jets.h"
#include "ops/supports_module.h"
#include "ops/thread_pool.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU kernels of hashgrid";
  m.def("cpu_capability", [] { return hashgrid::cpu_capability(); }, "Instruction set the CPU kernels use.");
  m.def("available_cpu_capabilities", &hashgrid::available_cpu_capabilities,
        "Instruction sets this machine supports, weakest first.");
  m.def("measure_fma_rate", &hashgrid::measure_fma_rate, pybind11::arg("n_threads"),
        pybind11::call_guard<pybind11::gil_scoped_release>(),
        "Multiply-adds in fp32 that the instruction set in use reaches with so many threads, in FLOP/s.");
  m.def("use_own_threads", &hashgrid::ThreadPool::use, pybind11::arg("yes"), pybind11::arg("n_threads"),
        "Whether ops run on hashgrid's own threads, and on how many (0: as many as PyTorch has).");
  m.def(
      "own_threads", [] { return std::make_pair(hashgrid::ThreadPool::in_use(), hashgrid::ThreadPool::n_threads()); },
      "What `use_own_threads` was told last.");
  hashgrid::define_supports(m);
  m.attr("MAX_MLP_LAYERS") = hashgrid::kMaxMlpLayers;
  m.attr("MAX_JET_DIRECTIONS") = hashgrid::kMaxJetDirections;
  m.def("compiler", [] { return std::string(HASHGRID_COMPILER); }, "Compiler the extension was built with.");
  m.def(
      "no_cuda", [] { return std::string(HASHGRID_NO_CUDA); },
      "Why the CUDA kernels were not built; empty if they were.");
}
