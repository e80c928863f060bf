#include "engine/engine_trial.h"

#include <algorithm>
#include <cmath>
#include <utility>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

constexpr double kConfidenceMax = 10;

}  // namespace

EngineTrial::EngineTrial(double gain, size_t pairs_max)
    : gain_(-std::log1p(-gain)), pairs_max_(pairs_max) {}

EngineTrial::Estimate EngineTrial::TrimmedMean(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t trimmed = values.size() / 5;
  const auto kept = static_cast<double>(values.size() - 2 * trimmed);
  Estimate estimate;
  for (size_t i = trimmed; i < values.size() - trimmed; ++i) estimate.mean += values[i] / kept;
  // The spread counts those left out as the outermost that were kept.
  const double least = values[trimmed];
  const double greatest = values[values.size() - 1 - trimmed];
  const auto count = static_cast<double>(values.size());
  double mean = 0;
  for (double& value : values) {
    value = std::clamp(value, least, greatest);
    mean += value / count;
  }
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  estimate.error = std::sqrt(squares / (count - 1) * count) / kept;
  return estimate;
}

void EngineTrial::Add(double cost_serving, double cost_tried) {
  observed_.push_back(std::log(cost_serving / cost_tried));
  if (observed_.size() >= kPairsMin) estimate_ = TrimmedMean(observed_);
}

TrialVerdict EngineTrial::Judge(bool last) const {
  if (observed_.size() < kPairsMin) return TrialVerdict::kOpen;
  const size_t pairs = last ? pairs_max_ : std::min(observed_.size(), pairs_max_);
  const double done = static_cast<double>(pairs) / static_cast<double>(pairs_max_);
  const double bar = std::max(gain_, kErrorsOfBar * estimate_.error * std::sqrt(done));
  const double may_change = kSure * estimate_.error * std::sqrt(1 - done);
  if (estimate_.mean >= bar + may_change) return TrialVerdict::kSaves;
  return estimate_.mean < bar - may_change ? TrialVerdict::kDoesNot : TrialVerdict::kOpen;
}

double EngineTrial::saving() const { return -std::expm1(-estimate_.mean); }

double EngineTrial::confidence() const {
  const double away = std::abs(estimate_.mean - gain_);
  if (away >= kConfidenceMax * estimate_.error) return kConfidenceMax;
  return away / estimate_.error;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
