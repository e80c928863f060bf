// IdleGrant: when an endpoint gives receives back to the bank of its device, and takes them again.
//
// An endpoint by which nothing comes for a while asks its peer to have fewer messages on the way,
// and gives the rest of its receives back when the peer has said that it will. The peer needs no
// leave to send again: a few messages always may come, and with the first of them the endpoint
// takes its receives again, if the bank has them, and tells the peer.
//
// A plain value, sans-I/O: events go in, what is to be done comes out. One table, kIdleGrantSteps.
#ifndef PENSTOCK_RDMA_IDLE_GRANT_H_
#define PENSTOCK_RDMA_IDLE_GRANT_H_

#include <penstock/export.h>

#include <array>
#include <cstddef>
#include <cstdint>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

enum class GrantState : uint8_t {
  kWhole,
  kAsked,  // the peer has not answered yet
  kSmall,
};
inline constexpr size_t kGrantStates = 3;

enum class GrantEvent : uint8_t {
  kQuiet,    // nothing has come for a while
  kConsent,  // the peer has no more on the way than it was asked to
  kRefusal,  // it has
  kTraffic,  // something has come since
  kTaken,    // and the bank has had the receives
};
inline constexpr size_t kGrantEvents = 5;

enum class GrantAction : uint8_t {
  kNone,
  kAsk,
  kGiveBack,
  kTake,     // from the bank, if it has them: kTaken
  kTell,     // the peer, that it may have more on the way
  kViolate,  // an answer that nobody has asked for
};

struct GrantStep {
  GrantState next;
  GrantAction action;
};

inline constexpr std::array<std::array<GrantStep, kGrantEvents>, kGrantStates> kIdleGrantSteps = {{
    /* kWhole */ {{{GrantState::kAsked, GrantAction::kAsk},
                   {GrantState::kWhole, GrantAction::kViolate},
                   {GrantState::kWhole, GrantAction::kViolate},
                   {GrantState::kWhole, GrantAction::kNone},
                   {GrantState::kWhole, GrantAction::kNone}}},
    /* kAsked */
    {{{GrantState::kAsked, GrantAction::kNone},
      {GrantState::kSmall, GrantAction::kGiveBack},
      {GrantState::kWhole, GrantAction::kNone},
      // What it has agreed to it keeps to: more is granted after its answer only.
      {GrantState::kAsked, GrantAction::kNone},
      {GrantState::kAsked, GrantAction::kNone}}},
    /* kSmall */
    {{{GrantState::kSmall, GrantAction::kNone},
      {GrantState::kSmall, GrantAction::kViolate},
      {GrantState::kSmall, GrantAction::kViolate},
      {GrantState::kSmall, GrantAction::kTake},
      {GrantState::kWhole, GrantAction::kTell}}},
}};

class IdleGrant {
 public:
  GrantState state() const { return state_; }
  GrantAction On(GrantEvent event) {
    const GrantStep step = kIdleGrantSteps[static_cast<size_t>(state_)][static_cast<size_t>(event)];
    state_ = step.next;
    return step.action;
  }

 private:
  GrantState state_ = GrantState::kWhole;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_IDLE_GRANT_H_
