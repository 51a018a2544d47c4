#include "core/fma_probe_params.h"
#include "cpu/fma_rate.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <vector>

#include "cpu/capability.h"
#include "cpu/kernels.h"

namespace hashgrid {

double measure_fma_rate(int n_threads) {
  constexpr int kRepetitions = 10;
  constexpr int64_t kRounds = 1 << 18;
  std::vector<float> sink(n_threads);
  std::vector<double> flop(n_threads);
  const FmaProbeParams p = {kRounds, 0.999f, 0.001f, sink.data(), flop.data()};
  double best = 0.0;
  for (int repetition = 0; repetition < kRepetitions; ++repetition) {
    const auto begin = std::chrono::steady_clock::now();
    std::vector<std::thread> threads;
    for (int i = 1; i < n_threads; ++i) threads.emplace_back([&p, i] { kernels().fma_probe(p, i, i + 1); });
    kernels().fma_probe(p, 0, 1);
    for (std::thread& thread : threads) thread.join();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
    double total = 0.0;
    for (const double count : flop) total += count;
    best = std::max(best, total / elapsed.count());
  }
  return best;
}

}  // namespace hashgrid
