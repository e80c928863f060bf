#include "engine/move_sweep.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/connection.h"
#include "engine/loop_core.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// Moves under way, some 100 us of a turn that begins them all: those that are wait for one another.
// Of what is cancelled the kernel tells some 20 in a turn only (IO_LOCAL_TW_DEFAULT_MAX, Linux
// 6.13).
constexpr uint64_t kSweepSlice = 32;
// To another loop, which takes streams, sealed ones above all, more slowly than they can be sent to
// it: each waits until those before it have been taken in and served. Where that takes longer than
// the second, so that turns are what they wait for, there are twice as many the next time.
constexpr uint64_t kLeaveSlice = 8;
constexpr int64_t kSlowSliceNs = 1'000'000;
// Connections looked at in a turn, whether they move or not.
constexpr int kLooksMax = 256;
// Turns that a switch waits for those to end: the kernel may take its time over some.
constexpr int kTurnsWaited = 64;

}  // namespace

// What the moves report to. It may outlive the sweep, and moves to another loop end on that one's
// thread.
class MoveSweep::Tally : public std::enable_shared_from_this<Tally> {
 public:
  explicit Tally(MoveSweep& sweep)
      : sweep_(&sweep),
        core_(sweep.loop_),
        loop_(core_.handle()),
        sort_(sweep.sort_),
        moves_(sweep.left_),
        among_(std::max(core_.counters().open.value(), moves_)),
        share_(among_ - moves_) {}

  // Of a move of `connection` that begins: a callback for it. One that is destroyed unrun, for its
  // stream has gone, ends the move as well.
  Stream::DoneCallback Begin(const Connection& connection) {
    return [ticket = Ticket(*this, &ended_), &connection](const absl::Status& status) mutable {
      if (status.ok()) {
        ticket.Count(ticket.tally().moved_);
      } else if (connection.state() == ConnectionState::kOpen && !absl::IsCancelled(status)) {
        ticket.Count(ticket.tally().failed_);
      }
    };
  }
  // Of a listener's switch, the same.
  ListenerSwitched BeginListener() {
    return [ticket = Ticket(*this, nullptr)](const absl::Status& status) mutable {
      Tally& tally = ticket.tally();
      ticket.Count(status.ok() ? tally.listeners_moved_ : tally.listeners_failed_);
    };
  }
  // Of a move, and, once, of the sweep, which begins no more: the last one has the loop told.
  void End() {
    const uint64_t left = under_way_.fetch_sub(1, std::memory_order_seq_cst) - 1;
    if (left == 0) {
      loop_.Post([self = shared_from_this()] {
        if (self->leaves_loop()) self->core_.EndLeaving();
        if (self->sweep_ != nullptr) self->core_.EndSweep(*self->sweep_);
      });
    } else if (left - 1 <= Resume() && TakeWait()) {
      loop_.Post([self = shared_from_this()] {
        if (self->sweep_ != nullptr) self->core_.Defer(*self->sweep_);
      });
    }
  }
  void Forget() { sweep_ = nullptr; }
  // How many moves to begin in this turn.
  uint64_t Slice() {
    const uint64_t under_way = UnderWay();
    if (under_way < Most()) {
      turns_waited_ = 0;
      if (leaves_loop()) Pace();
      return Most() - std::min(Most(), under_way);  // which Pace may have made fewer
    }
    if (leaves_loop() || ++turns_waited_ < kTurnsWaited) return 0;
    turns_waited_ = 0;
    return Most();
  }
  // Whether the sweep is to wait, without a turn of its own, for one that ends to have it go on.
  // Each side writes its own word before it reads the other's, so that one of them sees the other.
  bool Waits() {
    if (!leaves_loop() || UnderWay() < Most()) return false;
    waits_.store(true, std::memory_order_seq_cst);
    return UnderWay() > Resume() || !TakeWait();
  }
  // Whether the next connection that may move is one of those that do. They are taken from all over
  // the list, the first one included: those that came last may be of one sort.
  bool Chooses() {
    if (moves_ == kAll) return true;
    share_ += moves_;
    if (share_ < among_) return false;
    share_ -= among_;
    return true;
  }
  MoveCount count() const {
    return {moved_.load(std::memory_order_relaxed), failed_.load(std::memory_order_relaxed),
            ended_.load(std::memory_order_relaxed),
            listeners_moved_.load(std::memory_order_relaxed),
            listeners_failed_.load(std::memory_order_relaxed)};
  }

 private:
  class Ticket {
   public:
    // `unrun`: what it counts as when nobody says otherwise; null: as nothing.
    Ticket(Tally& tally, std::atomic<uint64_t>* unrun)
        : tally_(tally.shared_from_this()), outcome_(unrun) {
      tally.under_way_.fetch_add(1, std::memory_order_relaxed);
    }
    Ticket(Ticket&&) noexcept = default;
    Ticket& operator=(Ticket&&) = delete;
    ~Ticket() {
      if (tally_ == nullptr) return;
      if (outcome_ != nullptr) outcome_->fetch_add(1, std::memory_order_relaxed);
      tally_->End();
    }
    Tally& tally() const { return *tally_; }
    void Count(std::atomic<uint64_t>& outcome) { outcome_ = &outcome; }

   private:
    std::shared_ptr<Tally> tally_;
    std::atomic<uint64_t>* outcome_;
  };

