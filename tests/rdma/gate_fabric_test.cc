// The gate on devices that drop what comes too early: with the gate off they show the stalls and
// failures that it exists for, with the gate on never.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "rdma/admission.h"
#include "rdma/ready_gate.h"
#include "testing/fake_fabric.h"
#include "testing/fake_fabric_kit.h"
#include "testing/gate_kit.h"

namespace penstock::testing {
namespace {

using internal::Admission;
using internal::FabricOp;
using internal::FabricOutcome;
using internal::GateAction;
using internal::GateOffer;
using internal::GateOptions;
using internal::GateRole;
using internal::GateState;
using internal::ReadyGate;

constexpr int64_t kMs = 1'000'000;
constexpr int64_t kControlDelay = kMs / 10;

// The gate is off: nothing is said, and nothing waited for.
GateOptions GateOff(GateRole role) {
  GateOptions options = internal::GateOptionsFor(role);
  options.features = 0;
  options.policy = RdmaReadyPolicy::kOpenAtOnce;
  return options;
}

// One side: a device, one lane, and the gate. Messages carry nothing but the gate's tag.
class GateSide {
 public:
  static constexpr size_t kReceives = 16;
  static constexpr uint32_t kTagSize = sizeof(uint32_t);

  GateSide(FakeHost& host, FakeFabric& fabric, GateOptions options, uint32_t psn = 0)
      : host_(host),
        end_(fabric, options.role == GateRole::kActive ? "fake0" : "fake1", {.psn = psn}),
        gate_(std::move(options), host.now_ns()) {
    for (size_t i = 0; i < kReceives; ++i) {
      EXPECT_EQ(end_.PostReceive(kReceiveId + i, kTagSize * (i + 1), kTagSize), 0);
    }
  }

  static void Join(GateSide& a, GateSide& b) {
    a.peer_ = &b;
    b.peer_ = &a;
  }
  void set_bring_up_ns(int64_t ns) { bring_up_ns_ = ns; }
  void set_control_ns(int64_t ns) { control_ns_ = ns; }
  void set_loses_ready() { loses_ready_ = true; }
  void set_admission(Admission* admission) { admission_ = admission; }

  void Connect() { Do(gate_.Connect(Offer())); }
  // As many messages as may be sent at once, when the gate is open.
  void Want(size_t messages) {
    wanted_ += messages;
    Post();
  }
  void Close(absl::Status status) { Do(gate_.Close(status)); }
  // What has completed goes to the gate. True: as many messages came, and as many went.
  bool Poll(size_t received, size_t sent) {
    for (const size_t all = end_.Poll(); seen_ < all;) {
      const internal::FabricCompletion done = end_.done[seen_++];
      if (done.id < kReceiveId) {
        ++sent_;
        outcomes_.push_back(done.outcome);
      } else if (done.outcome == FabricOutcome::kOk) {
        ++received_;
        uint32_t tag;
        std::memcpy(&tag, end_.bytes.data() + kTagSize * (done.id - kReceiveId + 1), kTagSize);
        Do(gate_.OnData(tag));
      }
    }
    return received_ >= received && sent_ >= sent;
  }

  ReadyGate& gate() { return gate_; }
  FakeEnd& end() { return end_; }
  int64_t opened_ns() const { return opened_ns_; }
  const std::vector<FabricOutcome>& outcomes() const { return outcomes_; }

 private:
  static constexpr uint64_t kReceiveId = 1000;

  GateOffer Offer() {
    internal::LaneAddress lane = {.qpn = end_.qp->number(), .psn = end_.options.psn, .mtu = 3};
    lane.gid = *end_.device->QueryGid(1, 0);
    return {.lanes = {lane}, .terms = {.depth = kReceives, .size = kTagSize, .read_depth = 1}};
  }

  void Do(GateAction action) {
    for (std::string& frame : internal::ControlFramesOf(gate_.TakeOutgoing())) {
      Send(std::move(frame));
    }
    switch (action) {
      case GateAction::kBringUp:
        AskToBringUp();
        break;
      case GateAction::kOpen:
      case GateAction::kSendReadyAndOpen:
      case GateAction::kSendAcceptAndOpen:
        opened_ns_ = host_.now_ns();
        Post();
        break;
      case GateAction::kClose:
      case GateAction::kViolation:
        place_.Leave();
        break;
      default:
        break;
    }
  }

  void Send(std::string frame) {
    const bool ready = std::holds_alternative<internal::ControlReady>(internal::ControlOf(frame));
    if (ready && loses_ready_) return;
    host_.After(control_ns_, [this, frame] {
      peer_->Do(internal::GiveFrame(peer_->gate_, host_.now_ns(), frame));
    });
  }

