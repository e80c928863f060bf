#include "engine/switch_sweep.h"

#include <utility>

#include "engine/connection.h"
#include "engine/loop_core.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// Moves begun in one turn, some 200 us of it: those that begin together wait for one another.
constexpr int kSweepSlice = 64;

}  // namespace

// In the callback of a move: counts it as over when it has ended, or with the stream that went
// first.
class SwitchSweep::Ticket {
 public:
  explicit Ticket(std::shared_ptr<Tally> tally) : tally_(std::move(tally)) { ++tally_->under_way; }
  Ticket(Ticket&&) noexcept = default;
  Ticket& operator=(Ticket&&) = delete;
  ~Ticket() {
    if (tally_ == nullptr) return;
    --tally_->under_way;
    if (tally_->sweep != nullptr) tally_->sweep->FinishIfDone();
  }
  void Count(bool switched) { ++(switched ? tally_->count.switched : tally_->count.failed); }

 private:
  std::shared_ptr<Tally> tally_;
};

SwitchSweep::SwitchSweep(LoopCore& loop, EngineKind to, Connection* first, uint64_t streams,
                         Done done)
    : Deferred([](Deferred* node) { static_cast<SwitchSweep*>(node)->Run(); }),
      loop_(loop),
      to_(to),
      next_(first),
      all_(streams == kAll),
      left_(streams),
      tally_(std::make_shared<Tally>()),
      done_(std::move(done)) {
  tally_->sweep = this;
  loop_.Defer(*this);
}

void SwitchSweep::Stop() {
  Cancel();
  tally_->sweep = nullptr;
}

void SwitchSweep::Tell() {
  if (done_) std::move(done_)(tally_->count);
}

void SwitchSweep::OnUnlink(const Connection& connection) {
  if (next_ == &connection) next_ = connection.next();
}

void SwitchSweep::Run() {
  for (int i = 0; i < kSweepSlice && next_ != nullptr; ++i) {
    Connection& connection = *std::exchange(next_, next_->next());
    if (connection.state() != ConnectionState::kOpen || connection.pinned_engine() ||
        connection.engine()->kind() == to_ || connection.moving()) {
      continue;
    }
    if (left_-- == 0) {
      next_ = nullptr;
      break;
    }
    connection.Move(to_, nullptr, [ticket = Ticket(tally_)](absl::Status status) mutable {
      ticket.Count(status.ok());
    });
  }
  if (next_ != nullptr) return loop_.Defer(*this);
  FinishIfDone();
}

void SwitchSweep::FinishIfDone() {
  if (next_ != nullptr || tally_->under_way > 0) return;
  Stop();
  loop_.EndSweep(to_, all_);
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
