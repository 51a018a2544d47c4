// Measures on a GPU which row and column each register of a warp's matrix fragments holds, and compares with the maps
// in tests/host/mma_on_host.h, on which the tests of the kernels without a GPU rest. Prints one JSON object.
//
//     nvcc -arch=sm_90 -I csrc -I tests/host -o mma_probe tests/cuda/mma_probe.cu
//     ./mma_probe             0: all as expected, 1: something differs, 3: there is no GPU
//     ./mma_probe --expected  the maps of the header alone; needs no GPU
//
// An experiment gives every lane its registers and takes back its sums. Where one element of `a` is 1 and the others
// are 0 while all elements of `b` differ, the sums that are not 0 say in which row it lies and with which of `b` it
// meets.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/mma.cuh"

// The header of the emulation expects lanes that run side by side. Here they run one after the other, twice: the second
// time each sees what all have shown in the first.
namespace hashgrid_on_host {

constexpr unsigned kWarp = 32;
static uint64_t shown[kWarp][4];
static unsigned current_lane = 0;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "mma_probe: %s\n", what);
  std::exit(2);
}
inline unsigned lane() { return current_lane; }
struct Site {};  // where lanes meet: of no interest here
#define HASHGRID_HERE \
  Site {}
inline const uint64_t (*exchange(unsigned, const uint64_t (&mine)[4], Site))[4] {
  std::memcpy(shown[current_lane], mine, sizeof(mine));
  return shown;
}
struct Arithmetic {
  bool truncating_sums = false;  // whose factors are 0 and 1 here: every way of adding up is exact
};
inline Arithmetic arithmetic() { return {}; }

}  // namespace hashgrid_on_host

#include "mma_on_host.h"

using namespace hashgrid::device;

constexpr int kLanes = 32, kElementsA = 8, kElementsB = 4, kSums = 4;  // per lane, of 16 bits in `a` and `b`

struct Product {
  uint32_t a[kLanes][4] = {};
  uint32_t b[kLanes][2] = {};
  float sum[kLanes][kSums] = {};
};
struct Transposition {
  alignas(16) uint32_t matrices[128];
  uint32_t registers[kLanes][4];
};

// ---- on the GPU ----------------------------------------------------------------------------------------------------

template <typename Half>
__global__ void product_kernel(Product* products) {
  Product& mine = products[blockIdx.x];
  const unsigned lane = threadIdx.x;
  float sum[kSums];
  uint32_t a[4];
  for (int i = 0; i < 4; ++i) a[i] = mine.a[lane][i];
  for (int i = 0; i < kSums; ++i) sum[i] = mine.sum[lane][i];
  multiply_add<Half>(sum, a, mine.b[lane][0], mine.b[lane][1]);
  for (int i = 0; i < kSums; ++i) mine.sum[lane][i] = sum[i];
}

__global__ void transposition_kernel(Transposition* transposition) {
  __shared__ alignas(16) uint32_t matrices[128];
  for (unsigned i = threadIdx.x; i < 128; i += kLanes) matrices[i] = transposition->matrices[i];
  __syncthreads();
  uint32_t registers[4];
  load_transposed<false>(matrices, registers);
  for (int i = 0; i < 4; ++i) transposition->registers[threadIdx.x][i] = registers[i];
}

