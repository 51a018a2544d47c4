#include "ops/thread_pool.h"

#include <chrono>
#include <cmath>
#include <thread>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace hashgrid {

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

// How long a worker looks for the next job before it sleeps.
constexpr microseconds kSpinAlone{1000};
constexpr microseconds kSpinCrowded{100};
// How long a caller looks for the end of the last units before it sleeps and leaves its core to them.
constexpr microseconds kSpinForLast{50};
// A core is shared where it has been taken from its thread this often lately. A single time means nothing: the system's
// own work does that on a quiet machine, too (a NeRF step took 5 % longer where it counted).
constexpr double kTakenOften = 3.0;
constexpr std::chrono::duration<double> kLately{0.1};

inline void relax() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <typename F>
bool spin(microseconds limit, const F& ended) {
  const Clock::time_point end = Clock::now() + limit;
  do {
    for (int i = 0; i < 16; ++i) {
      if (ended()) return true;
      relax();
    }
  } while (Clock::now() < end);
  return ended();
}

// Whether another program wants this thread's core: the system takes it again and again from a thread that has not
// offered it. A busy neighbour does that every few milliseconds.
class Neighbours {
 public:
  bool present() {
#if defined(__linux__)
    rusage usage;
    if (getrusage(RUSAGE_THREAD, &usage) != 0) return true;
    const Clock::time_point now = Clock::now();
    often_ *= std::exp(-std::chrono::duration<double>(now - last_) / kLately);
    often_ += static_cast<double>(usage.ru_nivcsw - taken_);
    taken_ = usage.ru_nivcsw;
    last_ = now;
    return often_ > kTakenOften;
#else
    return false;
#endif
  }

  // The core this thread is on while they are present, else -1.
  int core() {
#if defined(__linux__)
    return present() ? sched_getcpu() : -1;
#else
    return -1;
#endif
  }

 private:
  long taken_ = 0;
  double often_ = 0.0;  // how often the core was taken, with less weight the longer ago
  Clock::time_point last_ = Clock::now();
};

}  // namespace

std::atomic<int64_t> ThreadPool::threads_{-1};

struct ThreadPool::Job {
  int64_t n, grain;
  int64_t n_helpers;  // that may still come
  UnitRange f;
  const void* context;
  std::atomic<int64_t> next{0};
  std::atomic<int64_t> n_inside{0};  // written under the pool's mutex
  bool closed = false;               // the caller waits for those inside
  std::exception_ptr error;          // under the pool's mutex
  Job* after = nullptr;

  void take_units(std::mutex& mutex) {
    for (;;) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= n) return;
      try {
        f(context, begin, begin + grain < n ? begin + grain : n);
      } catch (...) {
        next.store(n, std::memory_order_relaxed);
        const std::lock_guard<std::mutex> lock(mutex);
        if (!error) error = std::current_exception();
      }
    }
  }
};

ThreadPool& ThreadPool::get() {
  static std::atomic<ThreadPool*> pool{nullptr};
  static std::once_flag once;
  std::call_once(once, [] {
    pool = new ThreadPool;
#if defined(__linux__)
    // A forked child has none of the workers, and perhaps a locked mutex.
    pthread_atfork(nullptr, nullptr, [] { pool = new ThreadPool; });
#endif
  });
  return *pool;
}

void ThreadPool::use(bool yes, int64_t n_threads) { threads_ = !yes ? -1 : n_threads > 0 ? n_threads : 0; }

// On a crowded machine the system puts a worker and its caller on one core, too, and gives the other one to a neighbour
// (two threads beside one busy process on two cores had 1.10 cores). Workers that keep off the caller's core share the
// others with the neighbour instead (1.29). Under the mutex; `core` is -1 where the machine is quiet.
void ThreadPool::keep_off(int core) {
#if defined(__linux__)
  if (core == avoided_core_) return;
  avoided_core_ = core;
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof cores, &cores) != 0) return;
  if (core >= 0 && CPU_COUNT(&cores) > 1) CPU_CLR(core, &cores);
  for (const long worker : worker_ids_) sched_setaffinity(static_cast<pid_t>(worker), sizeof cores, &cores);
#else
  (void)core;
#endif
}

void ThreadPool::run(int64_t n, int64_t grain, int64_t n_threads, UnitRange f, const void* context) {
  static thread_local Neighbours neighbours;
  const int core = neighbours.core();
  Job job;
  job.n = n;
  job.grain = grain;
  job.n_helpers = n_threads - 1;
  job.f = f;
  job.context = context;
  int64_t n_woken;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    while (n_workers_ < job.n_helpers) {
      std::thread(&ThreadPool::work, this).detach();
      ++n_workers_;
    }
    keep_off(core);
    job.after = jobs_;
    jobs_ = &job;
    published_.fetch_add(1, std::memory_order_release);
    n_woken = n_sleeping_ < job.n_helpers ? n_sleeping_ : job.n_helpers;
  }
  for (int64_t i = 0; i < n_woken; ++i) wake_.notify_one();
  job.take_units(mutex_);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    Job** place = &jobs_;
    while (*place != &job) place = &(*place)->after;
    *place = job.after;
    job.closed = true;
  }
  const auto left = [&] { return job.n_inside.load(std::memory_order_acquire) == 0; };
  if (!spin(kSpinForLast, left)) {
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, left);
  }
  if (job.error) std::rethrow_exception(job.error);
}

// The newest job that has units and room. Under the mutex.
ThreadPool::Job* ThreadPool::find() {
  for (Job* job = jobs_; job != nullptr; job = job->after) {
    if (job->n_helpers > 0 && job->next.load(std::memory_order_relaxed) < job->n) return job;
  }
  return nullptr;
}

void ThreadPool::work() {
  Neighbours neighbours;
  std::unique_lock<std::mutex> lock(mutex_);
#if defined(__linux__)
  worker_ids_.push_back(syscall(SYS_gettid));
#endif
  for (;;) {
    const uint32_t seen = published_.load(std::memory_order_relaxed);
    if (Job* job = find()) {
      --job->n_helpers;
      job->n_inside.store(job->n_inside.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
      lock.unlock();
      job->take_units(mutex_);
      lock.lock();
      const bool awaited = job->closed;
      // From here on the job may be gone.
      const int64_t n_left = job->n_inside.load(std::memory_order_relaxed) - 1;
      job->n_inside.store(n_left, std::memory_order_release);
      if (awaited && n_left == 0) done_.notify_all();
      continue;
    }
    lock.unlock();
    const auto published = [&] { return published_.load(std::memory_order_acquire) != seen; };
    const bool found = spin(neighbours.present() ? kSpinCrowded : kSpinAlone, published);
    lock.lock();
    if (found) continue;
    ++n_sleeping_;
    wake_.wait(lock, published);
    --n_sleeping_;
  }
}

}  // namespace hashgrid