  void AskToBringUp() {
    const auto begin = [this] {
      host_.After(bring_up_ns_, [this, attempt = gate_.self().attempt] {
        if (gate_.state() == GateState::kClosed) return;
        BringUp();
        place_.Leave();
        Do(gate_.OnLanesUp(host_.now_ns(), attempt, Offer()));
      });
    };
    if (admission_ == nullptr) return begin();
    switch (admission_->Ask(place_, 1, begin)) {
      case Admission::Answer::kAdmitted:
        return begin();
      case Admission::Answer::kWaiting:
        return;
      case Admission::Answer::kBusy:
        Do(gate_.OnBusy(admission_->retry_after()));
    }
  }

  void BringUp() {
    const internal::LaneAddress& lane = gate_.peer_offer().lanes[0];
    internal::FabricPath path;
    path.peer_gid = lane.gid;
    path.peer_qp_number = lane.qpn;
    path.peer_psn = lane.psn;
    path.mtu = internal::LaneMtuBytes(lane);
    EXPECT_TRUE(end_.qp->ToReadyToReceive(path).ok());
    EXPECT_TRUE(end_.Send().ok());
  }

  void Post() {
    while (wanted_ > 0 && gate_.MayPost(gate_.self().attempt)) {
      --wanted_;
      const uint32_t tag = gate_.data_tag();
      std::memcpy(end_.bytes.data(), &tag, kTagSize);
      EXPECT_EQ(end_.Post(++posted_, FabricOp::kSend, 0, kTagSize), 0);
    }
  }

  FakeHost& host_;
  FakeEnd end_;
  ReadyGate gate_;
  Admission* admission_ = nullptr;
  Admission::Place place_;
  GateSide* peer_ = nullptr;
  int64_t bring_up_ns_ = kMs;
  int64_t control_ns_ = kControlDelay;
  bool loses_ready_ = false;
  size_t wanted_ = 0;
  uint64_t posted_ = 0;
  size_t seen_ = 0;
  size_t received_ = 0;
  size_t sent_ = 0;
  int64_t opened_ns_ = 0;
  std::vector<FabricOutcome> outcomes_;
};

class GateFabricTest : public ::testing::Test {
 protected:
  ~GateFabricTest() override {
    for (const std::string& what : fabric_.violations()) ADD_FAILURE() << what;
  }
  void Make(GateOptions active, GateOptions passive) {
    active_ = std::make_unique<GateSide>(host_, fabric_, std::move(active), 0xabc);
    passive_ = std::make_unique<GateSide>(host_, fabric_, std::move(passive), 0xdef);
    GateSide::Join(*active_, *passive_);
  }
  void MakeWithGate() {
    Make(internal::GateOptionsFor(GateRole::kActive), internal::GateOptionsFor(GateRole::kPassive));
  }
  // Until so many messages have come and gone on both sides.
  bool RunTo(size_t active_received, size_t active_sent, size_t passive_received,
             size_t passive_sent) {
    return host_.Run([&] {
      const bool a = active_->Poll(active_received, active_sent);
      return passive_->Poll(passive_received, passive_sent) && a;
    });
  }