template <typename T, typename Launch>
void on_device(std::vector<T>* values, Launch launch) {
  T* memory = nullptr;
  const size_t n_bytes = values->size() * sizeof(T);
  check_cuda(cudaMalloc(reinterpret_cast<void**>(&memory), n_bytes), "cudaMalloc");
  check_cuda(cudaMemcpy(memory, values->data(), n_bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
  launch(memory);
  check_cuda(cudaGetLastError(), "launch");
  check_cuda(cudaMemcpy(values->data(), memory, n_bytes, cudaMemcpyDeviceToHost), "cudaMemcpy");
  check_cuda(cudaFree(memory), "cudaFree");
}

// ---- as the header says --------------------------------------------------------------------------------------------

inline float real_of(hashgrid::device::BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline float real_of(hashgrid::device::Float16 x) { return __half2float(__ushort_as_half(x.bits)); }

template <typename Lane>
void for_each_lane_twice(Lane body) {
  for (int pass = 0; pass < 2; ++pass) {
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      hashgrid_on_host::current_lane = lane;
      body(lane);
    }
  }
}

template <typename Half>
void expect(std::vector<Product>* products) {
  for (Product& product : *products) {
    Product result = product;
    for_each_lane_twice([&](unsigned lane) {
      std::memcpy(result.sum[lane], product.sum[lane], sizeof(result.sum[lane]));
      hashgrid_on_host::mma_m16n8k16(result.sum[lane], product.a[lane], product.b[lane][0], product.b[lane][1],
                                     [](uint16_t bits) { return real_of(Half{bits}); });
    });
    product = result;
  }
}

void expect(Transposition* transposition) {
  for (auto& words : hashgrid_on_host::shown) words[0] = reinterpret_cast<uintptr_t>(transposition->matrices);
  for_each_lane_twice([&](unsigned lane) {
    hashgrid_on_host::ldmatrix_x4_trans(transposition->registers[lane], transposition->matrices + 4 * lane);
  });
}

// ---- experiments ---------------------------------------------------------------------------------------------------

template <typename Half>
uint16_t bits_of(int value);
template <>
uint16_t bits_of<BFloat16>(int value) {
  const float real = static_cast<float>(value);
  uint32_t bits;
  std::memcpy(&bits, &real, sizeof(bits));
  return static_cast<uint16_t>(bits >> 16);  // exact up to 256
}
template <>
uint16_t bits_of<Float16>(int value) {
  return __half_as_ushort(__float2half_rn(static_cast<float>(value)));
}

template <typename Half>
void set(uint32_t* registers, int element, int value) {
  const uint32_t bits = bits_of<Half>(value);
  registers[element / 2] = (registers[element / 2] & ~(0xffffu << 16 * (element % 2))) | bits << 16 * (element % 2);
}

// 256 with one element of `a`, 128 with one of `b`, one with sums alone, one dense. All numbers are exact.
template <typename Half>
std::vector<Product> make_products() {
  Product all_a, all_b, sums, dense;
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int e = 0; e < kElementsA; ++e) {
      set<Half>(all_a.a[lane], e, 1 + lane * kElementsA + e);
      set<Half>(dense.a[lane], e, (lane * 13 + e * 5) % 17 - 8);
    }
    for (int e = 0; e < kElementsB; ++e) {
      set<Half>(all_b.b[lane], e, 1 + lane * kElementsB + e);
      set<Half>(dense.b[lane], e, (lane * 7 + e * 11) % 19 - 9);
      sums.sum[lane][e] = static_cast<float>(1 + lane * kSums + e);
      dense.sum[lane][e] = static_cast<float>(lane - e);
    }
  }
  std::vector<Product> products;
  for (int i = 0; i < kLanes * kElementsA; ++i) {
    products.push_back(all_b);
    set<Half>(products.back().a[i / kElementsA], i % kElementsA, 1);
  }
  for (int i = 0; i < kLanes * kElementsB; ++i) {
    products.push_back(all_a);
    set<Half>(products.back().b[i / kElementsB], i % kElementsB, 1);
  }
  products.push_back(sums);
  products.push_back(dense);
  return products;
}

// ---- report --------------------------------------------------------------------------------------------------------

// For element `first + i` of a factor: the first sum it reaches (lane * 4 + index) and the element of the other factor
// it meets there (lane * elements + index); -1 where it reaches none.
std::string map_json(const std::vector<Product>& results, int first, int count) {
  std::string sums, others;
  for (int i = 0; i < count; ++i) {
    int sum = 0;
    while (sum < kLanes * kSums && results[first + i].sum[sum / kSums][sum % kSums] == 0.0f) ++sum;
    const bool found = sum < kLanes * kSums;
    const int other = found ? static_cast<int>(results[first + i].sum[sum / kSums][sum % kSums]) - 1 : -1;
    sums += (i ? ", " : "") + std::to_string(found ? sum : -1);
    others += (i ? ", " : "") + std::to_string(other);
  }
  return "{\"sum\": [" + sums + "], \"meets\": [" + others + "]}";
}

struct Verdict {
  int experiments = 0, wrong = 0;
  std::string first;  // the first difference, in words
};

