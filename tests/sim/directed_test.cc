// Single faults and single moments, on a simulated loop of either style: what the many seeds meet
// by chance is here on purpose.
#include <gtest/gtest.h>
#include <penstock/connect.h>
#include <penstock/listener.h>
#include <penstock/loop.h>
#include <penstock/move.h>
#include <penstock/stream.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "engine/loop_core.h"
#include "testing/sim_styles.h"
#include "testing/sim_wire.h"
#include "testing/sim_world.h"

namespace penstock::testing {
namespace {

class SimDirected : public ::testing::TestWithParam<SimStyle> {
 protected:
  explicit SimDirected(uint64_t seed = 1) : world_(seed) {
    pool_ = world_.NewPool({});
    loop_ = *world_.NewLoop(Options(), GetParam());
  }

  LoopOptions Options() {
    LoopOptions options;
    options.pool = pool_.get();
    return options;
  }

  void Listen(ListenOptions options = {}) {
    listener_ = *Listener::Listen(*loop_, *SocketAddress::Parse("10.0.0.1:0"), std::move(options),
                                  [this](StreamPtr stream) { server_ = std::move(stream); });
  }

  // Starts connecting; `connected_` says how it ended.
  void StartConnect(ConnectOptions options = {}) {
    connected_.reset();
    Connect(*loop_, listener_->address(), std::move(options),
            [this](absl::StatusOr<StreamPtr> stream) {
              connected_ = stream.status();
              if (stream.ok()) client_ = *std::move(stream);
            });
    world_.Touch(*loop_);
  }

  void Open(ListenOptions listen = {}, ConnectOptions connect = {}) {
    Listen(std::move(listen));
    StartConnect(std::move(connect));
    ASSERT_TRUE(RunUntil([this] { return client_ != nullptr && server_ != nullptr; }));
  }

  template <typename Condition>
  bool RunUntil(Condition condition, absl::Duration limit = absl::Seconds(60)) {
    const bool held = world_.Run(condition, limit);
    EXPECT_TRUE(world_.errors().empty()) << world_.errors().front();
    return held;
  }
  void RunFor(absl::Duration time) {
    RunUntil([] { return false; }, time);
  }

  static Buffer Bytes(const std::string& text) {
    auto* const copy = new std::string(text);
    return Buffer::FromExternal(copy->data(), copy->size(), [copy] { delete copy; });
  }

  void Write(Stream& stream, const std::string& text, Stream::DoneCallback done = nullptr) {
    stream.Write(Bytes(text), std::move(done));
    world_.Touch(*loop_);
  }

  // One ReadReady; its end, or nothing within `limit`.
  std::optional<absl::StatusOr<std::string>> ReadOnce(Stream& stream,
                                                      absl::Duration limit = absl::Seconds(60)) {
    auto result = std::make_shared<std::optional<absl::StatusOr<std::string>>>();
    stream.ReadReady([result](absl::StatusOr<Buffer> bytes) {
      if (bytes.ok()) {
        *result = std::string(bytes->view());
      } else {
        *result = bytes.status();
      }
    });
    world_.Touch(*loop_);
    RunUntil([&] { return result->has_value(); }, limit);
    return *result;
  }

  // Reads to the end; the bytes, and how they ended.
  std::pair<std::string, absl::Status> ReadAll(Stream& stream) {
    std::string all;
    for (;;) {
      auto piece = ReadOnce(stream);
      if (!piece) return {all, absl::InternalError("a read does not end")};
      if (!piece->ok()) return {all, piece->status()};
      all += **piece;
    }
  }

