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

// Ticks for which a loop that does not answer is taken for busy. One that is later may not be run
// at all: nobody shall wait for it.
constexpr int kLateTicks = 8;

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
  // Has streams go that carry at most `part` of what the loop does.
  void Move(LoopCore& loop, const LoopHandle& to, double part, size_t streams_max,
            const std::shared_ptr<Batch>& batch);

 private:
  static Connection* Find(LoopCore& loop, Token token);
};

struct LoopBalance::Batch {
  Batch(LoopHandle home, std::weak_ptr<LoopBalance> balance)
      : home_(std::move(home)), balance_(std::move(balance)) {}
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;
  ~Batch() {
    MoveCount count;
    count.moved = moved_.load(std::memory_order_relaxed);
    count.failed = refused_.load(std::memory_order_relaxed);
    count.ended = begun - count.moved - count.failed;
    const double part = static_cast<double>(bytes_.load(std::memory_order_relaxed)) / all;
    home_.Post([balance = std::move(balance_), count, part] {
      if (const auto self = balance.lock()) self->OnEnded(count, part);
    });
  }
  // Any thread: a stream that carried so much has arrived.
  void Arrived(uint64_t bytes) {
    moved_.fetch_add(1, std::memory_order_relaxed);
    bytes_.fetch_add(bytes, std::memory_order_relaxed);
  }

  // Any thread: one stays, which is still open.
  void Refused() { refused_.fetch_add(1, std::memory_order_relaxed); }

  // By the task that begins the moves: bytes that the loop carried, and moves.
  double all = 1;
  uint64_t begun = 0;

 private:
  const LoopHandle home_;
  std::weak_ptr<LoopBalance> balance_;
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

void LoopBalance::Traffic::Move(LoopCore& loop, const LoopHandle& to, double part,
                                size_t streams_max, const std::shared_ptr<Batch>& batch) {
  const auto all = static_cast<double>(std::max<uint64_t>(BytesOf(loop.counters()) - bytes, 1));
  batch->all = all;
  for (Stream& stream : streams) {
    const Connection* const connection = Find(loop, stream.token);
    stream.bytes = connection == nullptr ? 0 : connection->bytes() - stream.bytes;
  }
  std::sort(streams.begin(), streams.end(),
            [](const Stream& a, const Stream& b) { return a.bytes > b.bytes; });
  double left = all * part;
  for (const Stream& stream : streams) {
    if (stream.bytes == 0 || batch->begun == streams_max) break;
    const auto carried = static_cast<double>(stream.bytes);
    if (carried > left) continue;
    left -= carried;
    ++batch->begun;
    Connection* const connection = Find(loop, stream.token);
    connection->Move(
        connection->EngineElsewhere(), &to,
        [batch, connection, bytes = stream.bytes](const absl::Status& status) {
          if (status.ok()) {
            batch->Arrived(bytes);
          } else if (connection->state() == ConnectionState::kOpen && !absl::IsCancelled(status)) {
            batch->Refused();
          }
        });
  }
}

LoopBalance::LoopBalance(LoopCore& home, std::vector<LoopHandle> loops,
                         const BalanceOptions& options)
    : home_(home),
      home_handle_(home.handle()),
      options_(options),
      controller_(options),
      timer_(home.timers()) {
  for (LoopHandle& loop : loops) members_.emplace_back().loop = std::move(loop);
}

void LoopBalance::Arm() {
  for (size_t i = 0; i < members_.size(); ++i) Ask(i);
  timer_.Arm(TimerWheel::DeadlineTick(home_.sys().Now(), options_.tick), [this] { Tick(); });
}

void LoopBalance::Ask(size_t index) {
  Member& member = members_[index];
  if (!member.asked.expired()) return;  // so busy that it has not come to it
  auto reading = std::make_shared<Reading>();
  member.asked = reading;
  // A loop that is gone destroys the task.
  member.loop.Post([core = LoopCore::Of(member.loop), home = home_handle_, index,
                    self = weak_from_this(), reading = std::move(reading)]() mutable {
    *reading = {core->sys().Now(), core->sys().ThreadCpu(),
                core->options().busy_poll > absl::ZeroDuration()};
    home.Post([self = std::move(self), index, reading = std::move(reading)] {
      if (const auto balance = self.lock()) balance->OnAnswer(index, *reading);
    });
  });
}

BalanceController::Busy LoopBalance::Member::TakeBusy() {
  if (std::exchange(told, false)) {
    late = 0;
    return busy;
  }
  if (!known || left_out || asked.expired() || ++late > kLateTicks) return std::nullopt;
  return 1.0;
}

void LoopBalance::OnAnswer(size_t index, const Reading& reading) {
  Member& member = members_[index];
  member.asked.reset();
  if (reading.polls) {
    if (!std::exchange(member.left_out, true)) controller_.LeaveOut(index);
    return;
  }
  const auto span = static_cast<double>(reading.now_ns - member.last.now_ns);
  if (member.known && span > 0) {
    member.busy = std::min(static_cast<double>(reading.cpu_ns - member.last.cpu_ns) / span, 1.0);
    member.told = true;
  }
  member.known = true;
  member.last = reading;
}

void LoopBalance::Tick() {
  std::vector<BalanceController::Busy> busy;
  for (Member& member : members_) busy.push_back(member.TakeBusy());
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
  moving_ = true;
  const LoopHandle& from = members_[action.from].loop;
  from.Post([core = LoopCore::Of(from), traffic = std::move(traffic_),
             to = members_[action.to].loop, part = action.part, streams_max = options_.streams_max,
             batch = std::make_shared<Batch>(home_handle_, weak_from_this())] {
    traffic->Move(*core, to, part, streams_max, batch);
  });
}

void LoopBalance::OnEnded(const MoveCount& streams, double part) {
  moving_ = false;
  controller_.Ended(streams, part);
  TellIfStill();
}

void LoopBalance::Stop(absl::AnyInvocable<void() &&> stopped) {
  stopping_ = true;
  stopped_ = std::move(stopped);
  timer_.Cancel();
  home_handle_.Post([self = weak_from_this()] {
    if (const auto balance = self.lock()) balance->TellIfStill();
  });
}

void LoopBalance::TellIfStill() {
  if (stopping_ && !moving_ && stopped_) std::exchange(stopped_, nullptr)();
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

PENSTOCK_END_NAMESPACE
