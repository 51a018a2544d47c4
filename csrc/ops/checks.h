// What every op of this folder shares: the stable tensor type, checks with readable messages, threading.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <atomic>
#include <cstdint>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "ops/thread_pool.h"

namespace hashgrid {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Tensor empty(const Tensor& like, std::vector<int64_t> shape, std::optional<ScalarType> dtype = std::nullopt) {
  return torch::stable::new_empty(like, shape, dtype);
}

inline std::string shape_of(const Tensor& tensor) {
  std::ostringstream out;
  out << "[";
  for (int64_t d = 0; d < tensor.dim(); ++d) out << (d > 0 ? ", " : "") << tensor.size(d);
  out << "]";
  return out.str();
}

inline const char* name_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Bool:
      return "bool";
    default:
      return "another dtype";
  }
}

inline void check_shape(const Tensor& tensor, const char* name, const std::vector<int64_t>& shape) {
  bool same = tensor.dim() == static_cast<int64_t>(shape.size());
  for (size_t d = 0; same && d < shape.size(); ++d) same = shape[d] < 0 || tensor.size(d) == shape[d];
  if (same) return;
  std::ostringstream wanted;
  for (size_t d = 0; d < shape.size(); ++d) {
    wanted << (d > 0 ? ", " : "");
    if (shape[d] < 0) {
      wanted << "N";
    } else {
      wanted << shape[d];
    }
  }
  STD_TORCH_CHECK(false, "`", name, "` must have shape [", wanted.str(), "], got ", shape_of(tensor));
}

inline void check_dtype(const Tensor& tensor, const char* name, ScalarType dtype) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, "`", name, "` must be ", name_of(dtype), ", got ",
                  name_of(tensor.scalar_type()));
}

inline void check_contiguous(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.is_contiguous(), "`", name, "` must be contiguous");
}

// The data of a contiguous tensor of this shape and dtype.
inline const void* checked_data(const Tensor& tensor, const char* name, const std::vector<int64_t>& shape,
                                ScalarType dtype) {
  check_shape(tensor, name, shape);
  check_dtype(tensor, name, dtype);
  check_contiguous(tensor, name);
  return tensor.const_data_ptr();
}

// The same, null where there is no tensor.
inline const void* checked_data(const std::optional<Tensor>& tensor, const char* name,
                                const std::vector<int64_t>& shape, ScalarType dtype) {
  return tensor.has_value() ? checked_data(*tensor, name, shape, dtype) : nullptr;
}

inline DType dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    default:
      STD_TORCH_CHECK(false, "`", name, "` must be float32, float64, float16 or bfloat16, got ",
                      name_of(tensor.scalar_type()));
  }
}

// fp32 or fp64: the dtypes positions, activations and gradients come in.
inline DType real_dtype_of(const Tensor& tensor, const char* name) {
  const DType dtype = dtype_of(tensor, name);
  STD_TORCH_CHECK(dtype == DType::kFloat32 || dtype == DType::kFloat64, "`", name, "` must be float32 or float64, got ",
                  name_of(tensor.scalar_type()));
  return dtype;
}

// Threads that an op may take.
inline int64_t n_threads_in_use() {
  const int64_t n = ThreadPool::n_threads();
  return n > 0 ? n : static_cast<int64_t>(torch::stable::get_num_threads());
}

// Work units [0, n) of uneven cost on all threads. Each thread takes the next `grain` units when it is done, so results
// may only depend on the unit, never on the thread.
template <typename F>
void parallel_units(int64_t n, int64_t grain, const F& f) {
  if (n <= 0) return;
  const int64_t n_threads = n > grain ? n_threads_in_use() : 1;
  if (n_threads == 1) return f(int64_t{0}, n);
  if (ThreadPool::in_use()) {
    const auto range = [](const void* context, int64_t begin, int64_t end) {
      (*static_cast<const F*>(context))(begin, end);
    };
    return ThreadPool::get().run(n, grain, n_threads, range, &f);
  }
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, n_threads, 1, [&](int64_t, int64_t) {
    for (;;) {
      const int64_t begin = next.fetch_add(grain);
      if (begin >= n) return;
      f(begin, begin + grain < n ? begin + grain : n);
    }
  });
}

}  // namespace hashgrid
