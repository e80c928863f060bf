// Every order of events between two sides that each keep one endpoint to the other: both dial, each
// stream may be reset at any step, and a side may be started again without a word. The gates and
// the cores are the shipped ones; what PeerLink does with streams and endpoints is done here
// without either. What must hold is asked after every step, and where nothing more can happen.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "rdma/peer_set_core.h"
#include "testing/gate_kit.h"
#include "testing/order_search.h"
#include "testing/sanitized.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

constexpr size_t kNoWire = SIZE_MAX;
constexpr std::string_view kWorkMark = "work ";

struct PeersStory {
  std::array<bool, 2> dials = {true, true};
  int works = 1;       // that each side wants to send
  size_t wires = 4;    // streams that can be made, in all
  int resets = 0;      // of any stream, at any step
  int restarts = 0;    // of any side
  bool hasty = false;  // probes may end before their answer has come
  // On purpose wrong: what both sides take their own incarnation for.
  std::optional<uint8_t> take_itself_for{};
};

// One end of a stream.
struct PeersEnd {
  std::optional<ReadyGate> gate;  // while there is an endpoint
  std::deque<std::string> incoming;
  bool end_comes = false;  // behind these
};
struct PeersWire {
  size_t caller = 0;
  std::array<PeersEnd, 2> ends;
};
struct PeersSide {
  PeerCore core;
  int generation = 0;
  bool dialled = false;
  uint64_t attempts = 0;
  size_t current = kNoWire;
  size_t held = kNoWire;
  bool told = false;
  bool asked = false;  // the endpoint, whether it is alive
  std::vector<int> queue{};
  std::string heard{};  // all that the core can know
};

class PeersWorld {
 public:
  explicit PeersWorld(const PeersStory& story) : story_(&story), sides_{Fresh(0, 0), Fresh(1, 0)} {
    for (size_t which = 0; which < 2; ++which) {
      for (int i = 0; i < story.works; ++i) {
        sides_[which].queue.push_back(static_cast<int>(which) * 10 + i);
      }
    }
  }

  // The number of steps that are possible now; Take takes one of them.
  size_t Choices() { return Walk(SIZE_MAX); }
  void Take(size_t choice) { Walk(choice); }

  // What is wrong; empty: nothing so far.
  const std::string& wrong() const { return wrong_; }
  const std::string& last() const { return last_; }
  // There was no stream left to try with.
  bool exhausted() const { return wires_.size() == story_->wires; }
  // Both have told of the two ends of one stream.
  bool joined() const {
    return sides_[0].told && sides_[1].told && sides_[0].current == sides_[1].current;
  }
  // Nothing more can happen: what should not have happened?
  std::string Verdict() const {
    if (!joined()) return exhausted() ? "" : "nothing more happens, and they are not joined";
    for (size_t which = 0; which < 2; ++which) {
      if (!sides_[which].queue.empty()) return "joined, and work still waits";
    }
    return gone_ + static_cast<int>(came_.size()) == 2 * story_->works ? "" : "work is lost";
  }

  // Two worlds with the same key go on alike.
  std::string Key() const {
    std::string key = absl::StrCat(resets_, " ", restarts_, " ", gone_, " ", came_.size());
    for (const PeersSide& side : sides_) {
      absl::StrAppend(&key, "|", static_cast<int>(side.core.state()), " ", side.generation, " ",
                      side.dialled, " ", side.attempts, " ", side.current, " ", side.held, " ",
                      side.told, side.asked, " ", side.queue.size(), side.heard);
    }
    for (const PeersWire& wire : wires_) {
      absl::StrAppend(&key, "/", wire.caller);
      for (const PeersEnd& end : wire.ends) {
        absl::StrAppend(&key, ";", end.end_comes,
                        end.gate ? absl::StrCat(static_cast<int>(end.gate->state()), " ",
                                                end.gate->self().attempt)
                                 : "-");
        for (const std::string& frame : end.incoming) absl::StrAppend(&key, ",", frame);
      }
    }
    return key;
  }

 private:
  // The side that is started again is the larger one of the two where it was the smaller one.
  static Bytes16 IncarnationOf(size_t which, int generation) {
    return RepeatedByte(
        static_cast<uint8_t>(which == 0 ? 0x20 + 0x20 * generation : 0x30 - 0x20 * generation));
  }
  PeersSide Fresh(size_t which, int generation) const {
    Bytes16 self = IncarnationOf(which, generation);
    if (story_->take_itself_for) self = RepeatedByte(*story_->take_itself_for);
    return {.core = PeerCore(self), .generation = generation};
  }
  ReadyGate NewGate(size_t which, GateRole role) {
    PeersSide& side = sides_[which];
    const uint64_t number = (which + 1) * 1000 + ++side.attempts;
    GateOptions options = GateOptionsFor(role);
    options.self = {.incarnation = IncarnationOf(which, side.generation),
                    .endpoint = number,
                    .attempt = number};
    options.nonce = RepeatedByte(static_cast<uint8_t>(number));
    options.features = kFeatureReady | kFeatureFallback;
    return ReadyGate(std::move(options), 0);
  }

