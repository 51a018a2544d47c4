// What every CUDA op shares: its device, stream and workspace for as long as it runs, and the library it registers in.
#pragma once

#include <cstring>

#include "cuda/kernels.h"
#include "ops/checks.h"

#if defined(HASHGRID_ON_HOST)
// The kernels emulated on the host work on CPU tensors, beside the CPU's own; see tests/host.
#define HASHGRID_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(hashgrid_on_host, CPU, m)
#else
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#define HASHGRID_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(hashgrid, CUDA, m)
#if !defined(USE_CUDA)
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);
#endif
#endif

namespace hashgrid {

// Makes the device of `like` the current one, and knows its current stream. Further tensors have to be on that device.
class DeviceScope {
 public:
#if defined(HASHGRID_ON_HOST)
  explicit DeviceScope(const Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
  void check(const Tensor&, const char*) const {}
  bool holds(const Tensor&) const { return true; }
  void read_back(void* target, const void* source, size_t bytes) const { std::memcpy(target, source, bytes); }
#else
  explicit DeviceScope(const Tensor& like) : index_(cuda_index(like)), guard_(index_) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }
  void check(const Tensor& tensor, const char* name) const {
    STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == index_, "`", name, "` must be on cuda:", index_,
                    " like the other tensors, got ",
                    tensor.is_cuda() ? "cuda:" + std::to_string(tensor.get_device_index()) : "another kind of device");
  }
  bool holds(const Tensor& tensor) const { return tensor.is_cuda() && tensor.get_device_index() == index_; }

  // Copies from the device and waits until the stream has come that far. Fails while a CUDA graph is being captured.
  void read_back(void* target, const void* source, size_t bytes) const {
    cudaError_t status = cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToHost, stream_);
    if (status == cudaSuccess) status = cudaStreamSynchronize(stream_);
    if (status != cudaSuccess) (void)cudaGetLastError();  // or the next launch would be blamed for it
    STD_TORCH_CHECK(status == cudaSuccess, "a result could not be read from the device: ", cudaGetErrorString(status));
  }
#endif
  void check(const std::optional<Tensor>& tensor, const char* name) const {
    if (tensor.has_value()) check(*tensor, name);
  }
  void check(const std::vector<Tensor>& tensors, const char* name) const {
    for (const Tensor& tensor : tensors) check(tensor, name);
  }

 private:
#if !defined(HASHGRID_ON_HOST)
  // Before the guard, which knows no device that is not CUDA's. The dispatcher comes here when any tensor is on CUDA.
  static int32_t cuda_index(const Tensor& like) {
    STD_TORCH_CHECK(like.is_cuda(),
                    "all tensors must be on the same device, got one that is on another kind of device than the CUDA "
                    "tensors; move modules and inputs with `.to(device)`");
    return like.get_device_index();
  }

  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
#endif
};

// `tensor`, or a copy of it that begins at a multiple of 16 bytes: kernels load rows as vectors, and a view may begin
// anywhere.
inline Tensor aligned(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0 ? tensor : torch::stable::clone(tensor);
}

// For messages about kernels that are missing.
inline const char* missing_tensor_cores() {
  return has_tensor_cores() ? "" : " without tensor cores of sm_80 or later";
}

// Tensors that live as long as one op call. Torch's allocator hands their memory to later work of the same stream only.
struct Workspace {
  std::vector<Tensor> tensors;

  void* add(const Tensor& like, int64_t bytes) {
    if (bytes == 0) return nullptr;
    tensors.push_back(empty(like, {bytes}, ScalarType::Byte));
    return tensors.back().mutable_data_ptr();
  }

  void* zeros(const Tensor& like, const std::vector<int64_t>& shape, ScalarType dtype) {
    tensors.push_back(torch::stable::new_zeros(like, shape, dtype));
    return tensors.back().mutable_data_ptr();
  }
};

}  // namespace hashgrid
