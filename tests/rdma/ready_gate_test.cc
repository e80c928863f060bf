#include "rdma/ready_gate.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "testing/gate_kit.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

constexpr int64_t kSecond = 1'000'000'000;

// Rows are states, columns events, in the order of their enumerations; a cell is the next state and
// the action. Written down from the design, not from the code.
constexpr const char* kTable[kGateStates] = {
    // connect hello accept up up-wait up-once ready data end
    "Hh Pb Xv Ii Ii Ii Xv Xv Xc",  // I idle
    "Hi Xv Ab Hi Hi Hi Xv Xv Xc",  // H HELLO sent
    "Ai Xv Xv Or Oo Oo Xv Ak Xc",  // A active bring-up
    "Pi Xv Xv Ra Da Os Xv Xv Xc",  // P passive bring-up
    "Ri Xv Xv Ri Ri Ri Oo Oo Xc",  // R waits for READY
    "Di Xv Xv Di Di Di Xv Oo Xc",  // D waits for data
    "Oi Xv Xv Oi Oi Oi Oi O- Xc",  // O open
    "Xi Xi Xi Xi Xi Xi Xi Xi Xi",  // X closed
};

TEST(ReadyGateTest, TheTableIsTheDesign) {
  constexpr std::string_view kStateLetters = "IHAPRDOX";
  constexpr std::string_view kActionLetters = "-hbasrokicv";
  for (size_t state = 0; state < kGateStates; ++state) {
    std::string row;
    for (const GateTransition& cell : kGateTransitions[state]) {
      if (!row.empty()) row += ' ';
      row += kStateLetters[static_cast<size_t>(cell.next)];
      row += kActionLetters[static_cast<size_t>(cell.action)];
    }
    EXPECT_EQ(row, kTable[state]) << state;
  }
}

// Both sides of one attempt, without a wire: frames wait to be given.
struct Pair {
  explicit Pair(GateOptions a = GateOptionsFor(GateRole::kActive),
                GateOptions p = GateOptionsFor(GateRole::kPassive))
      : active(std::move(a), 0), passive(std::move(p), 0) {}

  std::string OneFrameOf(ReadyGate& gate) {
    std::vector<std::string> frames = ControlFramesOf(gate.TakeOutgoing());
    EXPECT_EQ(frames.size(), 1u);
    return frames.empty() ? std::string() : frames[0];
  }
  // HELLO is sent and has arrived.
  void SayHello(size_t lanes = 1) {
    EXPECT_EQ(active.Connect(OfferOf(lanes)), GateAction::kSendHello);
    EXPECT_EQ(GiveFrame(passive, 0, OneFrameOf(active)), GateAction::kBringUp);
  }
  // And ACCEPT.
  void SayAccept(size_t lanes = 1) {
    SayHello(lanes);
    EXPECT_EQ(passive.OnLanesUp(0, 2, OfferOf(lanes)), GateAction::kSendAccept);
    EXPECT_EQ(GiveFrame(active, 0, OneFrameOf(passive)), GateAction::kBringUp);
  }
  // And READY is on its way: what it is.
  std::string SayReady() {
    SayAccept();
    EXPECT_EQ(active.OnLanesUp(0, 1), GateAction::kSendReadyAndOpen);
    return OneFrameOf(active);
  }

  ReadyGate active;
  ReadyGate passive;
};

// The one message that `gate` has to send, which must be an M.
template <class M>
M Only(ReadyGate& gate) {
  const std::vector<std::string> frames = ControlFramesOf(gate.TakeOutgoing());
  EXPECT_EQ(frames.size(), 1u);
  if (frames.size() != 1) return {};
  const ControlMessage message = ControlOf(frames[0]);
  const M* m = std::get_if<M>(&message);
  EXPECT_NE(m, nullptr) << message.index();
  return m == nullptr ? M{} : *m;
}