  VirtualHost host_;
  FakeFabric fabric_{host_, 1};
  std::unique_ptr<GateSide> active_;
  std::unique_ptr<GateSide> passive_;
};

TEST_F(GateFabricTest, WithoutTheGateAnEarlySendStallsWithoutAnError) {
  Make(GateOff(GateRole::kActive), GateOff(GateRole::kPassive));
  active_->set_bring_up_ns(30 * kMs);
  passive_->Want(1);
  active_->Connect();
  ASSERT_TRUE(RunTo(1, 0, 0, 1));
  EXPECT_EQ(passive_->outcomes(), std::vector({FabricOutcome::kOk}));
  EXPECT_EQ(fabric_.stats().dropped_early, 1u);
  EXPECT_EQ(fabric_.stats().timeouts, 1u);
  EXPECT_GE(host_.now_ns() - passive_->opened_ns(), 67 * kMs);
}

TEST_F(GateFabricTest, WithoutTheGateALateBringUpKillsTheLaneOfThePassiveSide) {
  Make(GateOff(GateRole::kActive), GateOff(GateRole::kPassive));
  active_->set_bring_up_ns(1000 * kMs);
  passive_->Want(1);
  active_->Connect();
  ASSERT_TRUE(RunTo(0, 0, 0, 1));
  EXPECT_EQ(passive_->outcomes(), std::vector({FabricOutcome::kRetriesExceeded}));
  EXPECT_GE(fabric_.stats().dropped_early, 8u);
}

TEST_F(GateFabricTest, WithTheGateNothingIsEverTooEarly) {
  for (const int64_t bring_up_ms : {0, 30, 1000}) {
    MakeWithGate();
    active_->set_bring_up_ns(bring_up_ms * kMs);
    passive_->Want(1);
    active_->Connect();
    ASSERT_TRUE(RunTo(1, 0, 0, 1));
    EXPECT_EQ(passive_->outcomes(), std::vector({FabricOutcome::kOk}));
    // All that the gate costs the passive side is READY's way; the active side waits for nothing
    // that it did not wait for before.
    EXPECT_EQ(passive_->opened_ns() - active_->opened_ns(), kControlDelay);
    EXPECT_LT(host_.now_ns() - passive_->opened_ns(), kMs);
  }
  EXPECT_EQ(fabric_.stats().dropped_early, 0u);
  EXPECT_EQ(fabric_.stats().timeouts, 0u);
}

TEST_F(GateFabricTest, TheActiveSideOpensAfterOneRoundTripAndItsBringUp) {
  MakeWithGate();
  active_->set_bring_up_ns(2 * kMs);
  passive_->set_bring_up_ns(5 * kMs);
  const int64_t began_ns = host_.now_ns();
  active_->Connect();
  ASSERT_TRUE(host_.Run([&] { return active_->opened_ns() != 0; }));
  EXPECT_EQ(active_->opened_ns() - began_ns, 2 * kControlDelay + 7 * kMs);
}

TEST_F(GateFabricTest, DataOpensThePassiveSideWhenReadyIsSlow) {
  MakeWithGate();
  active_->set_control_ns(50 * kMs);  // HELLO and READY
  active_->Want(1);
  passive_->Want(3);
  active_->Connect();
  ASSERT_TRUE(RunTo(3, 1, 1, 3));
  EXPECT_TRUE(passive_->gate().counts().opened_by_data);
  EXPECT_LT(passive_->opened_ns() - active_->opened_ns(), kMs);
  host_.Advance(absl::Seconds(1));
  EXPECT_EQ(passive_->gate().counts().repeated, 1u);
  EXPECT_EQ(passive_->gate().state(), GateState::kOpen);
  EXPECT_EQ(fabric_.stats().dropped_early + fabric_.stats().timeouts, 0u);
}

TEST_F(GateFabricTest, ALostReadyEndsThePassiveSideByItsTimerAndPostsNothing) {
  MakeWithGate();
  active_->set_loses_ready();
  passive_->Want(4096);
  active_->Connect();
  ASSERT_TRUE(host_.Run([&] { return active_->opened_ns() != 0; }));
  const uint64_t calls = fabric_.stats().calls;
  const int64_t deadline_ns = passive_->gate().deadline_ns();
  host_.Advance(absl::Nanoseconds(deadline_ns - host_.now_ns()));
  EXPECT_EQ(passive_->gate().state(), GateState::kWaitReady);
  EXPECT_EQ(fabric_.stats().calls, calls) << "waiting uses nothing";
  EXPECT_EQ(passive_->gate().OnTime(host_.now_ns()), GateAction::kClose);
  EXPECT_EQ(fabric_.stats().sends_posted, 0u);
}

TEST_F(GateFabricTest, ThePacketsOfAStalePeerDoNotOpenTheGate) {
  // An open pair, whose passive side then starts anew behind its back, with the same queue pair
  // number and, as many do, the same packet sequence numbers.
  MakeWithGate();
  active_->Connect();
  ASSERT_TRUE(host_.Run([&] { return passive_->opened_ns() != 0; }));
  const std::unique_ptr<GateSide> stale = std::move(active_);
  const uint32_t number = passive_->end().qp->number();
  passive_ = nullptr;
  Make(internal::GateOptionsFor(GateRole::kActive, 1),
       internal::GateOptionsFor(GateRole::kPassive, 1));
  ASSERT_EQ(passive_->end().qp->number(), number);
  active_->set_bring_up_ns(1000 * kMs);
  passive_->Want(1);
  active_->Connect();
  ASSERT_TRUE(host_.Run([&] { return passive_->gate().state() == GateState::kWaitReady; }));
  stale->Want(1);
  ASSERT_TRUE(RunTo(0, 0, 1, 0)) << "the device takes it";
  EXPECT_EQ(passive_->gate().state(), GateState::kClosed);
  EXPECT_EQ(passive_->gate().status().message(), "open RDMA endpoint: data of another attempt");
  EXPECT_EQ(passive_->outcomes().size(), 0u);
}

TEST_F(GateFabricTest, NothingIsPostedAfterAnEnd) {
  MakeWithGate();
  active_->Connect();
  ASSERT_TRUE(host_.Run([&] { return passive_->opened_ns() != 0; }));
  const uint64_t posted = fabric_.stats().sends_posted;
  active_->Close(absl::UnavailableError("control stream lost"));
  active_->Want(1);
  host_.Advance(absl::Milliseconds(1));
  passive_->Want(1);
  EXPECT_EQ(fabric_.stats().sends_posted, posted);
  EXPECT_TRUE(absl::IsUnavailable(passive_->gate().status()));
}

// Whatever takes how long on either side.
struct GateTroubles {
  uint64_t early = 0;
  uint64_t timeouts = 0;
};

GateTroubles GateTroublesOfSeeds(bool gate_on) {
  GateTroubles troubles;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    SimRandom random(seed);
    VirtualHost host;
    FakeFabric fabric(host, seed);
    const auto options = [&](GateRole role) {
      return gate_on ? internal::GateOptionsFor(role) : GateOff(role);
    };
    GateSide active(host, fabric, options(GateRole::kActive),
                    static_cast<uint32_t>(random.Below(1 << 24)));
    GateSide passive(host, fabric, options(GateRole::kPassive),
                     static_cast<uint32_t>(random.Below(1 << 24)));
    GateSide::Join(active, passive);
    for (GateSide* side : {&active, &passive}) {
      side->set_bring_up_ns(static_cast<int64_t>(random.Size(200 * kMs)));
      side->set_control_ns(static_cast<int64_t>(random.Size(20 * kMs)));
      side->Want(3);
    }
    active.Connect();
    EXPECT_TRUE(host.Run([&] {
      const bool a = active.Poll(3, 3);
      return passive.Poll(3, 3) && a;
    })) << seed;
    EXPECT_TRUE(fabric.violations().empty()) << seed;
    troubles.early += fabric.stats().dropped_early;
    troubles.timeouts += fabric.stats().timeouts;
  }
  return troubles;
}

TEST(GateFabricSeedsTest, NoDelaysMakeASendEarly) {
  const GateTroubles on = GateTroublesOfSeeds(true);
  EXPECT_EQ(on.early, 0u);
  EXPECT_EQ(on.timeouts, 0u);
  const GateTroubles off = GateTroublesOfSeeds(false);
  EXPECT_GT(off.early, 0u);
  EXPECT_GT(off.timeouts, 0u);
}

// All connect at once, to a side that can bring up a few at a time. Those that are refused come
// again when they were told to, and none stalls.
TEST(GateFabricHerdTest, FiveHundredAtOnceAllOpenAndNoneStalls) {
  constexpr size_t kPeers = 500;
  VirtualHost host;
  FakeFabric fabric(host, 7);
  Admission admission({.concurrent = 64, .waiting = 128});
  struct Try {
    std::unique_ptr<GateSide> active;
    std::unique_ptr<GateSide> passive;
    bool again = false;
  };
  std::vector<Try> tries(kPeers);
  size_t refused = 0;
  const auto begin = [&](size_t i, int generation) {
    tries[i].active = std::make_unique<GateSide>(
        host, fabric, internal::GateOptionsFor(GateRole::kActive, generation));
    tries[i].passive = std::make_unique<GateSide>(
        host, fabric, internal::GateOptionsFor(GateRole::kPassive, generation));
    GateSide::Join(*tries[i].active, *tries[i].passive);
    tries[i].passive->set_admission(&admission);
    tries[i].passive->set_bring_up_ns(3 * kMs);
    tries[i].active->Want(1);
    tries[i].passive->Want(1);
    tries[i].again = false;
    tries[i].active->Connect();
  };
  std::vector<std::unique_ptr<GateSide>> over;  // control messages may still be on their way to it
  for (size_t i = 0; i < kPeers; ++i) begin(i, static_cast<int>(i));
  int64_t look_ns = 0;
  const bool all = host.Run(
      [&] {
        if (host.now_ns() < look_ns) return false;
        look_ns = host.now_ns() + kMs;
        size_t done = 0;
        for (size_t i = 0; i < kPeers; ++i) {
          Try& each = tries[i];
          const bool a = each.active->Poll(1, 1);
          if (each.passive->Poll(1, 1) && a) ++done;
          if (each.active->gate().state() != GateState::kClosed || each.again) continue;
          EXPECT_TRUE(absl::IsUnavailable(each.active->gate().status()));
          each.again = true;
          ++refused;
          host.After(absl::ToInt64Nanoseconds(each.active->gate().retry_after()), [&, i] {
            over.push_back(std::move(tries[i].active));
            over.push_back(std::move(tries[i].passive));
            begin(i, static_cast<int>(kPeers + over.size()));
          });
        }
        return done == kPeers;
      },
      absl::Seconds(30));
  EXPECT_TRUE(all);
  EXPECT_GT(refused, 0u);
  EXPECT_EQ(fabric.stats().dropped_early, 0u);
  EXPECT_EQ(fabric.stats().timeouts, 0u);
  EXPECT_EQ(admission.stats().running, 0u);
  EXPECT_TRUE(fabric.violations().empty());
}

}  // namespace
}  // namespace penstock::testing
