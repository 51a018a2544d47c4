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

// At least `bytes` of memory that belong to the calling thread until it asks again, aligned to cache lines. Kept from
// call to call: a fresh allocation per call would fault its pages anew.
inline void* thread_scratch(int64_t bytes) {
  constexpr int64_t kLine = 64;
  thread_local std::unique_ptr<char[]> memory;
  thread_local int64_t size = 0;
  if (size < bytes + kLine) {
    memory.reset();
    size = 0;
    memory.reset(new char[static_cast<size_t>(bytes + kLine)]);
    size = bytes + kLine;
  }
  const uintptr_t address = reinterpret_cast<uintptr_t>(memory.get());
  return reinterpret_cast<void*>((address + kLine - 1) & ~static_cast<uintptr_t>(kLine - 1));
}

}  // namespace hashgrid