TEST(ReadyGateTest, OpensTheActiveSideOnAcceptAndThePassiveOnReady) {
  Pair pair;
  pair.SayHello(2);
  EXPECT_EQ(pair.passive.peer_offer().lanes, OfferOf(2).lanes);
  EXPECT_EQ(pair.passive.peer(), pair.active.self());
  EXPECT_FALSE(pair.passive.MayPost(2));
  EXPECT_EQ(pair.passive.OnLanesUp(0, 2, OfferOf(1)), GateAction::kSendAccept);
  EXPECT_EQ(GiveFrame(pair.active, 0, pair.OneFrameOf(pair.passive)), GateAction::kBringUp);
  EXPECT_EQ(pair.active.peer_offer().lanes, OfferOf(1).lanes);
  EXPECT_EQ(pair.active.features(), kFeatureReady);
  EXPECT_EQ(pair.active.version(), 1);
  EXPECT_FALSE(pair.active.MayPost(1));
  EXPECT_EQ(pair.active.OnLanesUp(0, 1), GateAction::kSendReadyAndOpen);
  EXPECT_TRUE(pair.active.MayPost(1));
  EXPECT_FALSE(pair.active.MayPost(3));
  EXPECT_FALSE(pair.passive.MayPost(2));
  EXPECT_EQ(GiveFrame(pair.passive, 0, pair.OneFrameOf(pair.active)), GateAction::kOpen);
  EXPECT_TRUE(pair.passive.MayPost(2));
  EXPECT_EQ(pair.active.data_tag(), pair.passive.data_tag());
  EXPECT_NE(pair.active.data_tag(), 0u);
}

TEST(ReadyGateTest, DataOpensThePassiveSideAndReadyThenComesLate) {
  Pair pair;
  const std::string ready = pair.SayReady();
  EXPECT_EQ(pair.passive.OnData(pair.active.data_tag()), GateAction::kOpen);
  EXPECT_TRUE(pair.passive.counts().opened_by_data);
  EXPECT_EQ(GiveFrame(pair.passive, 0, ready), GateAction::kIgnore);
  EXPECT_EQ(GiveFrame(pair.passive, 0, ready), GateAction::kIgnore);
  EXPECT_EQ(pair.passive.counts().repeated, 2u);
  EXPECT_TRUE(pair.passive.MayPost(2));
}

TEST(ReadyGateTest, DataOfAnotherAttemptShutsTheGate) {
  for (const bool open : {false, true}) {
    Pair pair;
    const std::string ready = pair.SayReady();
    if (open) GiveFrame(pair.passive, 0, ready);
    EXPECT_EQ(pair.passive.OnData(pair.active.data_tag() ^ 1), GateAction::kViolation);
    EXPECT_EQ(pair.passive.state(), GateState::kClosed);
    EXPECT_EQ(pair.passive.status().message(), "open RDMA endpoint: data of another attempt");
    EXPECT_EQ(Only<ControlClose>(pair.passive).code, CloseCode::kViolation);
    EXPECT_EQ(GiveFrame(pair.passive, 0, ready), GateAction::kIgnore);
    EXPECT_FALSE(pair.passive.MayPost(2));
  }
}

TEST(ReadyGateTest, ReadyMustMatchInEveryPart) {
  const auto outcome = [](auto change) {
    Pair pair;
    auto ready = std::get<ControlReady>(ControlOf(pair.SayReady()));
    change(ready);
    return pair.passive.OnReady(ready);
  };
  EXPECT_EQ(outcome([](ControlReady&) {}), GateAction::kOpen);
  // Another attempt's: late.
  EXPECT_EQ(outcome([](ControlReady& r) { r.active_attempt ^= 2; }), GateAction::kIgnore);
  EXPECT_EQ(outcome([](ControlReady& r) { r.passive_attempt ^= 4; }), GateAction::kIgnore);
  // This attempt's, and yet not.
  EXPECT_EQ(outcome([](ControlReady& r) { r.active_nonce[15] ^= 1; }), GateAction::kViolation);
  EXPECT_EQ(outcome([](ControlReady& r) { r.passive_nonce[0] ^= 1; }), GateAction::kViolation);
  EXPECT_EQ(outcome([](ControlReady& r) { r.transcript ^= 1; }), GateAction::kViolation);
}

