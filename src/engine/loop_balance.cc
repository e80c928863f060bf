#include "engine/loop_balance.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "engine/connection.h"
#include "engine/slot_table.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// Ticks for which a loop that does not answer is taken for busy, and for which moves are waited
// for. One that is later may not be run at all: nobody shall wait for it.
constexpr int kLateTicks = 8;
// Moves of a decision that are under way at once: as in a sweep (move_sweep.cc) those that are wait
// for each other. It goes on when no more than the second are.
constexpr uint64_t kMovesMax = 8;
constexpr uint64_t kMovesResume = kMovesMax / 2;

uint64_t BytesOf(const LoopCounters& counters) {
  return counters.bytes_in.value() + counters.bytes_out.value();
}

}  // namespace

struct LoopBalance::Traffic {
  struct Stream {
    Token token;
    uint64_t bytes;  // at first all it had carried, then what it has carried since
  };
  uint64_t bytes = 0;  // of the loop
  std::vector<Stream> streams;

  void Begin(LoopCore& loop, size_t looked_at_max);
  // Those that are to go, which carry at most `part` of what the loop does.
  std::vector<Stream> Choose(LoopCore& loop, double part, size_t streams_max);

  // Null when it has gone, or may not.
  static Connection* Find(LoopCore& loop, Token token);
};

struct LoopBalance::Order {
  // Any thread. True for the first, and for nobody else.
  bool Take() { return !taken_.exchange(true, std::memory_order_acq_rel); }
  // Any thread. What has not begun by then does not.
  void Halt() { halted_.store(true, std::memory_order_relaxed); }
  bool halted() const { return halted_.load(std::memory_order_relaxed); }

  bool taken_back = false;  // by the balancer: its thread

 private:
  std::atomic<bool> taken_{false};
  std::atomic<bool> halted_{false};
};

// Its moves end on any thread.
struct LoopBalance::Batch : public std::enable_shared_from_this<Batch> {
 public:
  Batch(LoopHandle home, std::weak_ptr<LoopBalance> balance, std::shared_ptr<Order> order,
        LoopHandle from, LoopHandle to)
      : home_(std::move(home)),
        balance_(std::move(balance)),
        order_(std::move(order)),
        from_(std::move(from)),
        to_(std::move(to)) {}
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;
  ~Batch() {
    MoveCount count;
    count.moved = moved_.load(std::memory_order_relaxed);
    count.failed = refused_.load(std::memory_order_relaxed);
    count.ended = begun_ - count.moved - count.failed;
    const double part = static_cast<double>(bytes_.load(std::memory_order_relaxed)) / all_;
    home_.Post([balance = std::move(balance_), order = std::move(order_), count, part] {
      if (const auto self = balance.lock()) self->OnEnded(order, count, part);
    });
  }
  // By the task of the loop that the streams leave.
  void Run(LoopCore& loop, Traffic& traffic, double part, size_t streams_max) {
    if (!order_->Take()) return;
    const uint64_t before = traffic.bytes;
    chosen_ = traffic.Choose(loop, part, streams_max);
    all_ = static_cast<double>(std::max<uint64_t>(BytesOf(loop.counters()) - before, 1));
    BeginSome(loop);
  }

 private:
  // Of one move, also of one whose callback is destroyed unrun.
  class Ticket {
   public:
    explicit Ticket(std::shared_ptr<Batch> batch) : batch_(std::move(batch)) {}
    Ticket(Ticket&&) noexcept = default;
    Ticket& operator=(Ticket&&) = delete;
    ~Ticket() {
      if (batch_ != nullptr) batch_->OneEnded();
    }
    Batch& batch() const { return *batch_; }

   private:
    std::shared_ptr<Batch> batch_;
  };

