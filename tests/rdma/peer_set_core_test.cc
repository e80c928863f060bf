// PeerCore: the table of a peer, and what a HELLO is taken for.
#include "rdma/peer_set_core.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include <gtest/gtest.h>

#include "rdma/backoff.h"
#include "testing/gate_kit.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// Rows are states, columns events, in the order of their enumerations; a cell is the next state and
// the action. Written down from the design, not from the code.
constexpr const char* kPeerTable[kPeerStates] = {
    // want unwant time stream opened ended for-good smaller larger restarted again late alive gone
    "Cc Is Ii Ii Ii Ii Ii Aa Aa Ir Ir Ir Ii Ii",  // I idle
    "P- Is Cc Pi Pi Pi Pi Aa Aa Pr Pr Pr Pi Pi",  // P pausing
    "C- Is Pp Ll Ci Pp I- Aa Aa Cr Cr Cr Ci Ci",  // C connecting
    "L- Is Li Li Ot Pp I- Aa Lr Lr Lr Lr Li Li",  // L calling
    "A- Is Ai Ai Ot Pp I- Ar Ar Aa Aa Ar Ai Ai",  // A answering
    "O- Is Og Oi Oi Pp I- Or Or Aa Bq Or OR Oi",  // O open
    "B- Is Ah Bi Bi Ah Ah Br Br Aa Bo Br OR O-",  // B probing
};
constexpr std::string_view kPeerStateLetters = "IPCLAOB";
constexpr std::string_view kPeerActionLetters = "-iclpsahqorRtg";

TEST(PeerCoreTest, TheTableIsTheDesign) {
  for (size_t state = 0; state < kPeerStates; ++state) {
    std::string row;
    for (const PeerTransition& cell : kPeerTransitions[state]) {
      if (!row.empty()) row += ' ';
      row += kPeerStateLetters[static_cast<size_t>(cell.next)];
      row += kPeerActionLetters[static_cast<size_t>(cell.action)];
    }
    EXPECT_EQ(row, kPeerTable[state]) << state;
  }
}

constexpr uint8_t kPeerSelf = 0x50;

AttemptId PeerFrom(uint8_t incarnation, uint64_t attempt) {
  return {.incarnation = RepeatedByte(incarnation), .endpoint = attempt, .attempt = attempt};
}

class PeerCoreHelloTest : public ::testing::Test {
 protected:
  // Open with `peer`, by this side's own call.
  void OpenByCall(const AttemptId& peer) {
    EXPECT_EQ(core_.Want(), PeerAction::kConnect);
    EXPECT_EQ(core_.OnStream(), PeerAction::kCall);
    EXPECT_EQ(core_.OnOpened(peer), PeerAction::kTell);
  }
  void OpenByAnswer(const AttemptId& peer) {
    EXPECT_EQ(core_.OnHello(peer), PeerAction::kAnswer);
    EXPECT_EQ(core_.OnOpened(peer), PeerAction::kTell);
  }

  PeerCore core_{RepeatedByte(kPeerSelf)};
};

TEST_F(PeerCoreHelloTest, WhoHasSaidNothingAnswersAnybody) {
  for (const uint8_t peer : {0x10, 0x90}) {
    PeerCore idle(RepeatedByte(kPeerSelf));
    EXPECT_EQ(idle.OnHello(PeerFrom(peer, 1)), PeerAction::kAnswer);
    PeerCore connecting(RepeatedByte(kPeerSelf));
    connecting.Want();
    EXPECT_EQ(connecting.OnHello(PeerFrom(peer, 1)), PeerAction::kAnswer);
    EXPECT_EQ(connecting.OnStream(), PeerAction::kIgnore) << "the stream is of no use any more";
  }
}

TEST_F(PeerCoreHelloTest, OfTwoThatCallTheSmallerIncarnationIsAnswered) {
  core_.Want();
  core_.OnStream();
  EXPECT_EQ(core_.OnHello(PeerFrom(0x90, 1)), PeerAction::kRefuse);
  EXPECT_EQ(core_.state(), PeerState::kCalling);
  EXPECT_EQ(core_.OnHello(PeerFrom(0x10, 1)), PeerAction::kAnswer);
  EXPECT_EQ(core_.state(), PeerState::kAnswering);
}

