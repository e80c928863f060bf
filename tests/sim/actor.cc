#include "sim/actor.h"

#include <penstock/move.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "sim/pattern.h"
#include "sim/scenario.h"

namespace penstock::testing {
namespace {

using Phase = Scenario::Phase;

}  // namespace

ActorPlan ActorPlan::Draw(SimRandom& random) {
  ActorPlan plan;
  const auto chance = [&random](uint32_t max) {
    return random.Chance(500) ? static_cast<uint32_t>(random.Size(max)) : 0;
  };
  plan.bytes_to_send = random.Chance(100) ? 0 : random.Size(64 * 1024);
  plan.write_max = random.Size(32 * 1024);
  plan.trick = chance(300);
  plan.rough = chance(100);
  plan.pause = chance(500);
  plan.hold = chance(200);
  plan.over_high = chance(500);
  plan.ask_writable = chance(300);
  plan.tick_max_ns = static_cast<int64_t>(kNsPerMs / 4 + random.Size(30 * kNsPerMs));
  plan.shuts_down = random.Chance(700);
  return plan;
}

// --- Beginning ---

Actor::Actor(Scenario& scenario, LoopState& loop, int side)
    : scenario_(scenario), loop_(&loop), side_(side), plan_(ActorPlan::Draw(scenario.random())) {}

void Actor::Connect(const SocketAddress& address) {
  SimRandom& random = scenario_.random();
  ConnectOptions options;
  options.stream = scenario_.stream_options();
  options.deadline = absl::Milliseconds(static_cast<int64_t>(random.Between(1, 5000)));
  if (random.Chance(100)) options.engine = scenario_.second_engine();
  connecting_ = true;
  connect_started_ns_ = scenario_.world().now_ns();
  connect_deadline_ = options.deadline;
  const size_t links = scenario_.world().wire().links().size();
  {
    const InCall call(*this);
    attempt_ = penstock::Connect(*loop_->loop, address, options,
                                 [this, ticket = Ticket(*this, Ticket::Op::kConnect)](
                                     absl::StatusOr<StreamPtr> stream) mutable {
                                   ticket.Use();
                                   OnConnected(std::move(stream));
                                 });
  }
  if (scenario_.world().wire().links().size() > links) {
    link_ = scenario_.world().wire().links().back().get();
  }
  ScheduleTick();
}

void Actor::OnConnected(absl::StatusOr<StreamPtr> stream) {
  connecting_ = false;
  if (stream.ok()) return Begin(*std::move(stream));
  const absl::Status& status = stream.status();
  scenario_.world().Note("connect failed", link_ == nullptr ? 0 : link_->id,
                         static_cast<uint64_t>(status.code()));
  ++scenario_.result().refused_connects;
  ended_ = true;
  bool has_cause = false;
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
      has_cause = link_ != nullptr && link_->sides[0].failed;
      break;
    case absl::StatusCode::kDeadlineExceeded:
      has_cause = scenario_.world().now_ns() - connect_started_ns_ >=
                  absl::ToInt64Nanoseconds(connect_deadline_);
      break;
    case absl::StatusCode::kCancelled:
      has_cause = connect_cancelled_ || loop_->drained;
      break;
    case absl::StatusCode::kResourceExhausted:
      has_cause = scenario_.scarce() || loop_->drained;
      break;
    default:
      break;
  }
  if (!has_cause) Wrong(absl::StrCat("connect failed without a cause: ", status.ToString()));
}