  // Counts the steps, and takes the one numbered `choice` in the same walk.
  size_t Walk(size_t choice) {
    size_t count = 0;
    const auto step = [&](bool possible, std::string_view what, size_t which, auto take) {
      if (!possible || count > choice) return;
      if (count++ != choice) return;
      last_ = absl::StrCat("side ", which, ": ", std::string(what));
      take();
      ++count;  // nothing after it matches, whatever it has changed
      Check();
    };
    for (size_t which = 0; which < 2; ++which) {
      PeersSide& side = sides_[which];
      const PeerState state = side.core.state();
      step(story_->dials[which] && !side.dialled, "dials", which, [&] {
        side.dialled = true;
        Do(which, side.core.Want(), kNoWire);
      });
      step(state == PeerState::kPausing, "pause is over", which,
           [&] { Do(which, side.core.OnTime(), kNoWire); });
      step(state == PeerState::kConnecting && !exhausted(), "stream is made", which,
           [&] { Call(which); });
      const bool dead = side.asked && !Other(which, side.current).gate;
      step(dead || (side.asked && story_->hasty), "no answer to a probe", which,
           [&] { Do(which, side.core.OnTime(), kNoWire); });
      step(restarts_ < story_->restarts, "is started again", which, [&] { Restart(which); });
    }
    for (size_t wire = 0; wire < wires_.size(); ++wire) {
      for (size_t which = 0; which < 2; ++which) {
        PeersEnd& end = wires_[wire].ends[which];
        const std::string name = absl::StrCat(" of stream ", wire);
        step(!end.incoming.empty(), "message" + name, which, [&] { TakeFrame(which, wire); });
        const bool quiet = end.incoming.empty() && end.gate.has_value();
        step(quiet && end.end_comes, "end" + name, which, [&] { OnEnd(which, wire); });
        step(quiet && !end.end_comes && Deserted(which, wire), "nobody answers" + name, which,
             [&] { OnEnd(which, wire); });
      }
      const bool used = wires_[wire].ends[0].gate || wires_[wire].ends[1].gate;
      step(used && resets_ < story_->resets, absl::StrCat("reset of stream ", wire), 0,
           [&] { Reset(wire); });
    }
    return count;
  }

  PeersEnd& Other(size_t which, size_t wire) { return wires_[wire].ends[1 - which]; }
  // By a side that has gone without a word: pings and deadlines will tell.
  bool Deserted(size_t which, size_t wire) {
    const PeersEnd& other = Other(which, wire);
    return !other.gate && other.incoming.empty() && restarts_ > 0;
  }

  // --- What happens ---

  void Call(size_t which) {
    wires_.emplace_back().caller = which;
    const size_t wire = wires_.size() - 1;
    if (sides_[which].core.OnStream() != PeerAction::kCall) return Wrong("a stream for nothing");
    ReadyGate& gate = wires_[wire].ends[which].gate.emplace(NewGate(which, GateRole::kActive));
    sides_[which].current = wire;
    gate.Connect(OfferOf(0));
    Flush(which, wire);
  }

  void TakeFrame(size_t which, size_t wire) {
    PeersEnd& end = wires_[wire].ends[which];
    const std::string frame = std::move(end.incoming.front());
    end.incoming.pop_front();
    if (frame.starts_with(kWorkMark)) return TakeWork(which, wire, frame);
    const ControlMessage message = ControlOf(frame);
    if (std::holds_alternative<ControlHello>(message)) {
      end.gate.emplace(NewGate(which, GateRole::kPassive));
    }
    if (!end.gate) return;  // nobody is there any more
    if (const auto* ping = std::get_if<ControlPing>(&message)) {
      Other(which, wire).incoming.push_back(EncodeControl(ControlPong{.token = ping->token}));
    } else if (std::holds_alternative<ControlPong>(message)) {
      PeersSide& side = sides_[which];
      if (side.current != wire) return;
      side.asked = false;
      Do(which, side.core.OnAlive(), kNoWire);
    } else {
      Act(which, wire, GiveFrame(*end.gate, 0, frame));
    }
  }

  void Act(size_t which, size_t wire, GateAction action) {
    PeersSide& side = sides_[which];
    ReadyGate& gate = *wires_[wire].ends[which].gate;
    if (action == GateAction::kBringUp && gate.role() == GateRole::kPassive) {
      return Judge(which, wire);
    }
    if (action == GateAction::kBringUp) {
      action = gate.OnLanesUp(0, gate.self().attempt, OfferOf(0));
    }
    Flush(which, wire);
    if (action == GateAction::kSendReadyAndOpen || action == GateAction::kOpen) {
      if (side.current != wire) return Wrong("an endpoint opens that is not the current one");
      absl::StrAppend(&side.heard, " o", gate.peer().attempt);
      Do(which, side.core.OnOpened(gate.peer()), kNoWire);
    } else if (action == GateAction::kClose || action == GateAction::kViolation) {
      OnEnd(which, wire);
    }
  }

