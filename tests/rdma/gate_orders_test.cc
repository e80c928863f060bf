// Every order of events, on the shipped gate: two sides, the control streams between
// them, the lanes with what is in flight, resets and lost streams, deadlines, and an attempt after
// the first with what the first left behind. What must hold is asked after every step.
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "testing/gate_kit.h"
#include "testing/order_search.h"
#include "testing/sanitized.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

constexpr size_t kActiveSide = 0;
constexpr size_t kPassiveSide = 1;

// What may happen besides the orders.
struct OrdersStory {
  std::array<uint64_t, 2> features = {kFeatureReady, kFeatureReady};
  std::array<RdmaReadyPolicy, 2> policies = {RdmaReadyPolicy::kRequire, RdmaReadyPolicy::kRequire};
  bool troubles = true;  // resets, lost streams, lanes that fail, deadlines
  bool old_tags_pass =
      false;  // on purpose wrong: data of an earlier attempt has the tag of this one
};

// How far the lanes of a side are. The continuation that says so comes some time after.
enum class LanesAre : uint8_t { kDown, kComingUp, kUp, kUpAndTold };

struct OrdersSide {
  ReadyGate gate;
  LanesAre lanes = LanesAre::kDown;
  std::deque<std::string> incoming;  // control messages
  std::vector<uint32_t> flying;      // tags of data on its way to this side
  bool posted = false;
  bool was_closed = false;
};

class OrdersWorld {
 public:
  explicit OrdersWorld(const OrdersStory& story)
      : story_(&story), sides_{Fresh(kActiveSide), Fresh(kPassiveSide)} {}

  // The number of steps that are possible now; Take takes one of them.
  size_t Choices() { return Walk(SIZE_MAX); }
  void Take(size_t choice) { Walk(choice); }

  // What is wrong; empty: nothing so far.
  const std::string& wrong() const { return wrong_; }
  const std::string& last() const { return last_; }
  bool both_open() const {
    return sides_[0].gate.state() == GateState::kOpen && sides_[1].gate.state() == GateState::kOpen;
  }

  // Two worlds with the same key go on alike.
  std::string Key() const {
    std::string key = absl::StrCat(generation_, " ", stale_continuation_, " ", meddled_);
    for (const OrdersSide& side : sides_) {
      absl::StrAppend(&key, "|", static_cast<int>(side.gate.state()), " ",
                      static_cast<int>(side.lanes), side.posted ? " p" : "",
                      side.gate.counts().opened_by_data ? " d" : "");
      for (const uint32_t tag : side.flying) absl::StrAppend(&key, " ", tag);
      for (const std::string& frame : side.incoming) absl::StrAppend(&key, ",", frame);
    }
    return key;
  }

 private:
  OrdersSide Fresh(size_t which) const {
    GateOptions options = GateOptionsFor(RoleOf(which), generation_);
    options.features = story_->features[which];
    options.policy = story_->policies[which];
    return {.gate = ReadyGate(std::move(options), 0), .incoming = {}, .flying = {}};
  }
  static GateRole RoleOf(size_t which) {
    return which == kActiveSide ? GateRole::kActive : GateRole::kPassive;
  }