void Actor::Begin(StreamPtr stream) {
  ++scenario_.result().streams;
  begun_ = true;
  const SocketAddress client = side_ == 0 ? stream->local() : stream->peer();
  link_ = scenario_.world().wire().LinkOf(client);
  if (link_ == nullptr) {
    Wrong("an address without a link: " + client.ToString());
    stream_ = std::move(stream);
    return Destroy();
  }
  const StreamOptions& options = scenario_.stream_options();
  for (absl::Duration d : {options.read_deadline, options.write_deadline, options.idle_deadline}) {
    if (d == absl::InfiniteDuration()) continue;
    // The clock of a deadline starts with the connection, which is older than this handle.
    const int64_t from = side_ == 0 ? connect_started_ns_ : scenario_.world().now_ns();
    earliest_deadline_ns_ = std::min(earliest_deadline_ns_, from + absl::ToInt64Nanoseconds(d));
  }
  if (scenario_.sealing() == nullptr) return Start(std::move(stream));
  scenario_.sealing()->seal(
      std::move(stream), side_ == 1, [this](absl::StatusOr<StreamPtr> sealed) {
        if (sealed.ok()) return Start(*std::move(sealed));
        ended_ = true;
        Wrong("sealing failed without a cause: " + sealed.status().ToString());
      });
}

void Actor::Start(StreamPtr stream) {
  stream_ = std::move(stream);
  if (side_ == 1) ScheduleTick();
  if (scenario_.phase() == Phase::kFinish) return Finish();
  Step();
}

// --- Acting ---

void Actor::ScheduleTick() {
  if (ended_ || lost()) return;
  SimWorld& world = scenario_.world();
  world.At(
      world.now_ns() + 1 +
          static_cast<int64_t>(scenario_.random().Below(static_cast<uint64_t>(plan_.tick_max_ns))),
      [this] { Tick(); });
}

// Something happens to the actor: by another thread's post, by a timer of the loop, or by the host
// between two turns.
void Actor::Tick() {
  if (ended_ || lost()) return;
  ScheduleTick();
  if (migrating_ > 0) return;
  SimWorld& world = scenario_.world();
  const auto wake = [this, loop = loop_] {
    if (migrating_ > 0 || loop != loop_) return;  // the stream is elsewhere, or on its way
    paused_ = false;
    held_.clear();
    Step();
  };
  const uint64_t way = scenario_.random().Below(3);
  if (way == 0 || world.Busy(*loop_->loop)) {
    loop_->loop->Post(wake);
  } else if (way == 1) {
    timer_ = std::make_unique<Timer>(*loop_->loop);
    timer_->Arm(absl::Nanoseconds(static_cast<int64_t>(scenario_.random().Below(3 * kNsPerMs))),
                wake);
    world.Touch(*loop_->loop);
  } else {
    LoopState& loop = *loop_;
    wake();
    if (!loop.gone) world.Touch(*loop.loop);
  }
}

void Actor::OnLoopGoing(const LoopState& loop) {
  if (loop_ != &loop) return;
  timer_.reset();
  in_transit_ = stream_ != nullptr && stream_->stats().engine == EngineKind::kAuto;
}

bool Actor::lost() const {
  if (!loop_->gone) return false;
  return migrating_ == 0 || !in_transit_ || target_ == nullptr || target_->gone;
}

void Actor::Calm() {
  plan_.trick = plan_.pause = plan_.hold = 0;
  plan_.bytes_to_send = 0;
  plan_.tick_max_ns = 1000 * kNsPerMs;
  paused_ = false;
  held_.clear();
  if (migrating_ == 0) Step();
}

void Actor::Finish() {
  Calm();
  if (ended_) return;
  if (connecting_) return;
  if (stream_ == nullptr || migrating_ > 0) return;  // or when it has arrived
  const InCall call(*this);
  stream_->SetReadDeadline(absl::InfiniteDuration());
  stream_->SetWriteDeadline(absl::InfiniteDuration());
  stream_->SetIdleDeadline(absl::InfiniteDuration());
}