// A side that saw another message than was sent has another transcript.
TEST(ReadyGateTest, AMessageChangedUnderwayShutsTheGate) {
  Pair pair;
  pair.active.Connect(OfferOf(1));
  auto hello = std::get<ControlHello>(ControlOf(pair.OneFrameOf(pair.active)));
  hello.lanes[0].psn ^= 1;
  GiveFrame(pair.passive, 0, EncodeControl(hello));
  pair.passive.OnLanesUp(0, 2, OfferOf(1));
  GiveFrame(pair.active, 0, pair.OneFrameOf(pair.passive));
  pair.active.OnLanesUp(0, 1);
  EXPECT_EQ(GiveFrame(pair.passive, 0, pair.OneFrameOf(pair.active)), GateAction::kViolation);
}

TEST(ReadyGateTest, LateContinuationsAreCountedAndChangeNothing) {
  Pair pair;
  pair.SayAccept();
  EXPECT_EQ(pair.active.OnLanesUp(0, 99), GateAction::kIgnore);
  EXPECT_EQ(pair.active.OnLanesFailed(99, absl::UnavailableError("x")), GateAction::kIgnore);
  EXPECT_EQ(pair.active.state(), GateState::kActiveBringup);
  EXPECT_EQ(pair.active.Close(absl::CancelledError("reset")), GateAction::kClose);
  EXPECT_EQ(Only<ControlClose>(pair.active).text, "reset");
  // The reset came first; what finishes now finds the gate shut (I7).
  EXPECT_EQ(pair.active.OnLanesUp(0, 1), GateAction::kIgnore);
  EXPECT_EQ(pair.active.Close(absl::CancelledError("again")), GateAction::kIgnore);
  EXPECT_EQ(pair.active.OnTime(ReadyGate::kNever - 1), GateAction::kNone);
  EXPECT_EQ(pair.active.state(), GateState::kClosed);
  EXPECT_EQ(pair.active.status().message(), "reset");
  EXPECT_EQ(pair.active.counts().late, 4u);
  EXPECT_EQ(pair.active.TakeOutgoing(), "");
}

// An ACCEPT that answers an earlier attempt must not bring up the lanes of this one.
TEST(ReadyGateTest, AnAcceptOfAnEarlierAttemptIsLate) {
  Pair earlier;
  earlier.SayHello();
  earlier.passive.OnLanesUp(0, 2, OfferOf(1));
  const std::string accept = earlier.OneFrameOf(earlier.passive);
  Pair pair(GateOptionsFor(GateRole::kActive, 1), GateOptionsFor(GateRole::kPassive, 1));
  pair.active.Connect(OfferOf(1));
  EXPECT_EQ(GiveFrame(pair.active, 0, accept), GateAction::kIgnore);
  EXPECT_EQ(pair.active.state(), GateState::kHelloSent);
  EXPECT_EQ(pair.active.counts().late, 1u);
}

