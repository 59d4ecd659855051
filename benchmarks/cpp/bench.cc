#include "bench.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <random>

#include "half.h"
#include "simd.h"

namespace bench {
namespace {

template <typename T>
void fill(Tensor& tensor, double low, double high) {
  std::mt19937_64 generator(1);
  std::uniform_real_distribution<double> distribution(low, high);
  T* values = static_cast<T*>(tensor.data);
  // A period of numbers is enough, and saves seconds.
  const int64_t count = tensor.bytes() / int64_t(sizeof(T)), period = std::min<int64_t>(count, 1'000'003);
  for (int64_t i = 0; i < period; ++i) values[i] = ats::store<T>(distribution(generator));
  for (int64_t i = period; i < count; ++i) values[i] = values[i - period];
}

struct Sum {
  ATS_INLINE static uint64_t run(const char* bytes, int64_t words) {
    uint64_t total = 0;
    for (int64_t i = 0; i < words; ++i) {
      uint64_t word;
      std::memcpy(&word, bytes + 8 * i, 8);
      total += word;
    }
    return total;
  }
};

double median(std::vector<double>& values) {
  const auto middle = values.begin() + std::ptrdiff_t(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

constexpr int kTurns = 15;
constexpr double kLeast = 500e-6;  // seconds of a turn: short calls are repeated, so that the clock does not show

double seconds(const Call& call, int64_t first, int64_t calls) {
  const auto start = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < calls; ++i) call(first + i);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / double(calls);
}

// How many calls make a turn; this warms up, too.
int64_t calls_a_turn(const Call& call) {
  seconds(call, 0, 1);
  return 1 + int64_t(kLeast / std::max(seconds(call, 1, 1), 1e-7));
}

}  // namespace

Tensor::Tensor(int dtype_, std::initializer_list<int64_t> shape_) : ats_tensor(ats::view<float>(nullptr, shape_)) {
  dtype = dtype_;
  memory_.reset(new char[size_t(bytes())]);
  std::memset(memory_.get(), 0, size_t(bytes()));
  data = memory_.get();
}

int64_t Tensor::bytes() const {
  int64_t result = bytes_of(dtype);
  for (int axis = 0; axis < ndim; ++axis) result *= shape[axis];
  return result;
}

int64_t bytes_of(int dtype) {
  switch (dtype) {
    case ATS_UINT8:
      return 1;
    case ATS_FLOAT16:
    case ATS_BFLOAT16:
      return 2;
    case ATS_FLOAT32:
      return 4;
    default:
      return 8;
  }
}

std::string name_of(int dtype) {
  switch (dtype) {
    case ATS_UINT8:
      return "uint8";
    case ATS_FLOAT16:
      return "float16";
    case ATS_BFLOAT16:
      return "bfloat16";
    case ATS_FLOAT32:
      return "float32";
    case ATS_INT64:
      return "int64";
    default:
      return "float64";
  }
}

Tensor uniform(int dtype, std::initializer_list<int64_t> shape, double low, double high) {
  Tensor result(dtype, shape);
  switch (dtype) {
    case ATS_UINT8:
      fill<uint8_t>(result, 0, 256);
      break;
    case ATS_FLOAT16:
      fill<ats::float16>(result, low, high);
      break;
    case ATS_BFLOAT16:
      fill<ats::bfloat16>(result, low, high);
      break;
    case ATS_FLOAT32:
      fill<float>(result, low, high);
      break;
    default:
      fill<double>(result, low, high);
  }
  return result;
}

Tensor integers(std::initializer_list<int64_t> shape, int64_t low, int64_t high, uint64_t seed) {
  Tensor result(ATS_INT64, shape);
  std::mt19937_64 generator(seed);
  std::uniform_int_distribution<int64_t> distribution(low, high - 1);
  int64_t* values = static_cast<int64_t*>(result.data);
  std::generate(values, values + result.bytes() / 8, [&] { return distribution(generator); });
  return result;
}

void parallel(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  const ats_executor* executor = ats_thread_pool();
  executor->parallel_for(
      executor->context, 0, count, grain,
      [](void* data, int64_t begin, int64_t end) {
        (*static_cast<const std::function<void(int64_t, int64_t)>*>(data))(begin, end);
      },
      const_cast<void*>(static_cast<const void*>(&body)));
}

constexpr int64_t kPiece = 1 << 16;

void copy(void* to, const void* from, int64_t bytes) {
  parallel(bytes, kPiece, [=](int64_t begin, int64_t end) {
    std::memcpy(static_cast<char*>(to) + begin, static_cast<const char*>(from) + begin, size_t(end - begin));
  });
  benchmark::ClobberMemory();
}

uint64_t sum_row(const void* from, int64_t bytes) {
  return ats::on_this_cpu<Sum>(static_cast<const char*>(from), bytes / 8);
}

void sum(const void* from, int64_t bytes) {
  parallel(bytes / 8, kPiece / 8, [=](int64_t begin, int64_t end) {
    benchmark::DoNotOptimize(sum_row(static_cast<const char*>(from) + 8 * begin, 8 * (end - begin)));
  });
}

void measure(benchmark::State& state, int64_t bytes, const Call& operation, const Call& floor) {
  std::vector<double> ours, theirs;
  const int64_t our_calls = calls_a_turn(operation), their_calls = calls_a_turn(floor);
  int64_t call = 0;
  for ([[maybe_unused]] auto _ : state) {
    ours.push_back(seconds(operation, call, our_calls));
    call += our_calls;
    theirs.push_back(seconds(floor, call, their_calls));
    call += their_calls;
    state.SetIterationTime(ours.back());
  }
  const double typical = median(ours);
  state.counters["median_s"] = typical;
  state.counters["ratio"] = typical / median(theirs);
  state.SetBytesProcessed(state.iterations() * bytes);
}

void add(const std::string& name, const std::function<void(benchmark::State&)>& body) {
  for (const int threads : {1, 2}) {
    const std::string full = name + "/threads:" + std::to_string(threads);
    benchmark::RegisterBenchmark(full.c_str(),
                                 [=](benchmark::State& state) {
                                   ats::check(ats_set_num_threads(threads));
                                   body(state);
                                 })
        ->UseManualTime()
        ->Iterations(kTurns);
  }
}

}  // namespace bench