  SimWorld world_;
  std::unique_ptr<BufferPool> pool_;
  std::unique_ptr<Loop> loop_;
  std::unique_ptr<Listener> listener_;
  std::optional<absl::Status> connected_;
  StreamPtr client_;
  StreamPtr server_;
};

INSTANTIATE_TEST_SUITE_P(Styles, SimDirected, SimStyles(), SimStyleName);

struct NamedFault {
  const char* name;
  void (*set)(SimFaults&);
};

// Faults that a stream must not show at all.
constexpr NamedFault kHarmless[] = {
    {"wire delay", [](SimFaults& f) { f.wire_delay_max = 30'000'000; }},
    {"split segments", [](SimFaults& f) { f.split_segment = 800; }},
    {"link stalls", [](SimFaults& f) { f.link_stall = 200, f.stall_max = 500'000'000; }},
    {"short receives", [](SimFaults& f) { f.short_receive = 900; }},
    {"EAGAIN on receive", [](SimFaults& f) { f.receive_again = 500; }},
    {"short sends", [](SimFaults& f) { f.short_send = 900; }},
    {"EAGAIN on send", [](SimFaults& f) { f.send_again = 500; }},
    {"late events", [](SimFaults& f) { f.event_delay_max = 20'000'000; }},
    {"reordered events", [](SimFaults& f) { f.reorder = 1000, f.event_delay_max = 1'000'000; }},
    {"spurious events", [](SimFaults& f) { f.spurious = 900; }},
    {"terminal completions with data", [](SimFaults& f) { f.early_terminal = 900; }},
    {"exhausted rings", [](SimFaults& f) { f.ring_exhausted = 700; }},
    {"no memory now and then", [](SimFaults& f) { f.map_failure = 500; }},
    {"stalled loops", [](SimFaults& f) { f.loop_stall = 300, f.stall_max = 100'000'000; }},
};

TEST_P(SimDirected, FaultsThatAStreamMustNotShow) {
  for (const NamedFault& fault : kHarmless) {
    SCOPED_TRACE(fault.name);
    world_.faults() = SimFaults();
    client_ = nullptr;
    server_ = nullptr;
    world_.wire().set_buffers(2'000, 3'000);
    Open();
    fault.set(world_.faults());
    std::string text(20'000, 'x');
    for (char& c : text) c = static_cast<char>(world_.random().Next());
    bool sent = false;
    Write(*client_, text.substr(0, 7'000));
    Write(*client_, text.substr(7'000), [&](absl::Status status) { sent = status.ok(); });
    client_->ShutdownWrite();
    const auto [bytes, end] = ReadAll(*server_);
    EXPECT_TRUE(bytes == text);
    EXPECT_TRUE(IsEof(end)) << end;
    EXPECT_TRUE(sent);
  }
}

// --- Connecting and accepting ---

TEST_P(SimDirected, ConnectFailuresArriveAsThemselves) {
  Listen();
  world_.faults().connect_refused = 1000;
  StartConnect();
  ASSERT_TRUE(RunUntil([this] { return connected_.has_value(); }));
  EXPECT_TRUE(IsReset(*connected_)) << *connected_;

  world_.faults() = SimFaults{.connect_lost = 1000};
  ConnectOptions options;
  options.deadline = absl::Seconds(3);
  StartConnect(std::move(options));
  const int64_t before = world_.now_ns();
  ASSERT_TRUE(RunUntil([this] { return connected_.has_value(); }));
  EXPECT_TRUE(IsDeadlineExceeded(*connected_)) << *connected_;
  EXPECT_GE(world_.now_ns() - before, 3'000'000'000);

  world_.faults() = SimFaults{.attach_failure = 1000};
  StartConnect();
  ASSERT_TRUE(RunUntil([this] { return connected_.has_value(); }));
  EXPECT_TRUE(absl::IsResourceExhausted(*connected_)) << *connected_;
}

TEST_P(SimDirected, AnIdleDeadlineStartsWithTheStream) {
  Listen();
  world_.faults().connect_lost = 1000;
  ConnectOptions options;
  options.deadline = absl::Seconds(2);
  options.stream.idle_deadline = absl::Milliseconds(10);
  StartConnect(std::move(options));
  RunFor(absl::Seconds(1));
  EXPECT_FALSE(connected_.has_value()) << *connected_;
  RunFor(absl::Seconds(2));
  ASSERT_TRUE(connected_.has_value());
  EXPECT_TRUE(IsDeadlineExceeded(*connected_)) << *connected_;
}

TEST_P(SimDirected, AcceptingOutlivesTrouble) {
  Listen();
  // One descriptor is left, the client's.
  world_.faults().descriptors_max = world_.descriptors_open() + 1;
  StartConnect();
  RunFor(absl::Seconds(5));
  EXPECT_EQ(server_, nullptr);
  EXPECT_GT(listener_->stats().fd_exhausted, 0u);
  client_ = nullptr;

  for (const NamedFault& fault : {
           NamedFault{"no memory", [](SimFaults& f) { f.accept_no_memory = 800; }},
           NamedFault{"aborted", [](SimFaults& f) { f.accept_aborted = 500; }},
       }) {
    SCOPED_TRACE(fault.name);
    world_.faults() = SimFaults();
    fault.set(world_.faults());
    server_ = nullptr;
    for (int i = 0; i < 20 && server_ == nullptr; ++i) {
      StartConnect();
      RunFor(absl::Seconds(10));
    }
    EXPECT_NE(server_, nullptr);
  }
}

TEST_P(SimDirected, AListenerAtItsLimitOutlivesItsLoop) {
  ListenOptions options;
  options.connections_max = 1;
  Open(std::move(options));
  EXPECT_TRUE(listener_->stats().paused);
  loop_ = nullptr;
  server_ = nullptr;
  client_ = nullptr;
  listener_ = nullptr;
  EXPECT_EQ(world_.descriptors_open(), 0u);
}

// --- Ends ---

TEST_P(SimDirected, AResetComesAfterTheBytesBeforeIt) {
  Open();
  Write(*client_, "before");
  RunFor(absl::Seconds(1));
  world_.wire().Reset(1);
  RunFor(absl::Seconds(1));
  const auto [bytes, end] = ReadAll(*server_);
  EXPECT_EQ(bytes, "before");
  EXPECT_TRUE(IsReset(end)) << end;
  EXPECT_TRUE(IsReset(ReadOnce(*server_)->status()));
}

// The kernel hands a reset out once; the send that met it must not leave an end of stream to reads.
TEST_P(SimDirected, AResetThatASendHasMetIsOneForReadsToo) {
  Open();
  world_.wire().Reset(1);
  RunFor(absl::Seconds(1));
  std::optional<absl::Status> sent;
  Write(*server_, "x", [&](absl::Status status) { sent = status; });
  ASSERT_TRUE(RunUntil([&] { return sent.has_value(); }));
  EXPECT_TRUE(IsReset(*sent)) << *sent;
  const auto end = ReadOnce(*server_);
  EXPECT_TRUE(IsReset(end->status())) << end->status();
}

// Bytes that a failed send has lost must not end in what looks like the whole.
TEST_P(SimDirected, AFailedSendIsNoEndOfStream) {
  Open();
  Write(*client_, "first");
  RunFor(absl::Seconds(1));
  world_.faults().send_error = 1000;
  std::optional<absl::Status> sent;
  Write(*client_, "second", [&](absl::Status status) { sent = status; });
  ASSERT_TRUE(RunUntil([&] { return sent.has_value(); }));
  EXPECT_FALSE(sent->ok());
  client_ = nullptr;
  const auto [bytes, end] = ReadAll(*server_);
  EXPECT_EQ(bytes, "first");
  EXPECT_TRUE(IsReset(end)) << end;
}

// Both writes are in one flush, whose first send takes all of the first and whose second fails.
TEST_P(SimDirected, AWriteThatWasTakenEndsWellThoughTheNextFails) {
  int seen = 0;
  for (int i = 0; i < 40; ++i) {
    world_.faults() = SimFaults();
    world_.wire().set_buffers(1'000, 10'000);
    client_ = nullptr;
    server_ = nullptr;
    Open();
    const SocketAddress local = client_->local();  // the failure closes the socket
    world_.faults().send_error = 500;
    std::optional<absl::Status> first, second;
    Write(*client_, std::string(1'000, 'a'), [&](absl::Status status) { first = status; });
    Write(*client_, std::string(1'000, 'b'), [&](absl::Status status) { second = status; });
    ASSERT_TRUE(RunUntil([&] { return first && second; }));
    const uint64_t taken = world_.wire().LinkOf(local)->sides[0].sent;
    EXPECT_EQ(client_->stats().bytes_out, taken);
    EXPECT_EQ(first->ok(), taken >= 1'000) << *first;
    EXPECT_EQ(second->ok(), taken >= 2'000) << *second;
    seen += first->ok() && !second->ok();
  }
  EXPECT_GT(seen, 0);
}

TEST_P(SimDirected, AbortTakesAnUnreadEndWithIt) {
  Open();
  world_.wire().set_buffers(1'000, 1'000);
  ASSERT_TRUE(ReadOnce(*server_, absl::Milliseconds(1)) == std::nullopt);
  Write(*client_, "unread");
  client_->ShutdownWrite();
  RunFor(absl::Seconds(1));  // the pending read takes the bytes; the end waits
  server_->Abort();
  const auto end = ReadOnce(*server_);
  EXPECT_TRUE(IsCancelled(end->status())) << end->status();
}

// A receive is cancelled with its completion on the way: the bytes wait for the next read.
TEST_P(SimDirected, CancelReadLosesNoByte) {
  Open();
  std::string all;
  for (int i = 0; i < 50; ++i) {
    world_.faults().event_delay_max = 5'000'000;
    bool cancelled = false;
    server_->ReadReady([&](absl::StatusOr<Buffer> bytes) {
      cancelled = IsCancelled(bytes.status());
      if (bytes.ok()) all += bytes->view();
    });
    Write(*client_, std::string(1, static_cast<char>('a' + i % 26)));
    RunFor(absl::Microseconds(static_cast<int64_t>(world_.random().Below(5'000))));
    server_->CancelRead();
    world_.Touch(*loop_);
    RunFor(absl::Milliseconds(1));
  }
  client_->ShutdownWrite();
  world_.Touch(*loop_);
  const auto [rest, end] = ReadAll(*server_);
  all += rest;
  ASSERT_EQ(all.size(), 50u);
  for (size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i], static_cast<char>('a' + i % 26));
  EXPECT_TRUE(IsEof(end)) << end;
}

TEST_P(SimDirected, AStreamMayGoWhileItsOperationsAreOut) {
  Open();
  world_.faults().event_delay_max = 100'000'000;
  server_->ReadReady([](absl::StatusOr<Buffer>) {});
  Write(*client_, "late");
  RunFor(absl::Milliseconds(1));
  server_ = nullptr;
  client_ = nullptr;
  RunFor(absl::Seconds(10));
  const LoopSnapshot snapshot = loop_->Snapshot();
  EXPECT_EQ(snapshot.open + snapshot.closing, 0u);
  EXPECT_EQ(snapshot.pool.live + snapshot.pool.ring, 0u);
}

// --- Deadlines ---

// The host of an embedded loop may call long after the loop's last turn.
TEST_P(SimDirected, ADeadlineCountsFromTheCallNotFromTheLastTurn) {
  Open();
  RunFor(absl::Seconds(10));
  server_->SetReadDeadline(absl::Milliseconds(50));
  const int64_t before = world_.now_ns();
  const auto end = ReadOnce(*server_);
  EXPECT_TRUE(IsDeadlineExceeded(end->status()));
  EXPECT_GE(world_.now_ns() - before, 50'000'000);
  EXPECT_LE(world_.now_ns() - before, 53'000'000);
}

// The same on a loop that sleeps in Run: what it wakes up for happens now.
TEST_P(SimDirected, ADeadlineCountsFromTheWakeUp) {
  ListenOptions options;
  options.stream.idle_deadline = absl::Milliseconds(50);
  Listen(std::move(options));
  std::unique_ptr<Loop> other = *world_.NewLoop(Options(), GetParam());
  int64_t opened = 0;
  int64_t ended = 0;
  StreamPtr client;
  world_.After(absl::Seconds(10), [&] {
    Connect(*other, listener_->address(), {}, [&](absl::StatusOr<StreamPtr> stream) {
      client = *std::move(stream);
      opened = world_.now_ns();
      client->ReadReady([&](absl::StatusOr<Buffer>) {
        ended = world_.now_ns();
        loop_->Stop();
      });
    });
    world_.Touch(*other);
  });
  world_.After(absl::Seconds(20), [&] { loop_->Stop(); });
  world_.Drive(*loop_);
  EXPECT_GE(ended - opened, 50'000'000);
  EXPECT_LE(ended - opened, 55'000'000);
  client = nullptr;
}

// --- Loops ---

TEST_P(SimDirected, ADrainedLoopSleeps) {
  Open();
  loop_->Drain(absl::Milliseconds(10));
  world_.Touch(*loop_);
  const auto end = ReadOnce(*server_);
  EXPECT_TRUE(IsCancelled(end->status())) << end->status();
  const uint64_t turns = loop_->Snapshot().turns;
  RunFor(absl::Seconds(10));
  EXPECT_LT(loop_->Snapshot().turns, turns + 20);
}

TEST_P(SimDirected, ASnapshotOfASleepingLoopCountsNoTimerThatIsGone) {
  ListenOptions options;
  options.stream.idle_deadline = absl::Hours(1);
  Open(std::move(options));
  RunFor(absl::Seconds(5));
  EXPECT_EQ(loop_->Snapshot().timers, 1u);
  server_->ReadReady([this](absl::StatusOr<Buffer>) { server_ = nullptr; });
  Write(*client_, "go");
  RunFor(absl::Seconds(5));
  EXPECT_EQ(loop_->Snapshot().timers, 0u);
}

// The time to trim passes before an alarm was set for it.
TEST_P(SimDirected, ALoopThatIsLateForItsTrimDoesNotSpin) {
  loop_ = nullptr;
  LoopOptions options = Options();
  options.idle_trim = absl::Milliseconds(1);
  options.turn_tasks_max = 1;
  loop_ = *world_.NewLoop(std::move(options), GetParam());
  Open();
  RunFor(absl::Seconds(1));
  // The turn that sees the traffic has work left, so it sets no alarm; the next one is late.
  loop_->Post([this] {
    world_.faults().loop_stall = 1000;
    world_.faults().stall_max = 1'000'000;
  });
  loop_->Post([] {});
  Write(*client_, "x");
  world_.After(absl::Milliseconds(5), [this] { world_.faults().loop_stall = 0; });
  RunFor(absl::Seconds(1));
}

// Nothing is out that could come back, so no buffer's return tells the loop to try again.
TEST_P(SimDirected, ALoopWithoutMemoryTriesAgain) {
  Open();
  RunFor(absl::Seconds(5));
  world_.faults().map_failure = 1000;
  Write(*client_, "wait");
  EXPECT_EQ(ReadOnce(*server_, absl::Seconds(1)), std::nullopt);
  EXPECT_GT(loop_->Snapshot().buffer_waits, 0u);
  world_.faults().map_failure = 0;
  RunFor(absl::Seconds(1));
  server_->CancelRead();
  world_.Touch(*loop_);
  RunFor(absl::Seconds(1));
  EXPECT_EQ(server_->stats().bytes_in, 4u);
}

TEST_P(SimDirected, IdleStreamsHoldNothing) {
  Listen();
  std::vector<StreamPtr> clients, servers;
  listener_ = *Listener::Listen(*loop_, *SocketAddress::Parse("10.0.0.1:0"), {},
                                [&](StreamPtr stream) { servers.push_back(std::move(stream)); });
  for (int i = 0; i < 100; ++i) {
    Connect(*loop_, listener_->address(), {},
            [&](absl::StatusOr<StreamPtr> stream) { clients.push_back(*std::move(stream)); });
  }
  world_.Touch(*loop_);
  ASSERT_TRUE(RunUntil([&] { return clients.size() + servers.size() == 200; }));
  const auto expect_idle = [&] {
    for (const StreamPtr& server : servers) server->ReadReady([](absl::StatusOr<Buffer>) {});
    world_.Touch(*loop_);
    RunFor(absl::Seconds(5));
    const LoopSnapshot snapshot = loop_->Snapshot();
    EXPECT_EQ(snapshot.open, 200u);
    EXPECT_EQ(snapshot.idle, 200u);
    EXPECT_EQ(snapshot.pinned_bytes, 0u);
    EXPECT_EQ(snapshot.pool.live, 0u);
  };
  expect_idle();  // I1: from the first moment
  for (const StreamPtr& client : clients) Write(*client, std::string(5'000, 'x'));
  RunFor(absl::Seconds(1));
  for (const StreamPtr& server : servers) server->ShutdownRead();
  RunFor(absl::Seconds(1));
  expect_idle();
}

// --- Moves ---

// After a sweep of switches the other engine waits for both: by it alone the loop hears of its
// timers, of posts from outside and of streams that are switched back.
TEST_P(SimDirected, EnginesThatHaveChangedPlacesWakeTheLoop) {
  Open();
  for (const EngineKind to : {EngineKind::kUring, EngineKind::kSimulated}) {
    std::optional<MoveCount> swept;
    ASSERT_TRUE(SwitchAll(*loop_, to, [&](MoveCount count) { swept = count; }).ok());
    world_.Touch(*loop_);
    ASSERT_TRUE(RunUntil([&] { return swept.has_value(); }));
    EXPECT_GT(swept->moved, 0u);
    EXPECT_EQ(loop_->core().primary().kind(), to);
    RunFor(absl::Seconds(5));
    Timer timer(*loop_);
    bool fired = false, posted = false;
    loop_->Post([&] { timer.Arm(absl::Seconds(1), [&] { fired = true; }); });
    EXPECT_TRUE(RunUntil([&] { return fired; }, absl::Seconds(2)));
    world_.After(absl::Seconds(1), [&] { loop_->Post([&] { posted = true; }); });
    EXPECT_TRUE(RunUntil([&] { return posted; }, absl::Seconds(2)));
    Write(*client_, "hello");
    const auto got = ReadOnce(*server_);
    ASSERT_TRUE(got.has_value() && got->ok());
    EXPECT_EQ(**got, "hello");
    SwitchEngine(*server_, to == EngineKind::kUring ? EngineKind::kSimulated : EngineKind::kUring);
    Write(*client_, "back");
    const auto again = ReadOnce(*server_);
    ASSERT_TRUE(again.has_value() && again->ok());
    EXPECT_EQ(**again, "back");
  }
}

// Its host watches the descriptor of the engine that waits, which therefore stays.
TEST_P(SimDirected, EnginesOfAnEmbeddedLoopKeepTheirPlaces) {
  Open();
  loop_->fd();
  std::optional<MoveCount> swept;
  ASSERT_TRUE(SwitchAll(*loop_, EngineKind::kUring, [&](MoveCount count) { swept = count; }).ok());
  world_.Touch(*loop_);
  ASSERT_TRUE(RunUntil([&] { return swept.has_value(); }));
  EXPECT_EQ(swept->moved, 2u);
  EXPECT_EQ(loop_->core().primary().kind(), EngineKind::kSimulated);
  Write(*client_, "hello");
  const auto got = ReadOnce(*server_);
  ASSERT_TRUE(got.has_value() && got->ok());
  EXPECT_EQ(**got, "hello");
}

class SimCompletion : public SimDirected {};

INSTANTIATE_TEST_SUITE_P(Styles, SimCompletion, ::testing::Values(SimStyle::kCompletion),
                         SimStyleName);

// The wait for room has ended when the kernel refuses to end the receive: it must begin again.
TEST_P(SimCompletion, AStreamThatCannotBeReleasedGoesOnSending) {
  Open();
  world_.wire().set_buffers(1'000, 1'000);
  server_->ReadReady([](absl::StatusOr<Buffer>) {});
  std::optional<absl::Status> sent, moved;
  Write(*server_, std::string(5'000, 'x'), [&](absl::Status status) { sent = status; });
  RunFor(absl::Seconds(1));
  EXPECT_FALSE(sent.has_value());
  world_.faults().cancel_refused = 1000;
  SwitchEngine(*server_, EngineKind::kEpoll, [&](absl::Status status) { moved = status; });
  world_.Touch(*loop_);
  ASSERT_TRUE(RunUntil([&] { return moved.has_value(); }));
  EXPECT_TRUE(absl::IsUnavailable(*moved)) << *moved;
  EXPECT_EQ(loop_->Snapshot().moves_refused, 1u);
  size_t received = 0;
  while (received < 5'000) {
    const auto piece = ReadOnce(*client_);
    ASSERT_TRUE(piece.has_value() && piece->ok());
    received += (*piece)->size();
  }
  ASSERT_TRUE(RunUntil([&] { return sent.has_value(); }));
  EXPECT_TRUE(sent->ok()) << *sent;
}

}  // namespace
}  // namespace penstock::testing