TEST(ReadyGateTest, WhatThePeerSendsOutOfTurnEndsTheAttempt) {
  Pair reference;
  const std::string ready = reference.SayReady();
  Pair pair;
  pair.active.Connect(OfferOf(1));
  const std::string hello = pair.OneFrameOf(pair.active);
  GiveFrame(pair.passive, 0, hello);
  pair.passive.OnLanesUp(0, 2, OfferOf(1));
  const std::string accept = pair.OneFrameOf(pair.passive);

  const auto end = [&](GateRole role, std::vector<std::string> frames) {
    Pair fresh;
    ReadyGate& gate = role == GateRole::kActive ? fresh.active : fresh.passive;
    if (role == GateRole::kActive) gate.Connect(OfferOf(1));
    GateAction last = GateAction::kNone;
    for (const std::string& frame : frames) last = GiveFrame(gate, 0, frame);
    EXPECT_EQ(last, GateAction::kViolation);
    EXPECT_EQ(gate.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(gate.status().message()).substr(20);
  };
  EXPECT_EQ(end(GateRole::kPassive, {ready}), "READY before ACCEPT");
  EXPECT_EQ(end(GateRole::kPassive, {hello, ready}), "READY before ACCEPT");
  EXPECT_EQ(end(GateRole::kPassive, {hello, hello}), "a second HELLO");
  EXPECT_EQ(end(GateRole::kPassive, {accept}), "ACCEPT from the active side");
  EXPECT_EQ(end(GateRole::kActive, {hello}), "HELLO from the passive side");
  EXPECT_EQ(end(GateRole::kActive, {ready}), "READY from the passive side");
  EXPECT_EQ(end(GateRole::kActive, {accept, accept}), "ACCEPT out of turn");
  const std::string reject = EncodeControl(ControlReject{});
  EXPECT_EQ(end(GateRole::kPassive, {reject}), "REJECT from the active side");
  EXPECT_EQ(end(GateRole::kActive, {accept, reject}), "REJECT out of turn");
}

TEST(ReadyGateTest, AnAcceptMayNotExceedTheOffer) {
  const auto outcome = [](auto change) {
    Pair pair;
    pair.SayHello(2);
    pair.passive.OnLanesUp(0, 2, OfferOf(2));
    auto accept = std::get<ControlAccept>(ControlOf(pair.OneFrameOf(pair.passive)));
    change(accept);
    return GiveFrame(pair.active, 0, EncodeControl(accept));
  };
  EXPECT_EQ(outcome([](ControlAccept&) {}), GateAction::kBringUp);
  EXPECT_EQ(outcome([](ControlAccept& a) { a.lanes.resize(1); }), GateAction::kBringUp);
  EXPECT_EQ(outcome([](ControlAccept& a) { a.lanes.push_back(a.lanes[0]); }),
            GateAction::kViolation);
  EXPECT_EQ(outcome([](ControlAccept& a) { a.features |= kFeatureOneSided; }),
            GateAction::kViolation);
  EXPECT_EQ(outcome([](ControlAccept& a) { a.version = 2; }), GateAction::kViolation);
  EXPECT_EQ(outcome([](ControlAccept& a) { a.features = 0; }), GateAction::kClose)
      << "READY is required";
}

TEST(ReadyGateTest, DeadlinesNeedNoTraffic) {
  // Nothing comes: the passive side, which has no HELLO, and the active one, which has no ACCEPT.
  Pair pair;
  pair.active.Connect(OfferOf(1));
  pair.active.TakeOutgoing();
  for (ReadyGate* gate : {&pair.active, &pair.passive}) {
    EXPECT_EQ(gate->deadline_ns(), 5 * kSecond);
    EXPECT_EQ(gate->OnTime(5 * kSecond - 1), GateAction::kNone);
    EXPECT_EQ(gate->OnTime(5 * kSecond), GateAction::kClose);
    EXPECT_TRUE(absl::IsDeadlineExceeded(gate->status()));
    EXPECT_EQ(gate->deadline_ns(), ReadyGate::kNever);
  }
  EXPECT_EQ(pair.active.status().message(), "open RDMA endpoint: no ACCEPT within 5s");
  EXPECT_EQ(pair.passive.status().message(), "open RDMA endpoint: no HELLO within 5s");
  EXPECT_EQ(Only<ControlClose>(pair.active).code, CloseCode::kDeadline);
  EXPECT_EQ(Only<ControlReject>(pair.passive).attempt, 0u);

  // READY is lost.
  Pair lost;
  lost.SayHello();
  lost.passive.OnLanesUp(kSecond, 2, OfferOf(1));
  EXPECT_EQ(lost.passive.deadline_ns(), 4 * kSecond);
  lost.passive.TakeOutgoing();
  EXPECT_EQ(lost.passive.OnTime(4 * kSecond), GateAction::kClose);
  EXPECT_EQ(lost.passive.status().message(), "open RDMA endpoint: no READY within 3s");

  // So late that the first deadline passes before the one for READY.
  Pair late;
  late.SayHello();
  late.passive.OnLanesUp(4 * kSecond, 2, OfferOf(1));
  EXPECT_EQ(late.passive.deadline_ns(), 5 * kSecond);
  late.passive.TakeOutgoing();
  EXPECT_EQ(late.passive.OnTime(5 * kSecond), GateAction::kClose);
  EXPECT_EQ(late.passive.status().message(), "open RDMA endpoint: no READY within 5s");

  // Open: there is nothing to wait for.
  Pair open;
  GiveFrame(open.passive, 0, open.SayReady());
  EXPECT_EQ(open.active.deadline_ns(), ReadyGate::kNever);
  EXPECT_EQ(open.passive.deadline_ns(), ReadyGate::kNever);
}

TEST(ReadyGateTest, ThePassiveSideKeepsTheDeadlineOfThePeerIfThatIsEarlier) {
  GateOptions options = GateOptionsFor(GateRole::kActive);
  options.handshake_deadline = absl::Seconds(1);
  Pair pair(options);
  pair.active.Connect(OfferOf(1));
  GiveFrame(pair.passive, kSecond / 2, pair.OneFrameOf(pair.active));
  EXPECT_EQ(pair.passive.deadline_ns(), kSecond + kSecond / 2);
  pair.passive.OnTime(kSecond + kSecond / 2);
  // The active side may try again.
  const ControlReject reject = Only<ControlReject>(pair.passive);
  EXPECT_EQ(reject.attempt, 1u);
  EXPECT_EQ(pair.active.OnReject(reject), GateAction::kClose);
  EXPECT_TRUE(absl::IsUnavailable(pair.active.status())) << pair.active.status();
  options.handshake_deadline = absl::InfiniteDuration();
  Pair patient(options);
  EXPECT_EQ(patient.active.deadline_ns(), ReadyGate::kNever);
  patient.active.Connect(OfferOf(1));
  GiveFrame(patient.passive, 0, patient.OneFrameOf(patient.active));
  EXPECT_EQ(patient.passive.deadline_ns(), 5 * kSecond);
}

TEST(ReadyGateTest, PeersWithoutReadyMeetThePolicy) {
  const auto after_lanes = [](RdmaReadyPolicy policy, bool active_is_old) {
    GateOptions active = GateOptionsFor(GateRole::kActive);
    GateOptions passive = GateOptionsFor(GateRole::kPassive);
    (active_is_old ? active : passive).features = 0;
    (active_is_old ? active : passive).policy = RdmaReadyPolicy::kOpenAtOnce;
    (active_is_old ? passive : active).policy = policy;
    Pair pair(active, passive);
    pair.active.Connect(OfferOf(1));
    GiveFrame(pair.passive, 0, pair.OneFrameOf(pair.active));
    if (pair.passive.state() == GateState::kPassiveBringup) {
      pair.passive.OnLanesUp(0, 2, OfferOf(1));
      GiveFrame(pair.active, 0, pair.OneFrameOf(pair.passive));
      pair.active.OnLanesUp(0, 1);
    }
    return pair;
  };
  // Our passive side, an old active one.
  Pair pair = after_lanes(RdmaReadyPolicy::kRequire, true);
  EXPECT_EQ(Only<ControlReject>(pair.passive).code, RejectCode::kFeature);
  EXPECT_TRUE(absl::IsFailedPrecondition(pair.passive.status()));
  pair = after_lanes(RdmaReadyPolicy::kOpenOnFirstData, true);
  EXPECT_EQ(pair.active.state(), GateState::kOpen);
  EXPECT_EQ(pair.active.TakeOutgoing(), "") << "no READY to a peer that knows none";
  EXPECT_EQ(pair.passive.state(), GateState::kWaitData);
  EXPECT_EQ(pair.passive.deadline_ns(), 3 * kSecond);
  EXPECT_EQ(pair.passive.OnData(pair.active.data_tag()), GateAction::kOpen);
  pair = after_lanes(RdmaReadyPolicy::kOpenOnFirstData, true);
  pair.passive.OnTime(3 * kSecond);
  EXPECT_EQ(pair.passive.status().message(), "open RDMA endpoint: no data within 3s");
  pair = after_lanes(RdmaReadyPolicy::kOpenAtOnce, true);
  EXPECT_EQ(pair.passive.state(), GateState::kOpen);
  // Our active side, an old passive one.
  pair = after_lanes(RdmaReadyPolicy::kRequire, false);
  EXPECT_EQ(pair.active.status().message(), "open RDMA endpoint: the peer takes no READY");
  pair = after_lanes(RdmaReadyPolicy::kOpenOnFirstData, false);
  EXPECT_EQ(pair.active.state(), GateState::kOpen);
}

// What an old peer may do, and what a new one then does with it.
TEST(ReadyGateTest, HoldsDataThatComesBeforeItsOwnLanesAreUp) {
  Pair pair;
  pair.SayAccept();
  EXPECT_EQ(pair.active.OnData(pair.active.data_tag()), GateAction::kHold);
  EXPECT_EQ(pair.active.counts().held, 1u);
  EXPECT_FALSE(pair.active.MayPost(1));
  EXPECT_EQ(pair.active.OnLanesUp(0, 1), GateAction::kSendReadyAndOpen);
}

TEST(ReadyGateTest, RefusesVersionsThatItDoesNotSpeak) {
  Pair pair;
  ControlHello hello = {.version_min = 2, .version_max = 3, .from = pair.active.self()};
  pair.passive.OnHello(0, hello, "");
  const auto reject = Only<ControlReject>(pair.passive);
  EXPECT_EQ(reject.code, RejectCode::kVersion);
  EXPECT_EQ(reject.text, "versions 2 to 3 are not spoken here");
  EXPECT_EQ(reject.attempt, 1u);
}

TEST(ReadyGateTest, ARejectSaysWhyAndWhenToTryAgain) {
  const auto outcome = [](RejectCode code, uint64_t attempt) {
    Pair pair;
    pair.active.Connect(OfferOf(1));
    pair.active.TakeOutgoing();
    pair.active.OnReject(
        {.code = code, .retry_after_ms = 250, .attempt = attempt, .text = "go away"});
    EXPECT_EQ(pair.active.TakeOutgoing(), "");
    return std::pair(pair.active.status(), pair.active.retry_after());
  };
  const auto [status, retry] = outcome(RejectCode::kBusy, 1);
  EXPECT_EQ(status, absl::UnavailableError("open RDMA endpoint: the peer refuses: go away"));
  EXPECT_EQ(retry, absl::Milliseconds(250));
  EXPECT_TRUE(absl::IsFailedPrecondition(outcome(RejectCode::kFeature, 0).first));
  EXPECT_TRUE(absl::IsFailedPrecondition(outcome(RejectCode{99}, 1).first));
  EXPECT_TRUE(absl::IsAborted(outcome(RejectCode::kSuperseded, 1).first));
  EXPECT_TRUE(outcome(RejectCode::kBusy, 7).first.ok()) << "of another attempt";
}

TEST(ReadyGateTest, ABusySideSaysWhenToComeAgain) {
  Pair pair;
  EXPECT_EQ(pair.passive.OnBusy(absl::Seconds(1)), GateAction::kIgnore) << "nobody has come";
  pair.SayHello();
  EXPECT_EQ(pair.passive.OnBusy(absl::Milliseconds(300)), GateAction::kClose);
  EXPECT_EQ(pair.passive.status(),
            absl::UnavailableError("open RDMA endpoint: too many endpoints are opening here"));
  EXPECT_EQ(GiveFrame(pair.active, 0, pair.OneFrameOf(pair.passive)), GateAction::kClose);
  EXPECT_TRUE(absl::IsUnavailable(pair.active.status()));
  EXPECT_EQ(pair.active.retry_after(), absl::Milliseconds(300));
}

TEST(ReadyGateTest, AnEndpointThatAnotherSupersedesIsNotTriedAgain) {
  Pair pair;
  EXPECT_EQ(pair.passive.OnSuperseded(), GateAction::kIgnore) << "nobody has come";
  pair.SayHello();
  EXPECT_EQ(pair.passive.OnSuperseded(), GateAction::kClose);
  const std::vector<std::string> frames = ControlFramesOf(pair.passive.TakeOutgoing());
  ASSERT_EQ(frames.size(), 1u);
  const ControlMessage reject = ControlOf(frames[0]);
  EXPECT_EQ(std::get<ControlReject>(reject).code, RejectCode::kSuperseded);
  EXPECT_EQ(GiveFrame(pair.active, 0, frames[0]), GateAction::kClose);
  EXPECT_TRUE(absl::IsAborted(pair.active.status())) << pair.active.status();
}

TEST(ReadyGateTest, LanesThatFailTellThePeer) {
  Pair pair;
  pair.SayHello();
  EXPECT_EQ(pair.passive.OnLanesFailed(2, absl::UnavailableError("lane 2")), GateAction::kClose);
  EXPECT_EQ(Only<ControlReject>(pair.passive).code, RejectCode::kLanes);
  EXPECT_EQ(pair.passive.status().message(), "lane 2");
  Pair later;
  later.SayAccept();
  EXPECT_EQ(later.active.OnLanesFailed(1, absl::UnavailableError("lane 2")), GateAction::kClose);
  EXPECT_EQ(Only<ControlClose>(later.active).code, CloseCode::kLanes);
  EXPECT_EQ(later.active.OnLanesUp(0, 1), GateAction::kIgnore);
}

TEST(ReadyGateTest, ACloseOfThePeerEndsItWithoutAnAnswer) {
  const auto outcome = [](CloseCode code) {
    Pair pair;
    pair.SayReady();
    EXPECT_EQ(pair.active.OnClose({.code = code, .text = "bye"}), GateAction::kClose);
    EXPECT_EQ(pair.active.TakeOutgoing(), "");
    EXPECT_EQ(pair.active.OnClose({.code = code, .text = "bye"}), GateAction::kIgnore);
    return pair.active.status();
  };
  EXPECT_TRUE(absl::IsOutOfRange(outcome(CloseCode::kNormal)));
  EXPECT_EQ(outcome(CloseCode::kLanes),
            absl::UnavailableError("open RDMA endpoint: the peer gives up: bye"));
}

TEST(ReadyGateTest, ErrorsNameThePeer) {
  GateOptions options = GateOptionsFor(GateRole::kPassive);
  options.peer = *SocketAddress::Parse("192.0.2.1:7");
  ReadyGate gate(options, 0);
  gate.OnTime(5 * kSecond);
  EXPECT_EQ(gate.status().message(), "open RDMA endpoint to 192.0.2.1:7: no HELLO within 5s");
}

TEST(ReadyGateTest, ConnectsOnceAndOnlyTheActiveSide) {
  Pair pair;
  EXPECT_EQ(pair.passive.Connect(OfferOf(1)), GateAction::kIgnore);
  EXPECT_EQ(pair.active.Connect(OfferOf(1)), GateAction::kSendHello);
  EXPECT_EQ(pair.active.Connect(OfferOf(1)), GateAction::kIgnore);
  EXPECT_EQ(ControlFramesOf(pair.active.TakeOutgoing()).size(), 1u);
}

// Without a device the same gate opens, over the control stream alone.
TEST(ReadyGateTest, OpensWithoutLanes) {
  GateOptions active = GateOptionsFor(GateRole::kActive);
  GateOptions passive = GateOptionsFor(GateRole::kPassive);
  active.features = passive.features = kFeatureReady | kFeatureFallback;
  Pair pair(active, passive);
  pair.active.Connect({});
  EXPECT_EQ(GiveFrame(pair.passive, 0, pair.OneFrameOf(pair.active)), GateAction::kBringUp);
  EXPECT_EQ(pair.passive.OnLanesUp(0, 2), GateAction::kSendAccept);
  EXPECT_EQ(GiveFrame(pair.active, 0, pair.OneFrameOf(pair.passive)), GateAction::kBringUp);
  EXPECT_TRUE(pair.active.peer_offer().lanes.empty());
  EXPECT_EQ(pair.active.OnLanesUp(0, 1), GateAction::kSendReadyAndOpen);
  EXPECT_EQ(GiveFrame(pair.passive, 0, pair.OneFrameOf(pair.active)), GateAction::kOpen);
}

}  // namespace
}  // namespace internal
PENSTOCK_END_NAMESPACE
