// The same stories, sealed: every stream carries records, in native mode for odd seeds and in gRPC
// mode for even ones. No byte may be lost, an end must be vouched for or not as the mode has it,
// and all that the simulation asks of a stream it asks of a sealed one.
#include <gtest/gtest.h>
#include <penstock/seal.h>

#include <utility>

#include "sim/seeds.h"
#include "testing/sealed_environment.h"

namespace penstock::testing {
namespace {

SimSealing Sealing(RecordMode mode) {
  return {.native = mode == RecordMode::kNative,
          .seal = [mode](StreamPtr below, bool server, auto done) {
            SealOptions options;
            options.deadline = absl::InfiniteDuration();
            Seal(std::move(below), internal::InstantHandshaker({.mode = mode, .server = server}),
                 options, std::move(done));
          }};
}

const SeedPlan& SealedPlan() {
  static const SimSealing native = Sealing(RecordMode::kNative), grpc = Sealing(RecordMode::kGrpc);
  static const SeedPlan plan{
      .seeds = 2'000,
      .seeds_asan = 300,
      .seeds_tsan = 40,
      .parts = 4,
      .replay_test = "SimSealed.Replay",
      .story =
          [](uint64_t seed) {
            return ScenarioOptions{.seed = seed, .sealing = seed % 2 == 1 ? &native : &grpc};
          },
  };
  return plan;
}

class SimSealedSeeds : public ::testing::TestWithParam<uint64_t> {};

TEST_P(SimSealedSeeds, HoldTheContract) { RunSeeds(SealedPlan(), GetParam()); }

INSTANTIATE_TEST_SUITE_P(Parts, SimSealedSeeds, ::testing::Range<uint64_t>(0, SealedPlan().parts));

TEST(SimSealed, SameSeedIsTheSameStory) { CompareStories(SealedPlan()); }

TEST(SimSealed, Replay) { ReplaySeed(SealedPlan()); }

}  // namespace
}  // namespace penstock::testing