  void BeginSome(LoopCore& loop) {
    if (order_->halted()) next_ = chosen_.size();
    while (next_ < chosen_.size() && under_way_.load(std::memory_order_relaxed) < kMovesMax) {
      const Traffic::Stream stream = chosen_[next_++];
      Connection* const connection = Traffic::Find(loop, stream.token);
      if (connection == nullptr) continue;
      ++begun_;
      under_way_.fetch_add(1, std::memory_order_relaxed);
      connection->Move(
          connection->EngineElsewhere(), &to_,
          [ticket = Ticket(shared_from_this()), connection, bytes = stream.bytes](
              const absl::Status& status) { ticket.batch().Count(*connection, bytes, status); });
    }
  }
  void Count(const Connection& connection, uint64_t bytes, const absl::Status& status) {
    if (status.ok()) {
      moved_.fetch_add(1, std::memory_order_relaxed);
      bytes_.fetch_add(bytes, std::memory_order_relaxed);
    } else if (connection.state() == ConnectionState::kOpen && !absl::IsCancelled(status)) {
      refused_.fetch_add(1, std::memory_order_relaxed);
    }
  }
  // Each time that BeginSome has filled up the count comes down past kMovesResume once.
  void OneEnded() {
    if (under_way_.fetch_sub(1, std::memory_order_relaxed) - 1 != kMovesResume) return;
    from_.Post([core = LoopCore::Of(from_), self = shared_from_this()] { self->BeginSome(*core); });
  }

  const LoopHandle home_;
  std::weak_ptr<LoopBalance> balance_;
  std::shared_ptr<Order> order_;
  // Of the loop that the streams leave, in its tasks: those that go, and what it carried meanwhile.
  const LoopHandle from_;
  const LoopHandle to_;
  std::vector<Traffic::Stream> chosen_;
  size_t next_ = 0;
  uint64_t begun_ = 0;
  double all_ = 1;
  std::atomic<uint64_t> under_way_{0};
  std::atomic<uint64_t> moved_{0};
  std::atomic<uint64_t> refused_{0};
  std::atomic<uint64_t> bytes_{0};
};

void LoopBalance::Traffic::Begin(LoopCore& loop, size_t looked_at_max) {
  bytes = BytesOf(loop.counters());
  const Connection* c = loop.connections();
  for (size_t i = 0; i < looked_at_max && c != nullptr; ++i, c = c->next()) {
    if (c->MayBeMigrated()) streams.push_back({loop.slots().TokenOf(c->slot()), c->bytes()});
  }
}

Connection* LoopBalance::Traffic::Find(LoopCore& loop, Token token) {
  const Slot* const slot = loop.slots().Find(token);
  if (slot == nullptr || slot->kind() != SlotKind::kConnection) return nullptr;
  auto* const connection = static_cast<Connection*>(slot->object);
  return connection != nullptr && connection->MayBeMigrated() ? connection : nullptr;
}

std::vector<LoopBalance::Traffic::Stream> LoopBalance::Traffic::Choose(LoopCore& loop, double part,
                                                                       size_t streams_max) {
  for (Stream& stream : streams) {
    const Connection* const connection = Find(loop, stream.token);
    stream.bytes = connection == nullptr ? 0 : connection->bytes() - stream.bytes;
  }
  std::sort(streams.begin(), streams.end(),
            [](const Stream& a, const Stream& b) { return a.bytes > b.bytes; });
  std::vector<Stream> chosen;
  double left = static_cast<double>(BytesOf(loop.counters()) - bytes) * part;
  for (const Stream& stream : streams) {
    if (stream.bytes == 0 || chosen.size() == streams_max) break;
    const auto carried = static_cast<double>(stream.bytes);
    if (carried > left) continue;
    left -= carried;
    chosen.push_back(stream);
  }
  return chosen;
}

LoopBalance::~LoopBalance() { TakeBack(); }

LoopBalance::LoopBalance(LoopCore& home, std::vector<LoopHandle> loops,
                         const BalanceOptions& options)
    : home_(home),
      home_handle_(home.handle()),
      options_(options),
      controller_(options),
      timer_(home.timers()),
      ticked_at_ns_(home.sys().Now()) {
  for (LoopHandle& loop : loops) members_.emplace_back().loop = std::move(loop);
}

