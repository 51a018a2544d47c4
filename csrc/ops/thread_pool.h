// Threads of our own for the range kernels: a caller never waits for a thread that has not begun.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <vector>

namespace hashgrid {

typedef void (*UnitRange)(const void* context, int64_t begin, int64_t end);

// A job's units are taken from one counter by the caller and by workers. A region of PyTorch's threads ends when each
// of them has been there, also one that a busy machine has not let run yet, and they spin for milliseconds between
// regions, which uses up their share of the core before the next one begins. Here the caller takes what nobody else
// takes, and waits only for units that are being worked on. Workers spin while the core is theirs alone, and sleep
// where it is not.
//
// Beside PyTorch's spinning threads ours would have to share their cores, so they are used only where PyTorch's do not
// spin or have nothing to do (hashgrid/util/threads.py). Several threads may call; workers help whoever has units left.
class ThreadPool {
 public:
  // The one of this process. It is never destroyed: workers wait in it until the process ends.
  static ThreadPool& get();

  // Whether ops run on it, and on how many threads, the caller included; 0: as many as PyTorch has.
  static void use(bool yes, int64_t n_threads);
  static bool in_use() { return threads_.load(std::memory_order_relaxed) >= 0; }
  static int64_t n_threads() {
    const int64_t threads = threads_.load(std::memory_order_relaxed);
    return threads > 0 ? threads : 0;
  }

  // Calls f with ranges of at most `grain` units of [0, n) on up to `n_threads` threads and returns when all are done.
  // Throws what f threw first.
  void run(int64_t n, int64_t grain, int64_t n_threads, UnitRange f, const void* context);

 private:
  struct Job;

  void work();
  void keep_off(int core);
  Job* find();

  static std::atomic<int64_t> threads_;  // -1 while not in use

  std::mutex mutex_;              // of all below but `published_`, and of the fields of jobs that say so
  std::condition_variable wake_;  // a job has come
  std::condition_variable done_;  // a job has been left by its last worker
  Job* jobs_ = nullptr;
  int64_t n_workers_ = 0;
  int64_t n_sleeping_ = 0;
  int avoided_core_ = -1;
  std::vector<long> worker_ids_;        // as the system knows them
  std::atomic<uint32_t> published_{0};  // changes when a job comes
};

}  // namespace hashgrid