  void Judge(size_t which, size_t wire) {
    PeersSide& side = sides_[which];
    const AttemptId from = wires_[wire].ends[which].gate->peer();
    absl::StrAppend(&side.heard, " h", from.attempt, ".", int{from.incarnation[0]});
    Do(which, side.core.OnHello(from), wire);
  }

  void OnEnd(size_t which, size_t wire) {
    PeersSide& side = sides_[which];
    LetGo(which, wire);
    if (side.current == wire) {
      side.current = kNoWire;
      side.told = side.asked = false;
      Do(which, side.core.OnEnded(true), kNoWire);
    } else if (side.held == wire) {
      side.held = kNoWire;
      Do(which, side.core.OnHeldGone(), kNoWire);
    }
  }

  void TakeWork(size_t which, size_t wire, const std::string& frame) {
    const bool there = wires_[wire].ends[which].gate.has_value();
    int work = 0;
    if (!absl::SimpleAtoi(frame.substr(kWorkMark.size()), &work)) return Wrong("no work");
    if (!there) {
      ++gone_;
    } else if (wires_[wire].ends[which].gate->state() != GateState::kOpen) {
      Wrong("work before the endpoint is open");
    } else if (++came_[work] > 1) {
      Wrong("work that is done twice");
    }
  }

  void Reset(size_t wire) {
    ++resets_;
    for (size_t which = 0; which < 2; ++which) {
      Lose(wires_[wire].ends[which].incoming);
      wires_[wire].ends[which].end_comes = true;
    }
  }

  // Nobody is told, and what it had sent still comes.
  void Restart(size_t which) {
    ++restarts_;
    PeersSide& side = sides_[which];
    gone_ += static_cast<int>(side.queue.size());
    const uint64_t attempts = side.attempts;
    side = Fresh(which, side.generation + 1);
    side.attempts = attempts;
    for (PeersWire& wire : wires_) {
      wire.ends[which].gate.reset();
      Lose(wire.ends[which].incoming);
    }
  }

  void Lose(std::deque<std::string>& frames) {
    for (const std::string& frame : frames) gone_ += frame.starts_with(kWorkMark) ? 1 : 0;
    frames.clear();
  }

  // --- What the core says ---

  void Do(size_t which, PeerAction action, size_t arrived) {
    PeersSide& side = sides_[which];
    switch (action) {
      case PeerAction::kAnswer:
        return Answer(which, arrived);
      case PeerAction::kAnswerHeld:
        return Answer(which, std::exchange(side.held, kNoWire));
      case PeerAction::kProbe:
        side.held = arrived;
        if (std::exchange(side.asked, true)) return;
        Other(which, side.current).incoming.push_back(EncodeControl(ControlPing{.token = 1}));
        return;
      case PeerAction::kHold:
        Refuse(which, std::exchange(side.held, arrived));
        return;
      case PeerAction::kRefuse:
        return Refuse(which, arrived);
      case PeerAction::kRefuseHeld:
        return Refuse(which, std::exchange(side.held, kNoWire));
      case PeerAction::kGiveUp:
        return OnEnd(which, side.current);
      case PeerAction::kTell:
        side.told = true;
        for (const int work : std::exchange(side.queue, {})) Post(which, work);
        return;
      default:
        return;
    }
  }

  void Post(size_t which, int work) {
    PeersEnd& other = Other(which, sides_[which].current);
    if (other.end_comes) {
      ++gone_;
    } else {
      other.incoming.push_back(absl::StrCat(std::string(kWorkMark), work));
    }
  }

  void Answer(size_t which, size_t wire) {
    PeersSide& side = sides_[which];
    Refuse(which, std::exchange(side.held, kNoWire));
    const size_t gone = std::exchange(side.current, wire);
    if (gone != kNoWire) {
      wires_[gone].ends[which].gate->Close(absl::UnavailableError("another one lives on"));
      Flush(which, gone);
      LetGo(which, gone);
    }
    side.told = side.asked = false;
    ReadyGate& gate = *wires_[wire].ends[which].gate;
    Act(which, wire, gate.OnLanesUp(0, gate.self().attempt, OfferOf(0)));
  }

  void Refuse(size_t which, size_t wire) {
    if (wire == kNoWire) return;
    wires_[wire].ends[which].gate->OnSuperseded();
    Flush(which, wire);
    LetGo(which, wire);
  }