void LoopBalance::Arm() {
  for (size_t i = 0; i < members_.size(); ++i) Ask(i);
  timer_.Arm(TimerWheel::DeadlineTick(home_.sys().Now(), options_.tick), [this] { Tick(); });
}

void LoopBalance::Ask(size_t index) {
  Member& member = members_[index];
  if (member.left_out || !member.asked.expired()) return;  // or so busy that it has not come to it
  auto reading = std::make_shared<Reading>();
  member.asked = reading;
  // One that goes meanwhile destroys the task.
  const bool there =
      member.loop.Post([core = LoopCore::Of(member.loop), home = home_handle_, index,
                        self = weak_from_this(), reading = std::move(reading)]() mutable {
        *reading = {core->sys().Now(), core->sys().ThreadCpu(),
                    core->options().busy_poll > absl::ZeroDuration()};
        home.Post([self = std::move(self), index, reading = std::move(reading)] {
          if (const auto balance = self.lock()) balance->OnAnswer(index, *reading);
        });
      });
  if (!there) LeaveOut(index, BalanceAbsence::kGone);
}

void LoopBalance::LeaveOut(size_t index, BalanceAbsence why) {
  if (!std::exchange(members_[index].left_out, true)) controller_.LeaveOut(index, why);
}

BalanceController::Busy LoopBalance::Member::TakeBusy() {
  if (std::exchange(told, false)) {
    late = 0;
    return busy;
  }
  if (left_out || asked.expired() || ++late > kLateTicks || !known) return std::nullopt;
  return 1.0;
}

void LoopBalance::OnAnswer(size_t index, const Reading& reading) {
  Member& member = members_[index];
  member.asked.reset();
  if (reading.polls) return LeaveOut(index, BalanceAbsence::kPolls);
  const auto span = static_cast<double>(reading.now_ns - member.last.now_ns);
  if (member.known && span > 0) {
    member.busy = std::min(static_cast<double>(reading.cpu_ns - member.last.cpu_ns) / span, 1.0);
    member.told = true;
  }
  member.known = true;
  member.last = reading;
}

std::vector<BalanceController::Busy> LoopBalance::TakeBusy() {
  std::vector<BalanceController::Busy> busy;
  for (size_t i = 0; i < members_.size(); ++i) {
    Member& member = members_[i];
    const bool was_late = member.late > kLateTicks;
    busy.push_back(member.TakeBusy());
    const bool is_late = member.late > kLateTicks;
    if (is_late && !was_late) controller_.LeaveOut(i, BalanceAbsence::kLate);
    if (was_late && !is_late) controller_.TakeIn(i);
  }
  return busy;
}

void LoopBalance::Tick() {
  const int64_t now = home_.sys().Now();
  controller_.Pass(absl::Nanoseconds(now - std::exchange(ticked_at_ns_, now)));
  const std::vector<BalanceController::Busy> busy = TakeBusy();
  GiveUpWhenLate();
  if (!AwaitsTraffic(busy)) Do(controller_.Tick(busy));
  Arm();
}

void LoopBalance::Do(const BalanceController::Action& action) {
  switch (action.kind) {
    case BalanceController::Action::Kind::kNone:
      break;
    case BalanceController::Action::Kind::kObserve:
      Observe(action);
      break;
    case BalanceController::Action::Kind::kMove:
      Move(action);
      break;
  }
}

void LoopBalance::Observe(const BalanceController::Action& action) {
  traffic_ = std::make_shared<Traffic>();
  observed_ = action.from;
  auto ticket = std::make_shared<char>();
  observing_ = ticket;
  observes_late_ = false;
  const LoopHandle& from = members_[action.from].loop;
  from.Post([core = LoopCore::Of(from), traffic = traffic_, looked_at_max = options_.observed_max,
             ticket = std::move(ticket)] { traffic->Begin(*core, looked_at_max); });
}

