// What a sealed stream holds of the heap for callbacks when it has rested, and until then.
#include <malloc.h>
#include <penstock/seal.h>

#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "testing/harness.h"
#include "testing/sealed_environment.h"

namespace penstock::internal {
namespace {

class SealedHeapTest : public Harness {
 protected:
  static int64_t HeapInUse() { return static_cast<int64_t>(::mallinfo2().uordblks); }

  // One write each, of a byte with a callback of its own, all in one turn.
  void Burst(Stream& stream, StreamPair& pair) {
    constexpr int kWrites = 512;
    int done = 0;
    for (int i = 0; i < kWrites; ++i) {
      stream.Write(Chain("x"), [&done](absl::Status status) { done += status.ok(); });
    }
    // One record: what is written together is sealed together.
    EXPECT_EQ(ReadUpTo(*pair.client, kWrites + kRecordOverhead).data.size(),
              kWrites + kRecordOverhead);
    ASSERT_TRUE(Drive([&] { return done == kWrites; }));
  }
  void Rest() {
    ASSERT_TRUE(Drive([this] { return loop().Snapshot().timers == 0; })) << "an idle loop sleeps";
  }
};

// (I1) And whoever writes in batches finds it there, in the simulated world, where no time passes
// while there is work.
TEST_P(SealedHeapTest, TheRoomOfABurstGoesWhenTheStreamHasRested) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer replaces the heap";
  StreamPair pair = Pair();
  StreamPtr stream;
  Seal(std::move(pair.server), InstantHandshaker({.mode = RecordMode::kGrpc, .server = true}), {},
       [&](absl::StatusOr<StreamPtr> sealed) { stream = *std::move(sealed); });
  ASSERT_TRUE(Drive([&] { return stream != nullptr; }));
  for (int i = 0; i < 2; ++i) {  // what the loop, the test and the library make once
    Burst(*stream, pair);
    Rest();
  }
  const int64_t before = HeapInUse();
  Burst(*stream, pair);
  EXPECT_GT(HeapInUse() - before, 16 << 10) << "kept for the next";
  Burst(*stream, pair);
  Rest();
  EXPECT_LT(HeapInUse() - before, 4 << 10);
}

std::vector<EnvironmentCase> SimulatedToSeal() {
  std::vector<EnvironmentCase> some;
  for (const EnvironmentCase& which : EnvironmentsToSeal()) {
    if (which.name.rfind("Simulated", 0) == 0) some.push_back(which);
  }
  return some;
}
INSTANTIATE_TEST_SUITE_P(Environments, SealedHeapTest, ::testing::ValuesIn(SimulatedToSeal()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