  bool leaves_loop() const { return sort_ == Sort::kMigrate; }
  // Moves that may be under way at once. Where one cannot go the others cannot either, as a rule:
  // of what a broken engine has left, one goes first.
  uint64_t Most() const {
    const bool tries = sort_ == Sort::kRescue && moved_.load(std::memory_order_relaxed) == 0;
    return tries ? 1 : leaves_loop() ? leave_most_.load(std::memory_order_relaxed) : kSweepSlice;
  }
  // One to another loop goes on when no more than these are still on their way.
  uint64_t Resume() const { return leave_most_.load(std::memory_order_relaxed) / 2; }
  // As the next of them are about to begin.
  void Pace() {
    const int64_t now = core_.sys().Now();
    const bool slow = std::exchange(paced_at_ns_, now) < now - kSlowSliceNs;
    leave_most_.store(slow ? std::min(Most() * 2, kSweepSlice) : kLeaveSlice,
                      std::memory_order_relaxed);
  }

  // Moves; the sweep itself counts as one more.
  uint64_t UnderWay() const { return under_way_.load(std::memory_order_seq_cst) - 1; }
  bool TakeWait() {
    return waits_.load(std::memory_order_seq_cst) &&
           waits_.exchange(false, std::memory_order_seq_cst);
  }

  MoveSweep* sweep_;  // of the loop's thread alone; null: nobody waits any more
  LoopCore& core_;    // for tasks of loop_
  const LoopHandle loop_;
  const Sort sort_;
  // So many moves of so many connections; and what those passed by have left over.
  const uint64_t moves_;
  const uint64_t among_;
  uint64_t share_;
  int turns_waited_ = 0;
  int64_t paced_at_ns_ = std::numeric_limits<int64_t>::max();  // the first batch is like no other
  // Written by the loop that is left; a stale one has it go on somewhat later.
  std::atomic<uint64_t> leave_most_{kLeaveSlice};
  std::atomic<uint64_t> under_way_{1};
  std::atomic<bool> waits_{false};
  std::atomic<uint64_t> moved_{0};
  std::atomic<uint64_t> failed_{0};
  std::atomic<uint64_t> ended_{0};
  std::atomic<uint64_t> listeners_moved_{0};
  std::atomic<uint64_t> listeners_failed_{0};
};

MoveSweep::MoveSweep(LoopCore& loop, Sort sort, EngineKind to, std::optional<LoopHandle> target,
                     Connection* first, uint64_t streams, Done done)
    : Deferred([](Deferred* node) { static_cast<MoveSweep*>(node)->Run(); }),
      loop_(loop),
      sort_(sort),
      to_(to),
      target_(std::move(target)),
      next_(first),
      all_(streams == kAll),
      left_(streams),
      tally_(std::make_shared<Tally>(*this)),
      done_(std::move(done)) {
  loop_.Defer(*this);
}

MoveSweep::MoveSweep(LoopCore& loop, EngineKind to, Connection* first, uint64_t streams, Done done)
    : MoveSweep(loop, Sort::kSwitch, to, std::nullopt, first, streams, std::move(done)) {}

MoveSweep::MoveSweep(LoopCore& loop, EngineKind to, const LoopHandle& target, Connection* first,
                     Done done)
    : MoveSweep(loop, Sort::kMigrate, to, target, first, kAll, std::move(done)) {}

MoveSweep::MoveSweep(LoopCore& loop, EngineKind to, Connection* first)
    : MoveSweep(loop, Sort::kRescue, to, std::nullopt, first, kAll, nullptr) {}

void MoveSweep::Stop() {
  Cancel();
  tally_->Forget();
  BeginNoMore();
}

void MoveSweep::BeginNoMore() {
  if (!std::exchange(begun_all_, true)) tally_->End();
}

void MoveSweep::Tell() {
  if (done_) std::move(done_)(tally_->count());
}

void MoveSweep::OnUnlink(const Connection& connection) {
  if (next_ == &connection) next_ = connection.next();
}

void MoveSweep::SwitchListeners(const std::vector<LoopObserver*>& listeners) {
  const std::shared_ptr<Tally> tally = tally_;
  const EngineKind to = to_;
  for (LoopObserver* listener : listeners) {
    listener->OnSwitchAll(to, [&] { return tally->BeginListener(); });
  }
}

bool MoveSweep::Concerns(const Connection& connection) const {
  switch (sort_) {
    case Sort::kSwitch:
      return connection.MayBeSwitched(to_);
    case Sort::kRescue:
      return connection.MustLeaveBroken();
    case Sort::kMigrate:
      return connection.MayBeMigrated();
  }
  return false;
}

void MoveSweep::Visit(Connection& connection) {
  const bool leaves = sort_ == Sort::kMigrate;
  const bool any = leaves && to_ == EngineKind::kAuto;
  connection.Move(any ? connection.EngineElsewhere() : to_, leaves ? &*target_ : nullptr,
                  tally_->Begin(connection));
}

void MoveSweep::Run() {
  uint64_t slice = tally_->Slice();
  // One has to wait for the engine that is to take it: so would the others.
  if (sort_ == Sort::kRescue && tally_->count().failed > 0 && loop_.leaves_broken_later()) {
    next_ = nullptr;
  }
  for (int i = 0; i < kLooksMax && slice > 0 && next_ != nullptr; ++i) {
    Connection& connection = *std::exchange(next_, next_->next());
    if (switches_all()) connection.SwitchWhenOpen();
    if (!Concerns(connection) || !tally_->Chooses()) continue;
    if (left_-- == 0) {
      next_ = nullptr;
      break;
    }
    --slice;
    Visit(connection);
  }
  if (next_ == nullptr) return BeginNoMore();
  if (!tally_->Waits()) loop_.Defer(*this);
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
