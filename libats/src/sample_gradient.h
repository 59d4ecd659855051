// The gradient of the probabilities of sample, for one row:
// d p_i / d w_k = ([k = q_i] - p_i) / W; for logits, d p_i / d x_k = p_i [k = q_i] - p_i p_k.
#pragma once

#include "portable_math.h"

namespace ats {

// 1 / W for log W; by its root, for the exponential ends where the range of double does not.
ATS_HD inline double inverse_mass(double log_mass) {
  const double half = -0.5 * log_mass;
  const double root = portable_exp(half > 708.0 ? 708.0 : half);
  return root * root;
}

struct RowGradient {
  double sum;  // of grad times probability over the draws
  double log_mass;
  double inverse;  // weights: 1 / W
  bool logits;

  ATS_HD RowGradient(double sum_, double log_mass_, bool logits_)
      : sum(sum_), log_mass(log_mass_), inverse(logits_ ? 0.0 : inverse_mass(log_mass_)), logits(logits_) {}

  // Of any cell; x is its logit.
  ATS_HD double everywhere(double x) const {
    if (sum == 0.0) return 0.0;  // also when 1 / W is out of range
    return -sum * (logits ? portable_exp(x - log_mass) : inverse);
  }
  // What a draw adds to that for its cell.
  ATS_HD void add_draw(double grad, double probability, double& total) const {
    if (grad != 0.0) total += grad * (logits ? probability : inverse);
  }
};

}  // namespace ats
