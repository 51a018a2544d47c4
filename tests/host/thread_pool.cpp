// What a caller of the thread pool relies on, as a program of its own: torch-free, so that ThreadSanitizer can watch
// it. A check that fails
// says its line and ends the program.
#include "ops/thread_pool.h"

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <thread>
#include <vector>

using hashgrid::ThreadPool;

#define CHECK(condition)                                          \
  do {                                                            \
    if (!(condition)) {                                           \
      std::printf("failed, line %d: %s\n", __LINE__, #condition); \
      std::fflush(stdout);                                        \
      std::_Exit(1);                                              \
    }                                                             \
  } while (false)

template <typename F>
void run(int64_t n, int64_t grain, int64_t n_threads, const F& f) {
  ThreadPool::get().run(
      n, grain, n_threads,
      [](const void* context, int64_t begin, int64_t end) { (*static_cast<const F*>(context))(begin, end); }, &f);
}

// Plain integers: a unit that is done twice, or still under way when the caller goes on, is a race besides.
void every_unit_once(int64_t n, int64_t grain, int64_t n_threads) {
  std::vector<int> done(n, 0);
  run(n, grain, n_threads, [&](int64_t begin, int64_t end) {
    CHECK(begin < end && end <= n && end - begin <= grain);
    for (int64_t i = begin; i < end; ++i) ++done[i];
  });
  for (int64_t i = 0; i < n; ++i) CHECK(done[i] == 1);
}

void wait_for(const std::atomic<bool>& flag) {
  while (!flag) std::this_thread::yield();
}

// The only worker is held in a unit of another caller; who waits for a thread that has not begun would wait for ever.
void nobody_waits_for_a_thread_that_has_not_begun() {
  std::atomic<int> n_inside{0};
  std::atomic<bool> release{false}, both{false};
  std::thread other([&] {
    run(2, 1, 2, [&](int64_t, int64_t) {
      if (++n_inside == 2) both = true;
      wait_for(release);
    });
  });
  wait_for(both);
  for (int i = 0; i < 100; ++i) every_unit_once(64, 1, 2);
  release = true;
  other.join();
}

// The opposite fault: a caller that does not wait for a unit that a worker has begun.
void units_under_way_are_waited_for() {
  for (int i = 0; i < 20; ++i) {
    std::atomic<bool> taken{false};
    bool done = false;
    const std::thread::id caller = std::this_thread::get_id();
    run(2, 1, 2, [&](int64_t, int64_t) {
      if (std::this_thread::get_id() == caller) return wait_for(taken);
      taken = true;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));  // past the caller's spin, into its sleep
      done = true;
    });
    CHECK(done);
  }
}

void workers_that_sleep_are_woken() {
  std::atomic<bool> met{false};
  std::atomic<int> n_inside{0};
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  run(2, 1, 2, [&](int64_t, int64_t) {
    if (++n_inside == 2) met = true;
    wait_for(met);
  });
}

void many_callers_at_a_time() {
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([caller] {
      for (int i = 0; i < 200; ++i) every_unit_once(1 + (i * 7 + caller) % 40, 1 + i % 3, 2 + i % 3);
    });
  }
  for (std::thread& caller : callers) caller.join();
}

void what_a_unit_throws_reaches_the_caller() {
  for (int64_t thrower = 0; thrower < 8; ++thrower) {
    bool caught = false;
    try {
      run(8, 1, 3, [&](int64_t begin, int64_t) {
        if (begin == thrower) throw std::runtime_error("a unit");
      });
    } catch (const std::runtime_error&) {
      caught = true;
    }
    CHECK(caught);
    every_unit_once(10, 1, 3);
  }
}

void a_forked_child_has_a_pool_of_its_own() {
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);  // instead of waiting for ever for workers that stayed with the parent
    every_unit_once(100, 1, 4);
    workers_that_sleep_are_woken();
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(int argc, char**) {
  alarm(300);
  for (int64_t n : {1, 2, 7, 100}) {
    for (int64_t grain : {1, 3, 200}) {
      for (int64_t n_threads : {2, 3, 16}) every_unit_once(n, grain, n_threads);
    }
  }
  nobody_waits_for_a_thread_that_has_not_begun();
  units_under_way_are_waited_for();
  workers_that_sleep_are_woken();
  many_callers_at_a_time();
  what_a_unit_throws_reaches_the_caller();
  if (argc == 1) a_forked_child_has_a_pool_of_its_own();  // which ThreadSanitizer does not support
  std::puts("passed");
}