void Actor::Step() {
  SimRandom& random = scenario_.random();
  if (connecting_ && random.Chance(plan_.trick) && random.Chance(plan_.rough)) {
    connect_cancelled_ = true;
    const InCall call(*this);
    return attempt_.Cancel();
  }
  if (stream_ == nullptr || ended_ || stepping_) return;
  stepping_ = true;
  const int moves = migrating_;
  if (random.Chance(plan_.trick)) Trick();
  if (migrating_ > moves) {
    stepping_ = false;
    return;  // only its callbacks may use it now
  }
  if (!ended_) Read();
  if (!ended_) WriteSome();
  stepping_ = false;
  if (!ended_) MaybeEnd();
}

void Actor::Read() {
  if (read_pending_ || read_end_ || paused_) return;
  if (scenario_.random().Chance(plan_.pause)) {
    paused_ = true;
    return;
  }
  read_pending_ = true;
  const InCall call(*this);
  stream_->ReadReady(
      [this, ticket = Ticket(*this, Ticket::Op::kRead)](absl::StatusOr<Buffer> result) mutable {
        ticket.Use();
        OnRead(std::move(result));
      });
}

void Actor::WriteSome() {
  SimRandom& random = scenario_.random();
  if (write_shut_ || write_failed_ || written_ >= plan_.bytes_to_send) return;
  if (writes_.size() > 8) return;
  if (!stream_->writable() && !random.Chance(plan_.over_high)) return AskWritable();
  Write(std::min(plan_.bytes_to_send - written_, random.Size(plan_.write_max)));
  if (random.Chance(plan_.ask_writable)) AskWritable();
}

void Actor::Write(size_t size) {
  PendingWrite write{
      .number = next_write_++, .size = size, .end = written_ + size, .refusal = std::nullopt};
  const uint64_t queued = stream_->stats().queued_bytes;
  if (write_shut_) {
    write.refusal = absl::StatusCode::kFailedPrecondition;
  } else if (queued + size > scenario_.stream_options().send_queue_max) {
    write.refusal = absl::StatusCode::kResourceExhausted;
  } else {
    written_ += size;
  }
  const uint64_t number = write.number;
  BufferChain bytes;
  if (!write.refusal) {
    written_ -= size;  // Bytes() numbers them from here
    bytes = Bytes(size);
    written_ += size;
  } else {
    bytes = Bytes(size);
  }
  writes_.push_back(write);
  const InCall call(*this);
  stream_->Write(std::move(bytes), [this, number, ticket = Ticket(*this, Ticket::Op::kWrite)](
                                       absl::Status status) mutable {
    ticket.Use();
    OnWritten(number, status);
  });
}

BufferChain Actor::Bytes(size_t size) {
  BufferChain chain;
  const uint64_t start = written_;
  size_t done = 0;
  while (done < size) {
    const size_t n =
        scenario_.random().Chance(500) ? size - done : scenario_.random().Size(size - done);
    Buffer piece = Piece(start + done, n);
    chain.Append(std::move(piece));
    done += n;
  }
  return chain;
}

Buffer Actor::Piece(uint64_t position, size_t size) {
  const uint64_t key = StreamKey(*link_, side_);
  if (!loop_->pool_is_tight && scenario_.random().Chance(700)) {
    if (Buffer buffer = loop_->pool->TryAllocate(size)) {
      buffer.Extend(size);
      FillPattern(key, position, buffer.mutable_data(), size);
      return buffer;
    }
  }
  char* const memory = new char[size];
  FillPattern(key, position, memory, size);
  ++scenario_.externals;
  return Buffer::FromExternal(memory, size, [memory, this] {
    --scenario_.externals;
    delete[] memory;
  });
}

void Actor::AskWritable() {
  if (writable_pending_) return;
  writable_pending_ = true;
  const InCall call(*this);
  stream_->NotifyWritable([this, ticket = Ticket(*this, Ticket::Op::kWritable)](
                              absl::Status status) mutable {
    ticket.Use();
    writable_pending_ = false;
    if (!status.ok() && !HasCause(status)) {
      Wrong("NotifyWritable failed without a cause: " + status.ToString());
    }
    if (status.ok() && stream_->stats().queued_bytes > scenario_.stream_options().send_queue_low) {
      Wrong("NotifyWritable above the low watermark");
    }
    Step();
  });
}