TEST_F(PeerCoreHelloTest, ANewIncarnationReplacesAtOnce) {
  OpenByAnswer(PeerFrom(0x10, 7));
  EXPECT_EQ(core_.OnHello(PeerFrom(0x20, 1)), PeerAction::kAnswer);
  EXPECT_EQ(core_.restarts(), 1u);
  EXPECT_EQ(core_.OnHello(PeerFrom(0x30, 1)), PeerAction::kAnswer) << "before it has opened, too";
  EXPECT_EQ(core_.restarts(), 2u);
}

TEST_F(PeerCoreHelloTest, WhatAPeerSaidBeforeItsRestartIsLate) {
  OpenByCall(PeerFrom(0x10, 7));
  EXPECT_EQ(core_.OnHello(PeerFrom(0x20, 1)), PeerAction::kAnswer);
  EXPECT_EQ(core_.OnHello(PeerFrom(0x10, 9)), PeerAction::kRefuse);
  EXPECT_EQ(core_.OnOpened(PeerFrom(0x20, 1)), PeerAction::kTell);
  EXPECT_EQ(core_.OnHello(PeerFrom(0x10, 10)), PeerAction::kRefuse);
  EXPECT_EQ(core_.state(), PeerState::kOpen);
  EXPECT_EQ(core_.restarts(), 1u);
}

// Its first word came last, so that it was taken for the older one.
TEST_F(PeerCoreHelloTest, APeerTakenForPastByMistakeIsAnsweredWhenTheOtherHasEnded) {
  OpenByAnswer(PeerFrom(0x20, 1));
  EXPECT_EQ(core_.OnHello(PeerFrom(0x10, 9)), PeerAction::kAnswer) << "in truth a late one";
  EXPECT_EQ(core_.OnHello(PeerFrom(0x20, 2)), PeerAction::kRefuse);
  EXPECT_EQ(core_.OnEnded(true), PeerAction::kNone);
  EXPECT_EQ(core_.OnHello(PeerFrom(0x20, 3)), PeerAction::kAnswer);
  EXPECT_EQ(core_.OnOpened(PeerFrom(0x20, 3)), PeerAction::kTell);
  EXPECT_EQ(core_.OnHello(PeerFrom(0x20, 4)), PeerAction::kProbe) << "it is not past any more";
}

TEST_F(PeerCoreHelloTest, TheSameIncarnationIsProbedFirst) {
  OpenByAnswer(PeerFrom(0x10, 7));
  EXPECT_EQ(core_.OnHello(PeerFrom(0x10, 6)), PeerAction::kRefuse) << "given up before attempt 7";
  EXPECT_EQ(core_.OnHello(PeerFrom(0x10, 8)), PeerAction::kProbe);
  EXPECT_EQ(core_.OnHello(PeerFrom(0x10, 8)), PeerAction::kRefuse);
  EXPECT_EQ(core_.OnHello(PeerFrom(0x10, 9)), PeerAction::kHold);
  EXPECT_EQ(core_.OnAlive(), PeerAction::kRefuseHeld);
  EXPECT_EQ(core_.state(), PeerState::kOpen);
  EXPECT_EQ(core_.OnHello(PeerFrom(0x10, 10)), PeerAction::kProbe);
  EXPECT_EQ(core_.OnTime(), PeerAction::kAnswerHeld);
  EXPECT_EQ(core_.OnOpened(PeerFrom(0x10, 10)), PeerAction::kTell);
  EXPECT_EQ(core_.OnHello(PeerFrom(0x10, 11)), PeerAction::kProbe);
  EXPECT_EQ(core_.OnEnded(true), PeerAction::kAnswerHeld);
}

TEST_F(PeerCoreHelloTest, AttemptsOfWhatIsRefusedLockNobodyOut) {
  core_.Want();
  core_.OnStream();
  EXPECT_EQ(core_.OnHello(PeerFrom(0x90, UINT64_MAX)), PeerAction::kRefuse);
  EXPECT_EQ(core_.OnOpened(PeerFrom(0x90, 5)), PeerAction::kTell);
  EXPECT_EQ(core_.OnHello(PeerFrom(0x90, UINT64_MAX)), PeerAction::kProbe);
  EXPECT_EQ(core_.OnHello(PeerFrom(0x90, 6)), PeerAction::kRefuse) << "while that is held";
  EXPECT_EQ(core_.OnAlive(), PeerAction::kRefuseHeld);
  EXPECT_EQ(core_.OnHello(PeerFrom(0x90, 7)), PeerAction::kProbe);
  EXPECT_EQ(core_.OnHeldGone(), PeerAction::kNone);
  EXPECT_EQ(core_.OnEnded(true), PeerAction::kPause);
  EXPECT_EQ(core_.OnHello(PeerFrom(0x90, UINT64_MAX)), PeerAction::kAnswer);
  EXPECT_EQ(core_.OnEnded(true), PeerAction::kPause);
  EXPECT_EQ(core_.OnHello(PeerFrom(0x90, 8)), PeerAction::kAnswer);
}