  void Flush(size_t which, size_t wire) {
    PeersWire& on = wires_[wire];
    for (std::string& frame : ControlFramesOf(on.ends[which].gate->TakeOutgoing())) {
      // What a reset stream is given goes nowhere.
      if (!on.ends[1 - which].end_comes) on.ends[1 - which].incoming.push_back(std::move(frame));
    }
  }

  // The endpoint, and this end of the stream: the other one hears of it behind what is in flight.
  void LetGo(size_t which, size_t wire) {
    wires_[wire].ends[which].gate.reset();
    wires_[wire].ends[1 - which].end_comes = true;
  }

  void Check() {
    for (const PeersSide& side : sides_) {
      const PeerState state = side.core.state();
      const bool has = state >= PeerState::kCalling;
      if (has != (side.current != kNoWire)) Wrong("no endpoint, or one too many");
      if ((state == PeerState::kProbing) != (side.held != kNoWire)) Wrong("held for nothing");
      if (side.told != (state >= PeerState::kOpen)) Wrong("told, and not open");
    }
  }

  void Wrong(std::string_view what) {
    if (wrong_.empty()) wrong_ = what;
  }

  const PeersStory* story_;
  std::array<PeersSide, 2> sides_;
  std::vector<PeersWire> wires_;
  int resets_ = 0;
  int restarts_ = 0;
  int gone_ = 0;             // works that were posted and lost, or that a restart has forgotten
  std::map<int, int> came_;  // how often each work has
  std::string wrong_;
  std::string last_;
};

struct PeersResult : OrderSearch {
  size_t joined = 0;     // where nothing more can happen, and they are
  size_t exhausted = 0;  // the same, for want of streams to try with
};

PeersResult SearchPeers(const PeersStory& story) {
  PeersResult result;
  static_cast<OrderSearch&>(result) = SearchOrders(PeersWorld(story), [&](const PeersWorld& world) {
    ++(world.joined() ? result.joined : result.exhausted);
    return world.Verdict();
  });
  return result;
}

void ReportPeers(const PeersResult& result) {
  ::testing::Test::RecordProperty("worlds", static_cast<int>(result.worlds));
  ::testing::Test::RecordProperty("joined", static_cast<int>(result.joined));
  ::testing::Test::RecordProperty("exhausted", static_cast<int>(result.exhausted));
}

TEST(PeerOrdersTest, BothDialAndOneStreamLivesOnWithAllWorkOnce) {
  const PeersResult result = SearchPeers({.works = 2});
  EXPECT_EQ(result.wrong, "");
  EXPECT_GT(result.joined, 0u);
  ReportPeers(result);
}

TEST(PeerOrdersTest, OneDialIsEnough) {
  for (const std::array<bool, 2> dials : {std::array{true, false}, std::array{false, true}}) {
    const PeersResult result = SearchPeers({.dials = dials});
    EXPECT_EQ(result.wrong, "");
    EXPECT_GT(result.joined, 0u);
    EXPECT_EQ(result.exhausted, 0u);
  }
}

TEST(PeerOrdersTest, AnyStreamMayBeResetAtAnyStep) {
  if (testing::kThreadSanitized) GTEST_SKIP() << testing::kNoThreads;
  const PeersResult result = SearchPeers({.wires = 4, .resets = 1});
  EXPECT_EQ(result.wrong, "");
  EXPECT_GT(result.joined, 0u);
  ReportPeers(result);
}

TEST(PeerOrdersTest, ASideMayBeStartedAgainAtAnyStepWithoutAWord) {
  if (testing::kThreadSanitized) GTEST_SKIP() << testing::kNoThreads;
  const PeersResult result = SearchPeers({.wires = 3, .restarts = 1});
  EXPECT_EQ(result.wrong, "");
  EXPECT_GT(result.joined, 0u);
  ReportPeers(result);
}

TEST(PeerOrdersTest, AProbeThatEndsTooEarlyCostsAStreamAndNoMore) {
  if (testing::kThreadSanitized) GTEST_SKIP() << testing::kNoThreads;
  const PeersResult result = SearchPeers({.wires = 3, .resets = 1, .hasty = true});
  EXPECT_EQ(result.wrong, "");
  ReportPeers(result);
}

// Proof that the search can fail: when both sides take the other for the smaller one, or both for
// the larger one, there are orders in which neither stream lives on.
TEST(PeerOrdersTest, WithoutAnOrderBetweenTheTwoBothStreamsMayEnd) {
  EXPECT_EQ(SearchPeers({.wires = 2}).exhausted, 0u);
  for (const uint8_t self : {0x00, 0xff}) {
    const PeersResult result = SearchPeers({.wires = 2, .take_itself_for = self});
    EXPECT_GT(result.exhausted, 0u) << int{self};
  }
}

}  // namespace
}  // namespace internal
PENSTOCK_END_NAMESPACE