  // Counts the steps, and takes the one numbered `choice` in the same walk.
  size_t Walk(size_t choice) {
    size_t count = 0;
    const auto step = [&](bool possible, std::string_view what, size_t which, auto take) {
      if (!possible || count > choice) return;
      if (count++ != choice) return;
      last_ = absl::StrCat(which == kActiveSide ? "active: " : "passive: ", std::string(what));
      take();
      ++count;  // nothing after it matches, whatever it has changed
      Check();
    };
    for (size_t which = 0; which < sides_.size() && count <= choice; ++which) {
      OrdersSide& side = sides_[which];
      const bool over = side.gate.state() == GateState::kClosed;
      step(which == kActiveSide && side.gate.state() == GateState::kIdle, "connect", which,
           [&] { Act(which, side.gate.Connect(OfferOf(1))); });
      step(!side.incoming.empty(), "message", which, [&] { TakeMessage(which); });
      step(side.lanes == LanesAre::kComingUp, "lanes up", which,
           [&] { side.lanes = LanesAre::kUp; });
      step(side.lanes == LanesAre::kUp, "told of lanes", which, [&] {
        side.lanes = LanesAre::kUpAndTold;
        Act(which, side.gate.OnLanesUp(0, side.gate.self().attempt, OfferOf(1)));
      });
      step(!side.posted && side.gate.MayPost(side.gate.self().attempt), "post", which,
           [&] { Post(which); });
      step(!side.flying.empty(), "data", which, [&] { TakeData(which); });
      step(stale_continuation_, "told of earlier lanes", which, [&] {
        stale_continuation_ = false;
        // Its number is of the attempt before.
        Act(which, side.gate.OnLanesUp(0, side.gate.self().attempt - 2, OfferOf(1)));
      });
      if (!story_->troubles) continue;
      step(!side.incoming.empty() && !meddled_, "message lost", which, [&] {
        meddled_ = true;
        side.incoming.pop_front();
      });
      step(!side.incoming.empty() && !meddled_, "message that comes twice", which, [&] {
        meddled_ = true;
        side.incoming.push_front(side.incoming.front());
        TakeMessage(which);
      });
      step(!over, "reset", which,
           [&] { Act(which, side.gate.Close(absl::CancelledError("reset"))); });
      step(side.lanes == LanesAre::kComingUp, "lanes fail", which, [&] {
        side.lanes = LanesAre::kDown;
        Act(which,
            side.gate.OnLanesFailed(side.gate.self().attempt, absl::UnavailableError("no lane")));
      });
      step(side.gate.deadline_ns() != ReadyGate::kNever, "deadline", which,
           [&] { Act(which, side.gate.OnTime(side.gate.deadline_ns())); });
      step(over && generation_ == 0, "another attempt", which, [&] { TryAgain(); });
    }
    return count;
  }

  void TakeMessage(size_t which) {
    OrdersSide& side = sides_[which];
    const std::string frame = std::move(side.incoming.front());
    side.incoming.pop_front();
    Act(which, GiveFrame(side.gate, 0, frame));
  }

  void Post(size_t which) {
    const OrdersSide& other = sides_[1 - which];
    sides_[which].posted = true;
    if (other.lanes < LanesAre::kUp) Wrong("posted to lanes that are not up");
    if (sides_[which].lanes < LanesAre::kUp) Wrong("posted on lanes that are not up");
    sides_[1 - which].flying.push_back(sides_[which].gate.data_tag());
  }

  void TakeData(size_t which) {
    OrdersSide& side = sides_[which];
    const uint32_t tag = side.flying.back();
    side.flying.pop_back();
    // What the device drops, nobody hears of.
    if (side.lanes >= LanesAre::kUp) Act(which, side.gate.OnData(tag));
  }

  // Both sides begin anew, with new control streams. What was in flight on the lanes may still
  // come, since queue pairs of the same numbers are made again; so may what tells of lanes.
  void TryAgain() {
    ++generation_;
    for (size_t which = 0; which < sides_.size(); ++which) {
      const std::vector<uint32_t> flying = std::move(sides_[which].flying);
      const uint32_t tag = sides_[which].gate.data_tag();
      sides_[which] = Fresh(which);
      sides_[which].flying = flying;
      if (flying.empty() && tag != 0) sides_[which].flying.push_back(tag);
    }
    stale_continuation_ = true;
  }

  void Act(size_t which, GateAction action) {
    OrdersSide& side = sides_[which];
    if (side.was_closed && action != GateAction::kIgnore) Wrong("a gate acts after its end");
    if (action == GateAction::kBringUp) side.lanes = LanesAre::kComingUp;
    if (action == GateAction::kHold && side.lanes < LanesAre::kUp) Wrong("data through no lane");
    for (std::string& frame : ControlFramesOf(side.gate.TakeOutgoing())) {
      const ControlMessage message = ControlOf(frame);
      const bool proof = std::holds_alternative<ControlAccept>(message) ||
                         std::holds_alternative<ControlReady>(message);
      if (proof && side.lanes < LanesAre::kUp) Wrong("lanes that are not up are told of");
      if (side.was_closed) Wrong("a gate sends after its end");
      sides_[1 - which].incoming.push_back(std::move(frame));
    }
    // As if the stale data had passed for data of this attempt.
    if (story_->old_tags_pass && generation_ > 0) {
      for (OrdersSide& each : sides_) {
        for (uint32_t& tag : each.flying) {
          if (each.gate.data_tag() != 0) tag = each.gate.data_tag();
        }
      }
    }
  }

