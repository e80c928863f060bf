// EngineLoopTest: the fixture of tests that need one loop of the kernel's, on each engine.
//
// The test's thread.
#ifndef PENSTOCK_TESTS_TESTING_ENGINE_LOOP_H_
#define PENSTOCK_TESTS_TESTING_ENGINE_LOOP_H_

#include <penstock/export.h>
#include <penstock/loop.h>

#include <memory>
#include <string>
#include <utility>

#include <gtest/gtest.h>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class EngineLoopTest : public ::testing::TestWithParam<EngineKind> {
 protected:
  void SetUp() override {
    LoopOptions options;
    options.engine = GetParam();
    absl::StatusOr<std::unique_ptr<Loop>> loop = Loop::Create(std::move(options));
    if (absl::IsUnimplemented(loop.status())) GTEST_SKIP() << loop.status();
    ASSERT_TRUE(loop.ok()) << loop.status();
    loop_ = *std::move(loop);
  }

  std::unique_ptr<Loop> loop_;
};

inline std::string EngineName(const ::testing::TestParamInfo<EngineKind>& info) {
  return std::string(EngineKindName(info.param));
}

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_ENGINE_LOOP_H_
