// Rows of attention on a GPU: c and M h of every row (estimators.cu).
#pragma once

#include "cuda_ops.h"

namespace ats::cuda {

// The bytes of scratch that the functions below need; an error where they cannot be counted.
int64_t estimator_scratch(Where where, const ats_tensor& attention);

// c (B, N).
void fill_coefficients(const char* op, const Estimate& in, double* c, void* scratch, const ats_executor* executor);
// c and d_attention = M h, from h (B, N).
void fill_gradient(const char* op, const Estimate& in, const double* h, double* c, const ats_tensor& d_attention,
                   void* scratch, const ats_executor* executor);

}  // namespace ats::cuda