bool LoopBalance::AwaitsTraffic(const std::vector<BalanceController::Busy>& busy) {
  if (controller_.state() != BalanceState::kObserving || !busy[observed_].has_value()) return false;
  const bool late = !observing_.expired();
  return std::exchange(observes_late_, late) || late;
}

void LoopBalance::Move(const BalanceController::Action& action) {
  order_ = std::make_shared<Order>();
  order_ticks_ = 0;
  ++under_way_;
  const LoopHandle& from = members_[action.from].loop;
  from.Post([core = LoopCore::Of(from), traffic = std::move(traffic_), part = action.part,
             streams_max = options_.streams_max,
             batch = std::make_shared<Batch>(home_handle_, weak_from_this(), order_, from,
                                             members_[action.to].loop)] {
    batch->Run(*core, *traffic, part, streams_max);
  });
}

void LoopBalance::OnEnded(const std::shared_ptr<Order>& order, const MoveCount& streams,
                          double part) {
  if (order->taken_back) return;
  --under_way_;
  if (order == order_) {
    order_ = nullptr;
    controller_.Ended(streams, part);
  } else {
    controller_.Late(streams);
  }
  TellIfStill();
}

bool LoopBalance::TakeBack() {
  if (order_ == nullptr) return false;
  order_->Halt();
  if (!order_->Take()) return false;
  order_->taken_back = true;
  --under_way_;
  return true;
}

void LoopBalance::GiveUpWhenLate() {
  if (order_ == nullptr || ++order_ticks_ <= kLateTicks) return;
  const bool begun = !TakeBack();
  order_ = nullptr;
  controller_.GaveUp(kLateTicks, begun);
}

void LoopBalance::Stop(absl::AnyInvocable<void() &&> stopped) {
  stopping_ = true;
  stopped_ = std::move(stopped);
  timer_.Cancel();
  TakeBack();
  home_handle_.Post([self = weak_from_this()] {
    if (const auto balance = self.lock()) balance->TellIfStill();
  });
}

void LoopBalance::TellIfStill() {
  if (stopping_ && under_way_ == 0 && stopped_) std::exchange(stopped_, nullptr)();
}

}  // namespace internal

absl::StatusOr<std::unique_ptr<LoopBalancer>> LoopBalancer::Create(Loop& home,
                                                                   std::vector<LoopHandle> loops,
                                                                   BalanceOptions options) {
  if (absl::Status status = internal::BalanceController::Check(options); !status.ok()) {
    return status;
  }
  if (loops.size() < 2) {
    return absl::InvalidArgumentError("balance: fewer than two loops leave nothing to even out");
  }
  std::vector<internal::LoopCore*> cores;
  for (const LoopHandle& loop : loops) cores.push_back(internal::LoopCore::Of(loop));
  std::sort(cores.begin(), cores.end(), std::less<>());
  if (cores.front() == nullptr) {
    return absl::InvalidArgumentError("balance: an empty LoopHandle stands for no loop");
  }
  if (std::adjacent_find(cores.begin(), cores.end()) != cores.end()) {
    return absl::InvalidArgumentError("balance: one loop is there twice");
  }
  auto balance = std::make_shared<internal::LoopBalance>(home.core(), std::move(loops), options);
  balance->Start();
  return std::unique_ptr<LoopBalancer>(new LoopBalancer(std::move(balance)));
}

LoopBalancer::LoopBalancer(std::shared_ptr<internal::LoopBalance> balance)
    : balance_(std::move(balance)) {}

LoopBalancer::~LoopBalancer() = default;

void LoopBalancer::Stop(absl::AnyInvocable<void() &&> stopped) {
  balance_->Stop(std::move(stopped));
}

std::vector<std::string> LoopBalancer::trace() const {
  const auto& lines = balance_->controller().trace();
  return {lines.begin(), lines.end()};
}

uint64_t LoopBalancer::moves() const { return balance_->controller().moves(); }

BalanceCounts LoopBalancer::counts() const { return balance_->controller().counts(); }

PENSTOCK_END_NAMESPACE
