// Hints for large outputs that are about to be written once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace hashgrid {

// A fresh allocation of tens of megabytes otherwise costs a page fault per 4 KB, a third of the table gradient's time.
inline void advise_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr int64_t kHugePage = int64_t{1} << 21;
  if (bytes < 2 * kHugePage) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) & ~static_cast<uintptr_t>(kHugePage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~static_cast<uintptr_t>(kHugePage - 1);
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

// Memory that one thread keeps from call to call, where a fresh allocation would fault its pages anew.
class Scratch {
 public:
  // At least `bytes`, aligned to cache lines; what the last call returned is gone.
  void* at_least(int64_t bytes) {
    constexpr int64_t kLine = 64;
    if (size_ < bytes + kLine) {
      memory_.reset();
      size_ = 0;
      memory_.reset(new char[static_cast<size_t>(bytes + kLine)]);
      size_ = bytes + kLine;
      advise_huge_pages(memory_.get(), size_);
    }
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory_.get());
    return reinterpret_cast<void*>((address + kLine - 1) & ~static_cast<uintptr_t>(kLine - 1));
  }

 private:
  std::unique_ptr<char[]> memory_;
  int64_t size_ = 0;
};

}  // namespace hashgrid
