#include "sample_rows.h"

namespace ats {

SampleShapes sample_shapes(const char* op, const ats_tensor* attention, const ats_sample_options* options) {
  check_described({op, "attention"}, attention, kFloating, 2, ATS_MAX_DIMS, "(B, *grid)");
  check_pointer({op, "options"}, options);
  const int64_t n = options->n;
  if (n < 1) fail("%s: n must be at least 1, got %lld", op, static_cast<long long>(n));
  int64_t cells = 1;
  for (int axis = 1; axis < attention->ndim; ++axis)
    cells = multiply_sizes({op, "attention"}, cells, attention->shape[axis]);
  if (cells == 0) fail("%s: attention must have at least one cell a row, got %s", op, shape_text(*attention).c_str());
  if (!options->replace && cells >= 0 && n > cells)
    fail("%s: attention has %lld cells a row, and n = %lld asks for more", op, static_cast<long long>(cells),
         static_cast<long long>(n));
  const int64_t rows = attention->shape[0];
  multiply_sizes({op, "n"}, multiply_sizes({op, "n"}, rows, n), 8);
  const int dtype = probability_dtype(attention->dtype);
  const auto output = [&](int type, std::initializer_list<int64_t> shape) {
    return on_device_of(*attention, describe(type, shape));
  };
  return {output(ATS_INT64, {rows, n}), output(dtype, {rows, n}), output(dtype, {rows}), output(ATS_FLOAT64, {rows})};
}

void check_sample(const char* op, const ats_tensor* attention, const SampleOutputs& outputs,
                  const SampleShapes& shapes) {
  check_tensor({op, "attention"}, attention, kFloating, 2, ATS_MAX_DIMS, "(B, *grid)");
  check_contiguous_from({op, "attention"}, *attention, 1);
  const auto check = [op](const char* name, const ats_tensor* t, const ats_tensor& expected) {
    check_output({op, name}, t, expected);
    check_contiguous_from({op, name}, *t, 0);
  };
  check("indices", outputs.indices, shapes.indices);
  check("probabilities", outputs.probabilities, shapes.probabilities);
  check("threshold", outputs.threshold, shapes.threshold);
  check("log_mass", outputs.log_mass, shapes.log_mass);
}

bool check_place(const char* op, const ats_tensor* attention, const SampleOutputs& outputs) {
  return on_gpu(op, {{"attention", attention},
                     {"indices", outputs.indices},
                     {"probabilities", outputs.probabilities},
                     {"threshold", outputs.threshold},
                     {"log_mass", outputs.log_mass}});
}

RowsLayout::RowsLayout(int64_t rows_, int64_t cells)
    : shape(tree_shape(cells)), rows(rows_), chunks(chunk_count(cells)) {
  doubles_per_row = shape.doubles + (shape.count[0] + 1) / 2;
}

}  // namespace ats
