// LaneWorld: what tests of lanes begin with: two devices of a FakeFabric in a SimWorld, with a hub
// each, and an owner of a lane at either. LaneUser serves tests on the machine's devices, too. One
// thread.
#ifndef PENSTOCK_TESTS_TESTING_LANE_KIT_H_
#define PENSTOCK_TESTS_TESTING_LANE_KIT_H_

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "rdma/lane.h"
#include "testing/device_scenario.h"
#include "testing/fake_fabric.h"
#include "testing/sim_world.h"

namespace penstock::testing {

using internal::FabricDevice;
using internal::Lane;
using internal::LaneHub;

// One end: notes what its lane, or a group of them, tells it.
template <typename Owner>
class LaneListener : public Owner {
 public:
  void OnLaneMessage(Buffer message) override {
    messages.emplace_back(message.view());
    if (on_message) on_message();
  }
  void OnLaneRoom() override { ++rooms; }
  void OnLaneDone(uint64_t token, RdmaOutcome outcome, BufferChain data) override {
    EXPECT_TRUE(ends.empty());
    done.push_back({token, outcome, data.ToString()});
    if (on_done) on_done();
  }
  void OnLaneEnd(absl::Status status) override {
    ends.push_back(std::string(status.message()));
    if (on_end) on_end();
  }

  // How many have ended so.
  size_t Count(RdmaOutcome outcome) const {
    return static_cast<size_t>(std::count_if(
        done.begin(), done.end(), [&](const Done& each) { return each.outcome == outcome; }));
  }

  struct Done {
    uint64_t token;
    RdmaOutcome outcome;
    std::string data;
  };
  std::vector<std::string> messages;
  std::vector<Done> done;
  std::vector<std::string> ends;
  int rooms = 0;
  std::function<void()> on_message;
  std::function<void()> on_done;
  std::function<void()> on_end;
};

class LaneUser final : public LaneListener<Lane::Owner> {
 public:
  std::unique_ptr<Lane> lane;
};

inline std::string LaneText(uint32_t number, size_t size) {
  std::string text(size, '.');
  for (size_t i = 0; i < size; ++i) text[i] = static_cast<char>('a' + (number + i * 7) % 26);
  return text;
}

class LaneWorld : public ::testing::Test {
 protected:
  void SetUp() override {
    PoolOptions pool;
    pool_ = world_.NewPool(pool);
    LoopOptions options;
    options.pool = pool_.get();
    auto loop = world_.NewLoop(std::move(options));
    ASSERT_TRUE(loop.ok()) << loop.status();
    loop_ = *std::move(loop);
    for (int i = 0; i < 2; ++i) {
      device_[i] = *fabric_.Open(absl::StrCat("fake", i));
      auto hub = LaneHub::Create(loop_->core(), *device_[i], {});
      ASSERT_TRUE(hub.ok()) << hub.status();
      hub_[i] = *std::move(hub);
    }
  }
  void TearDown() override {
    for (LaneUser* user : {&a_, &b_}) user->lane.reset();
    for (auto& hub : hub_) hub.reset();
    for (auto& device : device_) device.reset();
    EXPECT_EQ(fabric_.objects(), 0u);
    EXPECT_EQ(fabric_.receive_bytes_posted(), 0u);
    for (const std::string& what : fabric_.violations()) ADD_FAILURE() << what;
    loop_.reset();
    for (const std::string& what : world_.errors()) ADD_FAILURE() << what;
  }
  std::unique_ptr<Lane> NewLane(int hub, LaneUser& user, uint32_t grant = 16) {
    auto lane = Lane::Create(*hub_[hub], user, 0xfffff0 + static_cast<uint32_t>(hub), grant);
    EXPECT_TRUE(lane.ok()) << lane.status();
    return lane.ok() ? *std::move(lane) : nullptr;
  }
  void Connect() {
    a_.lane = NewLane(0, a_);
    b_.lane = NewLane(1, b_);
    ASSERT_TRUE(a_.lane->BringUp(b_.lane->address(), hub_[1]->read_depth()).ok());
    ASSERT_TRUE(b_.lane->BringUp(a_.lane->address(), hub_[0]->read_depth()).ok());
  }
  // A hub of other options in the place of one whose lanes have gone.
  void NewHub(int which, const LaneHub::Options& options) {
    hub_[which].reset();
    auto hub = LaneHub::Create(loop_->core(), *device_[which], options);
    ASSERT_TRUE(hub.ok()) << hub.status();
    hub_[which] = *std::move(hub);
  }
  bool Run(const std::function<bool()>& until) {
    world_.Touch(*loop_);
    return world_.Run(until, absl::Seconds(60));
  }
  BufferChain Payload(const std::string& text, size_t piece = 4096) {
    return internal::CopyInBlocks(*pool_, text, piece);
  }

  SimWorld world_{7};
  SimHost host_{world_};
  FakeFabric fabric_{host_, 7};
  std::unique_ptr<BufferPool> pool_;
  std::unique_ptr<Loop> loop_;
  std::unique_ptr<FabricDevice> device_[2];
  std::unique_ptr<LaneHub> hub_[2];
  LaneUser a_, b_;
};

}  // namespace penstock::testing

#endif  // PENSTOCK_TESTS_TESTING_LANE_KIT_H_
