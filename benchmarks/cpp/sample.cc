// sample, topk and their gradient. The floor of what reads a map is a sum of its bytes, of a gradient a copy of them.
#include <algorithm>

#include "bench.h"

namespace bench {
namespace {

struct Size {
  int64_t rows, cells, n;
};

std::string name_of_case(const char* operation, int dtype, const Size& size) {
  return std::string(operation) + "/" + name_of(dtype) + "/" + std::to_string(size.rows) + "x" +
         std::to_string(size.cells) + "/N:" + std::to_string(size.n);
}

struct Drawing {
  Tensor attention, indices, probabilities, threshold, log_mass, rng;
  ats_sample_options options;
  std::vector<double> workspace;

  Drawing(int dtype, const Size& size, bool logits)
      : attention(uniform(dtype, {size.rows, size.cells}, logits ? -5 : 0, logits ? 5 : 1)),
        indices(ATS_INT64, {size.rows, size.n}),
        probabilities(dtype == ATS_FLOAT64 ? ATS_FLOAT64 : ATS_FLOAT32, {size.rows, size.n}),
        threshold(probabilities.dtype, {size.rows}),
        log_mass(ATS_FLOAT64, {size.rows}),
        rng(ATS_INT64, {2}),
        options{size.n, 0, logits} {
    size_t bytes[2];
    ats::check(ats_sample_workspace(&attention, &options, &bytes[0]));
    ats::check(ats_topk_workspace(&attention, &options, &bytes[1]));
    workspace.resize(std::max(bytes[0], bytes[1]) / sizeof(double) + 1);
  }

  void sample(int64_t turn) {
    static_cast<int64_t*>(rng.data)[0] = turn;
    ats::check(ats_sample(&attention, &rng, &options, &indices, &probabilities, &threshold, &log_mass, workspace.data(),
                          ats_thread_pool()));
  }

  void topk() {
    ats::check(ats_topk(&attention, &options, &indices, &probabilities, &threshold, &log_mass, workspace.data(),
                        ats_thread_pool()));
  }
};

void add_forward(int dtype, const Size& size, bool logits) {
  add(name_of_case(logits ? "sample_logits" : "sample", dtype, size), [=](benchmark::State& state) {
    Drawing drawing(dtype, size, logits);
    const Tensor& attention = drawing.attention;
    measure(
        state, attention.bytes(), [&](int64_t turn) { drawing.sample(turn); },
        [&](int64_t) { sum(attention.data, attention.bytes()); });
  });
}

void add_topk(int dtype, const Size& size) {
  add(name_of_case("topk", dtype, size), [=](benchmark::State& state) {
    Drawing drawing(dtype, size, false);
    const Tensor& attention = drawing.attention;
    measure(
        state, attention.bytes(), [&](int64_t) { drawing.topk(); },
        [&](int64_t) { sum(attention.data, attention.bytes()); });
  });
}

void add_backward(int dtype, const Size& size, bool logits) {
  const char* name = logits ? "sample_logits_backward" : "sample_backward";
  add(name_of_case(name, dtype, size), [=](benchmark::State& state) {
    Drawing drawing(dtype, size, logits);
    drawing.sample(0);
    const Tensor& attention = drawing.attention;
    const Tensor grad = uniform(drawing.probabilities.dtype, {size.rows, size.n});
    const Tensor gradient(dtype, {size.rows, size.cells}), other(dtype, {size.rows, size.cells});
    measure(
        state, attention.bytes(),
        [&](int64_t) {
          ats::check(ats_sample_backward(&grad, &attention, &drawing.indices, &drawing.probabilities, &drawing.log_mass,
                                         logits, &gradient, ats_thread_pool()));
        },
        [&](int64_t) { copy(other.data, attention.data, attention.bytes()); });
  });
}

void add_locate(const Size& size) {
  add(name_of_case("locate", ATS_INT64, size), [=](benchmark::State& state) {
    const Tensor indices = integers({size.rows, size.n}, 0, size.cells);
    const Tensor origins(ATS_INT64, {size.rows, size.n, 2}), other(ATS_INT64, {size.rows, size.n, 2});
    const ats_locate_options options{2, {1, size.cells, 0}, {100, 100, 0}, {1500, 1500, 0}, {50, 50, 0}, {8, 8, 0}};
    measure(
        state, origins.bytes(),
        [&](int64_t) { ats::check(ats_locate(&indices, &options, &origins, ats_thread_pool())); },
        [&](int64_t) { copy(other.data, origins.data, origins.bytes()); });
  });
}

}  // namespace

void add_sample() {
  const Size small{1, 64, 4}, batch{32, 32'400, 10}, many{16, 32'400, 256};
  const Size million{1, 1'000'000, 100}, ten{1, 10'000'000, 100}, ten_many{1, 10'000'000, 1000};
  for (const int dtype : {ATS_FLOAT32, ATS_FLOAT64, ATS_FLOAT16, ATS_BFLOAT16}) {
    for (const bool logits : {false, true}) {
      for (const Size& size : {small, batch, many, million, ten, ten_many})
        if (dtype == ATS_FLOAT32 || size.n != ten_many.n) add_forward(dtype, size, logits);
      for (const Size& size : {batch, million}) add_backward(dtype, size, logits);
    }
    for (const Size& size : {batch, many, million}) add_topk(dtype, size);
  }
  for (const Size& size : {Size{32, 32'400, 10}, Size{16, 32'400, 256}}) add_locate(size);
}

}  // namespace bench