TEST_F(PeerCoreHelloTest, ARestartEndsAProbe) {
  OpenByAnswer(PeerFrom(0x10, 7));
  EXPECT_EQ(core_.OnHello(PeerFrom(0x10, 8)), PeerAction::kProbe);
  EXPECT_EQ(core_.OnHello(PeerFrom(0x20, 1)), PeerAction::kAnswer);
  EXPECT_EQ(core_.OnAlive(), PeerAction::kIgnore);
  EXPECT_EQ(core_.OnHeldGone(), PeerAction::kIgnore);
}

TEST_F(PeerCoreHelloTest, WhatIsAskedForIsDialledAgainAndAgain) {
  OpenByCall(PeerFrom(0x10, 7));
  EXPECT_EQ(core_.OnEnded(true), PeerAction::kPause);
  EXPECT_EQ(core_.OnTime(), PeerAction::kConnect);
  EXPECT_EQ(core_.OnTime(), PeerAction::kPause) << "no stream came";
  EXPECT_EQ(core_.OnTime(), PeerAction::kConnect);
  EXPECT_EQ(core_.OnEnded(false), PeerAction::kNone) << "waiting does not help";
  EXPECT_FALSE(core_.wanted());
  EXPECT_EQ(core_.state(), PeerState::kIdle);
}

TEST_F(PeerCoreHelloTest, HowAnAnsweredOneEndsSaysNothingAboutCalls) {
  core_.Want();
  EXPECT_EQ(core_.OnHello(PeerFrom(0x90, 1)), PeerAction::kAnswer);
  EXPECT_EQ(core_.OnEnded(false), PeerAction::kPause);
  EXPECT_TRUE(core_.wanted());
  EXPECT_EQ(core_.OnTime(), PeerAction::kConnect);
  EXPECT_EQ(core_.OnStream(), PeerAction::kCall);
  EXPECT_EQ(core_.OnOpened(PeerFrom(0x10, 1)), PeerAction::kTell);
  EXPECT_EQ(core_.OnEnded(false), PeerAction::kPause) << "it has been open";
  EXPECT_TRUE(core_.wanted());
}

TEST_F(PeerCoreHelloTest, AProbeGoesOnWhenWhatIsHeldHasGone) {
  OpenByAnswer(PeerFrom(0x10, 7));
  EXPECT_EQ(core_.OnHello(PeerFrom(0x10, 8)), PeerAction::kProbe);
  EXPECT_EQ(core_.OnHeldGone(), PeerAction::kNone);
  EXPECT_EQ(core_.OnTime(), PeerAction::kGiveUp);
  EXPECT_EQ(core_.OnEnded(true), PeerAction::kNone);
}

TEST_F(PeerCoreHelloTest, WhoWasAnsweredAloneIsNotDialled) {
  OpenByAnswer(PeerFrom(0x10, 7));
  EXPECT_EQ(core_.OnEnded(true), PeerAction::kNone);
  EXPECT_EQ(core_.OnHello(PeerFrom(0x10, 8)), PeerAction::kAnswer);
  EXPECT_EQ(core_.Want(), PeerAction::kNone) << "one is on its way";
  EXPECT_EQ(core_.OnEnded(true), PeerAction::kPause);
  EXPECT_EQ(core_.Unwant(), PeerAction::kStop);
  EXPECT_EQ(core_.state(), PeerState::kIdle);
}

TEST(BackoffTest, DoublesUpToItsLimitAndBeginsAnew) {
  Backoff backoff(absl::Milliseconds(100), absl::Milliseconds(350));
  for (const int ms : {100, 200, 350, 350}) {
    EXPECT_EQ(backoff.Next(255), absl::Milliseconds(ms));
  }
  EXPECT_EQ(backoff.Next(0), absl::Milliseconds(175)) << "half of it at least";
  backoff.Reset();
  EXPECT_EQ(backoff.Next(255), absl::Milliseconds(100));
}

}  // namespace
}  // namespace internal
PENSTOCK_END_NAMESPACE