void Actor::ShutdownWrite() {
  if (write_shut_) return;
  write_shut_ = true;
  scenario_.world().Note("shutdown", link_->id, static_cast<uint64_t>(side_));
  const uint64_t before = next_write_;
  const InCall call(*this);
  stream_->ShutdownWrite(
      [this, before, ticket = Ticket(*this, Ticket::Op::kShutdown)](absl::Status status) mutable {
        ticket.Use();
        write_shut_done_ = true;
        write_failed_ |= !status.ok();
        if (!status.ok() && !HasCause(status)) {
          Wrong("ShutdownWrite failed without a cause: " + status.ToString());
        }
        if (!writes_.empty() && writes_.front().number < before) {
          Wrong("ShutdownWrite done before the writes before it");
        }
        Step();
      });
}

void Actor::MaybeEnd() {
  CheckStats();
  if (scenario_.phase() == Phase::kCalm) return;
  const bool all_written = writes_.empty() && (written_ >= plan_.bytes_to_send || write_failed_);
  const bool finishing = scenario_.phase() == Phase::kFinish;
  if (all_written && (plan_.shuts_down || finishing)) ShutdownWrite();
  if (ended_) return;
  if (finishing && write_failed_) return Destroy();  // or the peer would wait for ever
  if (write_shut_ ? (write_shut_done_ && read_end_) : (all_written && read_end_)) return Destroy();
  if (all_written && !plan_.shuts_down && scenario_.random().Chance(100)) Destroy();
}

void Actor::Destroy() {
  if (stream_ == nullptr) return;
  scenario_.world().Note("destroy", link_ == nullptr ? 0 : link_->id, static_cast<uint64_t>(side_));
  ending_ = true;
  {
    const InCall call(*this);
    stream_.reset();
  }
  ended_ = true;
  held_.clear();
}

// --- Tricks ---

void Actor::Trick() {
  SimRandom& random = scenario_.random();
  if (random.Chance(plan_.rough)) return RoughTrick();
  switch (random.Below(11)) {
    case 0: {
      read_cancelled_ |= read_pending_;
      const InCall call(*this);
      return stream_->CancelRead();
    }
    case 1: {
      if (!read_pending_) return;
      const InCall call(*this);
      return stream_->ReadReady([this, ticket = Ticket(*this, Ticket::Op::kExtraRead)](
                                    absl::StatusOr<Buffer> result) mutable {
        ticket.Use();
        if (!absl::IsFailedPrecondition(result.status())) {
          Wrong("a second ReadReady ended with " + result.status().ToString());
        }
        Step();
      });
    }
    case 2:
      return SetDeadline();
    case 3:
      return AskWritable();
    case 4:
      return Write(random.Chance(500) ? 0 : random.Size(plan_.write_max));
    case 5:
      paused_ = true;
      return;
    case 6:
    case 7:
      return Switch();
    case 8:
    case 9:
      return Migrate(scenario_.RandomLoop());
    default:
      return CheckStats();
  }
}

void Actor::Switch() {
  const EngineKind to =
      scenario_.random().Chance(500) ? EngineKind::kSimulated : scenario_.second_engine();
  scenario_.world().Note("switch", link_->id, static_cast<uint64_t>(side_));
  target_ = nullptr;
  const InCall call(*this);
  SwitchEngine(*stream_, to,
               [this, ticket = Ticket(*this, Ticket::Op::kSwitch)](absl::Status status) mutable {
                 FollowStream(status, nullptr);
                 ticket.Use();
                 ++scenario_.result().switches;
                 const bool replaced = absl::IsCancelled(status);
                 if (!status.ok() && !replaced && !scenario_.scarce() && !HasCause(status)) {
                   Wrong("a switch failed without a cause: " + status.ToString());
                 }
                 Step();
               });
}

