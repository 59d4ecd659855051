#include "patches_convert.h"

#include "patches_rows.h"

namespace ats {
namespace {

template <typename In, typename Out, typename A>
class ConverterOf : public Converter {
 public:
  ConverterOf(int64_t channels, const double* mean, const double* std, bool interleaved)
      : by_(channels, mean, std, interleaved) {}

  void rows(const void* from, int64_t from_y, void* to, int64_t to_y, int64_t rows, int64_t count,
            int64_t c) const override {
    const In* in = static_cast<const In*>(from);
    Out* out = static_cast<Out*>(to);
    if (!by_.active()) {
      if constexpr (std::is_same_v<In, Out>) on_this_cpu<CopyRows<In>>(in, from_y, out, to_y, rows, count);
      else on_this_cpu<ConvertRows<In, Out, A, false>>(in, from_y, out, to_y, rows, count, kNone, kNone, int64_t(1));
    } else if constexpr (std::is_integral_v<In> && std::is_integral_v<Out>) {  // nobody waits for these
      ConvertRows<In, Out, A, true>::run(in, from_y, out, to_y, rows, count, by_.mean_of(c), by_.std_of(c),
                                         by_.period());
    } else {
      on_this_cpu<ConvertRows<In, Out, A, true>>(in, from_y, out, to_y, rows, count, by_.mean_of(c), by_.std_of(c),
                                                 by_.period());
    }
  }

  void pixels(const void* from, int64_t from_y, int64_t from_x, void* to, int64_t to_y, int64_t to_x, int64_t rows,
              int64_t width, int64_t c) const override {
    const In* in = static_cast<const In*>(from);
    Out* out = static_cast<Out*>(to);
    for (int64_t row = 0; row < rows; ++row, in += from_y, out += to_y) {
      if (from_x > 0 && row + kAhead < rows) prefetch_row(in + kAhead * from_y, width * from_x);
      for (int64_t x = 0; x < width; ++x) out[x * to_x] = convert(A(load(in[x * from_x])), c);
    }
  }

  void fill(double value, void* to, int64_t to_y, int64_t to_x, int64_t rows, int64_t width, int64_t c) const override {
    const Out pixel = convert(A(value), c);
    Out* out = static_cast<Out*>(to);
    for (int64_t row = 0; row < rows; ++row, out += to_y)
      for (int64_t x = 0; x < width; ++x) out[x * to_x] = pixel;
  }

 private:
  static constexpr const A* kNone = nullptr;

  Out convert(A x, int64_t c) const {
    if (!by_.active()) return store<Out>(x);
    return normalized<Out, true>(x, by_.mean(c), by_.std(c));
  }

  Normalization<A> by_;
};

}  // namespace

std::unique_ptr<Converter> make_converter(int from, int to, int64_t channels, const double* mean, const double* std,
                                          bool interleaved, bool in_float) {
  std::unique_ptr<Converter> converter;
  const auto make = [&](auto in, auto out, auto type) {
    using In = typename decltype(in)::type;
    using Out = typename decltype(out)::type;
    using A = typename decltype(type)::type;
    converter = std::make_unique<ConverterOf<In, Out, A>>(channels, mean, std, interleaved);
  };
  dispatch_image(from, [&](auto in) {
    using In = typename decltype(in)::type;
    if constexpr (std::is_same_v<In, double>) {
      if (in_float && to == ATS_FLOAT32) return make(in, Type<float>{}, Type<float>{});
      dispatch_image(to, [&](auto out) { make(in, out, Type<double>{}); });
    } else {
      if constexpr (std::is_integral_v<In>)
        if (from == to) return make(in, in, Type<float>{});
      dispatch_floating(to, [&](auto out) {
        // Single precision holds every value of the narrow dtypes exactly.
        using Out = typename decltype(out)::type;
        make(in, out, Type<std::conditional_t<std::is_same_v<Out, double>, double, float>>{});
      });
    }
  });
  return converter;
}

}  // namespace ats
