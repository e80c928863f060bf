// EngineTrial: which of two engines takes less CPU for the same load. Sans-I/O: pairs of slices in,
// a verdict out. One thread.
//
// The model of noise. In slice i a byte costs c_e * D(t) * (1 + n_i): c_e is the engine's, and what
// is asked for. D(t) is what the load and the machine have become by then (other requests, a slower
// clock, neighbours), the same for both engines, and changes slowly. n_i is what happened in that
// slice alone, large now and then. So
//
// - two neighbouring slices, one of each engine, make a pair, and the logarithm of the ratio of
//   their costs is one observation: D(t) cancels but for its change in one slice;
// - pairs begin with either engine by turns, so that the change has either sign, and cancels too;
// - the estimate is the mean of the observations without the fifth that is least and the fifth that
//   is greatest, so a slice in which the machine stood still decides nothing;
// - its standard error follows from the spread of the observations (winsorized, after Tukey and
//   McLaughlin 1963), so a noisy machine is found to be one, and nothing about it is assumed.
//
// The test is sequential. After the last pair the estimate is compared with a bar: the gain that is
// asked for, or kErrorsOfBar of its standard errors if that is more, since what may be chance is no
// gain. It ends before that when the pairs that are left would not take the estimate over the bar,
// or below it: when it is kSure standard deviations of what they may add away.
#ifndef PENSTOCK_ENGINE_ENGINE_TRIAL_H_
#define PENSTOCK_ENGINE_ENGINE_TRIAL_H_

#include <penstock/export.h>

#include <cstddef>
#include <cstdint>
#include <vector>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

enum class TrialVerdict : uint8_t {
  kOpen,     // more pairs are needed
  kSaves,    // the engine that is tried saves at least `gain`
  kDoesNot,  // it does not
};

class EngineTrial {
 public:
  // Pairs before which nothing is decided: of fewer the spread is not known.
  static constexpr size_t kPairsMin = 8;
  // Of normal noise, looked at after every pair from kPairsMin on, an end that the last pair would
  // have made another is then one of some hundred.
  static constexpr double kSure = 2.5;
  static constexpr double kErrorsOfBar = 1.75;

  // `gain`: part of the CPU time that the engine that is tried must save, from 0 to below 1.
  EngineTrial(double gain, size_t pairs_max);

  // What a byte cost on either engine in two neighbouring slices; in any unit, both above 0.
  void Add(double cost_serving, double cost_tried);
  // `last`: no pair follows, though fewer than `pairs_max` are there; kOpen then says that they are
  // fewer than kPairsMin.
  TrialVerdict Judge(bool last = false) const;

  size_t pairs() const { return observed_.size(); }
  // Part of the CPU time that the one that is tried saves; below 0: it takes more.
  double saving() const;
  // The standard error of that.
  double error() const { return estimate_.error; }
  // How many standard errors lie between the estimate and the gain that is asked for; 10 at most.
  double confidence() const;

 private:
  struct Estimate {
    double mean = 0;  // logarithms
    double error = 0;
  };
  static Estimate TrimmedMean(std::vector<double> values);

  const double gain_;  // as a logarithm
  const size_t pairs_max_;
  std::vector<double> observed_;
  Estimate estimate_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_ENGINE_ENGINE_TRIAL_H_