template <typename Half>
std::string report_products(const char* name, bool measure, Verdict* total) {
  std::vector<Product> expected = make_products<Half>(), results = expected;
  expect<Half>(&expected);
  if (measure) {
    on_device(&results, [&](Product* memory) {
      product_kernel<Half><<<static_cast<unsigned>(expected.size()), kLanes>>>(memory);
    });
  } else {
    results = expected;
  }
  Verdict verdict;
  verdict.experiments = static_cast<int>(expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    bool wrong = false;
    for (int s = 0; s < kLanes * kSums && !wrong; ++s) {
      const float want = expected[i].sum[s / kSums][s % kSums], got = results[i].sum[s / kSums][s % kSums];
      wrong = !(want == got);
      if (wrong && verdict.first.empty()) {
        verdict.first = "experiment " + std::to_string(i) + ", lane " + std::to_string(s / kSums) + ", sum " +
                        std::to_string(s % kSums) + ": " + std::to_string(got) + " instead of " + std::to_string(want);
      }
    }
    verdict.wrong += wrong;
  }
  total->experiments += verdict.experiments;
  total->wrong += verdict.wrong;
  const int n_a = kLanes * kElementsA, n_b = kLanes * kElementsB;
  return std::string("\"") + name + "\": {\"experiments\": " + std::to_string(verdict.experiments) +
         ", \"wrong\": " + std::to_string(verdict.wrong) + ", \"first\": \"" + verdict.first +
         "\", \"a\": " + map_json(results, 0, n_a) + ", \"b\": " + map_json(results, n_a, n_b) + "}";
}

std::string report_transposition(bool measure, Verdict* total) {
  Transposition expected = {};
  for (unsigned i = 0; i < 128; ++i) expected.matrices[i] = (2 * i + 1) << 16 | 2 * i;  // value i at place i
  std::vector<Transposition> results = {expected};
  expect(&expected);
  if (measure) {
    on_device(&results, [](Transposition* memory) { transposition_kernel<<<1, kLanes>>>(memory); });
  } else {
    results[0] = expected;
  }
  int wrong = 0;
  std::string first, places;
  for (int i = 0; i < kLanes * 4; ++i) {
    const uint32_t want = expected.registers[i / 4][i % 4], got = results[0].registers[i / 4][i % 4];
    wrong += want != got;
    if (want != got && first.empty()) {
      first = "lane " + std::to_string(i / 4) + ", register " + std::to_string(i % 4) + ": places " +
              std::to_string(got & 0xffffu) + " and " + std::to_string(got >> 16) + " instead of " +
              std::to_string(want & 0xffffu) + " and " + std::to_string(want >> 16);
    }
    places += (i ? ", " : "") + std::to_string(got & 0xffffu) + ", " + std::to_string(got >> 16);
  }
  total->experiments += kLanes * 4;
  total->wrong += wrong;
  return "\"ldmatrix.x4.trans\": {\"experiments\": " + std::to_string(kLanes * 4) +
         ", \"wrong\": " + std::to_string(wrong) + ", \"first\": \"" + first + "\", \"places\": [" + places + "]}";
}

int main(int count, char** arguments) {
  const bool measure = !(count > 1 && std::strcmp(arguments[1], "--expected") == 0);
  std::string device = "none";
  if (measure) {
    int n_devices = 0;
    const cudaError_t status = cudaGetDeviceCount(&n_devices);
    if (status != cudaSuccess || n_devices == 0) {
      std::fprintf(stderr, "mma_probe: no GPU: %s\n", cudaGetErrorString(status));
      return 3;
    }
    cudaDeviceProp properties;
    check_cuda(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
    device = std::string(properties.name) + ", sm_" + std::to_string(properties.major * 10 + properties.minor);
    if (properties.major < 8) {
      std::fprintf(stderr, "mma_probe: %s has no bf16 mma; the kernels do not use it there\n", device.c_str());
      return 3;
    }
  }
  Verdict total;
  const std::string bf16 = report_products<BFloat16>("mma.m16n8k16.bf16", measure, &total);
  const std::string f16 = report_products<Float16>("mma.m16n8k16.f16", measure, &total);
  const std::string transposition = report_transposition(measure, &total);
  std::printf("{\"device\": \"%s\", \"measured\": %s, \"experiments\": %d, \"wrong\": %d,\n %s,\n %s,\n %s}\n",
              device.c_str(), measure ? "true" : "false", total.experiments, total.wrong, bf16.c_str(), f16.c_str(),
              transposition.c_str());
  return total.wrong == 0 ? 0 : 1;
}