void Actor::Migrate(LoopState& target) {
  if (stream_ == nullptr || ended_) return;
  const EngineKind engine =
      scenario_.random().Chance(700) ? EngineKind::kAuto : scenario_.second_engine();
  scenario_.world().Note("migrate", link_->id * 2 + static_cast<uint64_t>(side_), loop_->index,
                         target.index);
  timer_.reset();  // belongs to the loop that the stream may leave
  ++migrating_;
  target_ = &target;
  const InCall call(*this);
  penstock::Migrate(
      *stream_, target.handle,
      [this, &target, ticket = Ticket(*this, Ticket::Op::kMigrate)](absl::Status status) mutable {
        --migrating_;
        FollowStream(status, &target);
        ticket.Use();
        OnMigrated(target, status);
      },
      engine);
}

void Actor::FollowStream(const absl::Status& status, const LoopState* target) {
  if (stream_ == nullptr) return Wrong("a move ends after its stream was destroyed");
  LoopState* const now = scenario_.StateOf(stream_->loop());
  // A move that another one has taken the place of may end anywhere.
  if (now != loop_ && now != target_) Wrong("a stream on a loop that it was not to go to");
  if (target != nullptr && status.ok() && now != target) Wrong("a stream is not where it went");
  const bool failed = !status.ok() && !absl::IsCancelled(status);
  if (target != nullptr && target == target_ && failed && now != loop_) {
    Wrong("a stream has gone though its move failed");
  }
  loop_ = now;
}

bool Actor::MayAct() const {
  return !ended_ && !connecting_ && migrating_ == 0 && !loop_->gone &&
         !scenario_.world().Busy(*loop_->loop);
}

void Actor::RoughTrick() {
  SimRandom& random = scenario_.random();
  switch (random.Below(4)) {
    case 0: {
      aborted_ = true;
      scenario_.world().Note("abort", link_->id, static_cast<uint64_t>(side_));
      const InCall call(*this);
      return stream_->Abort();
    }
    case 1: {
      read_shut_ = true;
      const InCall call(*this);
      return stream_->ShutdownRead();
    }
    case 2:
      return ShutdownWrite();
    default:
      return Destroy();
  }
}

void Actor::SetDeadline() {
  SimRandom& random = scenario_.random();
  absl::Duration after = absl::InfiniteDuration();
  if (random.Chance(700)) {
    after = absl::Milliseconds(static_cast<int64_t>(random.Size(300)));
    earliest_deadline_ns_ = std::min(earliest_deadline_ns_,
                                     scenario_.world().now_ns() + absl::ToInt64Nanoseconds(after));
  }
  const InCall call(*this);
  switch (random.Below(3)) {
    case 0:
      return stream_->SetReadDeadline(after);
    case 1:
      return stream_->SetWriteDeadline(after);
    default:
      return stream_->SetIdleDeadline(after);
  }
}

void Actor::CheckStats() {
  if (loop_->gone) return;
  const StreamStats stats = stream_->stats();
  const SimSide& mine = link_->sides[static_cast<size_t>(side_)];
  if (scenario_.sealing() != nullptr) {
    // The wire carries more, and knows no plaintext.
    if (stats.bytes_out > std::min(written_, mine.sent) || stats.bytes_in != received_) {
      Wrong(absl::StrCat("bytes_out is ", stats.bytes_out, " of ", written_, " written, bytes_in ",
                         stats.bytes_in, " for ", received_, " received"));
    }
    return;
  }
  if (stats.bytes_out != mine.sent) {
    Wrong(absl::StrCat("bytes_out is ", stats.bytes_out, ", the kernel took ", mine.sent));
  }
  if (stats.bytes_in > mine.received) {
    Wrong(absl::StrCat("bytes_in is ", stats.bytes_in, ", the kernel gave ", mine.received));
  }
}

}  // namespace penstock::testing