  void Check() {
    for (size_t which = 0; which < sides_.size(); ++which) {
      OrdersSide& side = sides_[which];
      const GateState state = side.gate.state();
      if (side.was_closed && state != GateState::kClosed) Wrong("a gate has opened again");
      side.was_closed = state == GateState::kClosed;
      const OrdersSide& other = sides_[1 - which];
      const bool settled = state == GateState::kOpen || state == GateState::kClosed;
      if (state == GateState::kOpen && other.lanes < LanesAre::kUp) {
        Wrong("open although the lanes of the peer are not up");
      }
      if (state == GateState::kOpen && side.lanes < LanesAre::kUp) {
        Wrong("open although its own lanes are not up");
      }
      if ((side.gate.deadline_ns() == ReadyGate::kNever) != settled) {
        Wrong("waits without a deadline, or has one for nothing");
      }
      if (side.gate.status().ok() != (state != GateState::kClosed)) Wrong("ends without a reason");
      if (side.gate.MayPost(side.gate.self().attempt) != (state == GateState::kOpen)) {
        Wrong("may post although it is not open, or the other way round");
      }
    }
  }

  void Wrong(std::string_view what) {
    if (wrong_.empty()) wrong_ = what;
  }

  const OrdersStory* story_;
  int generation_ = 0;
  bool stale_continuation_ = false;
  bool meddled_ = false;  // a message has been lost or repeated
  std::array<OrdersSide, 2> sides_;
  std::string wrong_;
  std::string last_;
};

struct OrdersResult : OrderSearch {
  size_t open_ends = 0;   // where nothing more can happen, and both are open
  size_t other_ends = 0;  // the same, and they are not
};

OrdersResult Search(const OrdersStory& story) {
  OrdersResult result;
  static_cast<OrderSearch&>(result) =
      SearchOrders(OrdersWorld(story), [&](const OrdersWorld& world) {
        ++(world.both_open() ? result.open_ends : result.other_ends);
        return std::string();
      });
  return result;
}

TEST(GateOrdersTest, NoOrderOfEventsOpensAGateTooEarlyOrAgain) {
  if (testing::kThreadSanitized) GTEST_SKIP() << testing::kNoThreads;
  const OrdersResult result = Search({});
  EXPECT_EQ(result.wrong, "");
  EXPECT_GT(result.worlds, 10'000u);
  EXPECT_GE(result.steps, 20u);
  RecordProperty("worlds", static_cast<int>(result.worlds));
  RecordProperty("steps", static_cast<int>(result.steps));
}

TEST(GateOrdersTest, WithoutTroubleBothOpenInEveryOrder) {
  const OrdersResult result = Search({.troubles = false});
  EXPECT_EQ(result.wrong, "");
  EXPECT_GT(result.open_ends, 0u);
  EXPECT_EQ(result.other_ends, 0u);
}

TEST(GateOrdersTest, APeerWithoutReadyIsSafeWhenItSendsFirst) {
  if (testing::kThreadSanitized) GTEST_SKIP() << testing::kNoThreads;
  const OrdersResult result =
      Search({.features = {0, kFeatureReady},
              .policies = {RdmaReadyPolicy::kOpenAtOnce, RdmaReadyPolicy::kOpenOnFirstData}});
  EXPECT_EQ(result.wrong, "");
}

TEST(GateOrdersTest, AnActiveSideIsSafeWithAPeerThatOpensAtOnceExceptForItsEarlyData) {
  const OrdersResult result =
      Search({.features = {kFeatureReady, 0},
              .policies = {RdmaReadyPolicy::kOpenOnFirstData, RdmaReadyPolicy::kOpenAtOnce}});
  // The fault is the peer's, and the search sees it.
  EXPECT_EQ(result.wrong.substr(0, result.wrong.find('\n')),
            "open although the lanes of the peer are not up");
  EXPECT_NE(result.wrong.find("passive: told of lanes"), std::string::npos) << result.wrong;
}

// Proof that the search can fail: with the gate off, which is what opening at once amounts to, the
// passive side posts to lanes that drop it in silence.
TEST(GateOrdersTest, WithTheGateOffTheSearchFindsTheFault) {
  const OrdersResult result =
      Search({.features = {0, 0},
              .policies = {RdmaReadyPolicy::kOpenAtOnce, RdmaReadyPolicy::kOpenAtOnce},
              .troubles = false});
  EXPECT_EQ(result.wrong.substr(0, result.wrong.find('\n')),
            "open although the lanes of the peer are not up");
}

// The same without the tag: what an earlier attempt left in flight opens the next one.
TEST(GateOrdersTest, WithoutTagsTheSearchFindsTheFault) {
  const OrdersResult result = Search({.old_tags_pass = true});
  EXPECT_EQ(result.wrong.substr(0, result.wrong.find('\n')),
            "open although the lanes of the peer are not up");
}

}  // namespace
}  // namespace internal
PENSTOCK_END_NAMESPACE
