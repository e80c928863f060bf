// SealOutcome: what a Seal came to.
//
// Outlives the callback that it gave. The loop's thread.
#ifndef PENSTOCK_TESTS_TESTING_SEAL_OUTCOME_H_
#define PENSTOCK_TESTS_TESTING_SEAL_OUTCOME_H_

#include <penstock/export.h>
#include <penstock/seal.h>

#include <utility>

#include <gtest/gtest.h>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

struct SealOutcome {
  bool ended = false;
  absl::StatusOr<StreamPtr> stream = absl::UnknownError("the callback has not run");
  SealCallback Done() {
    return [this](absl::StatusOr<StreamPtr> sealed) {
      EXPECT_FALSE(ended);
      ended = true;
      stream = std::move(sealed);
    };
  }
  absl::Status status() const { return stream.status(); }
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_SEAL_OUTCOME_H_
