// Every call to the kernel fails once, and from some point on for good: the nth of its kind for
// each n (under sanitizers, and of rings that moves use, far-off ones in growing steps), with each
// plausible errno, in a scenario that uses all of the library: listen, connect, echo, bulk with
// back-pressure, half close, close; over TCP, and what opens sockets over a Unix socket with a
// stale file, too; and with both ends changing engine and loop all the while. Whatever fails,
// nothing crashes, hangs or leaks, each callback ends once, and no byte is lost without a word (I2,
// I5).
#include <penstock/connect.h>
#include <penstock/listener.h>
#include <penstock/move.h>

#include <dirent.h>
#include <poll.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <map>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "engine/loop_core.h"
#include "testing/environment.h"
#include "testing/fate.h"
#include "testing/fault_sys.h"
#include "testing/patient_poll.h"
#include "testing/pattern.h"
#include "testing/plain_socket.h"

namespace penstock::internal {
namespace {

constexpr uint64_t kBulk = 256 * 1024;
// Both ends move each time that so much more has come back.
constexpr uint64_t kBetweenMoves = 48 * 1024;
constexpr size_t kEcho = 1000;
constexpr uint64_t kSeed = 7;
// In each of them a second passes for the library once a call has failed, and none of its waits is
// longer than a few.
constexpr int kIdleTurnsMax = 200;

// A process descriptor count, to find leaks.
int OpenDescriptors() {
  int count = 0;
  DIR* const folder = ::opendir("/proc/self/fd");
  while (::readdir(folder) != nullptr) ++count;
  ::closedir(folder);
  return count;
}

// Sends everything back and, when the peer has finished, finishes as well.
class EchoPeer {
 public:
  explicit EchoPeer(StreamPtr stream) : stream_(std::move(stream)) { Read(); }
  bool ended() const { return ended_; }
  bool met_eof() const { return met_eof_; }
  // Bytes taken from the client, and given to be sent back.
  uint64_t bytes() const { return bytes_; }
  Stream* stream() { return stream_.get(); }

 private:
  void Read() {
    stream_->ReadReady([this](absl::StatusOr<Buffer> data) {
      if (data.ok()) return Write(*std::move(data));
      met_eof_ = IsEof(data.status());
      if (!met_eof_) return End();
      stream_->ShutdownWrite([this](absl::Status) { End(); });
    });
  }
  void Write(Buffer data) {
    bytes_ += data.size();
    stream_->Write(std::move(data), [this](absl::Status sent) {
      if (!sent.ok()) return End();
      Read();
    });
  }
  void End() {
    ended_ = true;
    stream_.reset();
  }

  StreamPtr stream_;
  bool ended_ = false;
  bool met_eof_ = false;
  uint64_t bytes_ = 0;
};

enum class Place : uint8_t {
  kTcp,
  kStaleFile,  // a Unix socket whose file is there already, and nobody listens on it
  kMoving,     // as kTcp, and both ends move
  kRingless,   // as kTcp; in its middle the ring is given up, and there is no epoll either
};

// One run of the scenario under one fault.
class Scenario {
 public:
  Scenario(EngineKind engine, Place place, FaultSys& sys)
      : engine_(engine), place_(place), sys_(sys) {
    if (place_ != Place::kStaleFile) return;
    path_ = absl::StrCat(::testing::TempDir(), "penstock_nth_failure_", ::getpid());
    address_ = *SocketAddress::Parse(absl::StrCat("unix:", path_));
    const PlainSocket stale = PlainSocket::Listen(address_, 1);
  }
  ~Scenario() {
    if (place_ == Place::kStaleFile) ::unlink(path_.c_str());
  }

  // Runs until everything has ended; false when it hangs, which no slow machine looks like.
  bool Run() {
    if (!Begin()) return true;
    // Either nothing moves any more, or something does in circles.
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(300);
    while (!ended()) {
      if (idle_turns_ > kIdleTurnsMax || std::chrono::steady_clock::now() > give_up) return false;
      Turn();
    }
    Finish();
    return true;
  }

  // Everything went as if nothing had failed.
  bool complete() const { return received_ == kEcho + kBulk && IsEof(end_); }
  // Bytes that are not those sent, or an orderly end before the last of them.
  bool lost_silently() const {
    if (!intact_) return true;
    for (const auto& peer : peers_) {
      if (peer->met_eof() && peer->bytes() != sent_) return true;
      if (IsEof(end_) && peer->bytes() != received_) return true;
    }
    return false;
  }
  uint64_t moved() const { return moved_; }
  uint64_t left_in_pool() const { return left_in_pool_; }
  uint64_t left_open() const { return left_open_; }
  const std::vector<Fate>& fates() const { return fates_; }
  std::string Describe() const {
    return absl::StrCat(received_, " of ", sent_, " bytes received, ended with ", end_.ToString(),
                        ", made with ", made_.ToString(), ", ", peers_.size(), " accepted");
  }

 private:
  bool ended() const {
    for (const auto& peer : peers_) {
      if (!peer->ended()) return false;
    }
    return client_ended_;
  }

  bool Begin() {
    if (!Make(loop_, nullptr)) return false;
    if (place_ == Place::kMoving && !Make(other_, &loop_->pool())) return false;

    ListenOptions listening;
    listening.stream = Bounded();
    listening.unlink_path = true;
    absl::StatusOr<std::unique_ptr<Listener>> listener =
        Listener::Listen(*loop_, address_, listening, [this](StreamPtr stream) {
          peers_.push_back(std::make_unique<EchoPeer>(std::move(stream)));
        });
    made_ = listener.status();
    if (!listener.ok()) return false;
    listener_ = *std::move(listener);
    if (!to_file() && listener_->address().port() == 0) return false;  // getsockname

    ConnectOptions connecting;
    connecting.stream = Bounded();
    connecting.deadline = absl::Seconds(2);
    fates_.reserve(64);
    Fate& connected = fates_.emplace_back();
    Connect(*loop_, to_file() ? address_ : listener_->address(), connecting,
            [this, mark = connected.OnDone()](absl::StatusOr<StreamPtr> stream) mutable {
              std::move(mark)(stream.status());
              if (!stream.ok()) return EndClient(stream.status());
              client_ = *std::move(stream);
              Converse();
            });
    return true;
  }

  bool to_file() const { return place_ == Place::kStaleFile; }

  bool Make(std::unique_ptr<Loop>& made, BufferPool* pool) {
    LoopOptions options;
    options.engine = engine_;
    options.pool = pool;
    options.log = [](LogSeverity, const char*, int, std::string_view) {};
    LoopCore::Seams seams;
    seams.sys = &sys_;
    absl::StatusOr<std::unique_ptr<Loop>> loop =
        LoopCore::CreateLoop(std::move(options), std::move(seams));
    made_ = loop.status();
    if (!loop.ok()) return false;
    made = *std::move(loop);
    return true;
  }

  // From now on.
  void LoseRing() {
    sys_.Also({.call = Call::kRingEnter, .error = EBADR, .nth = 1, .persistent = true});
    sys_.Also({.call = Call::kEpollCreate, .error = EMFILE, .nth = 1, .persistent = true});
  }

  // The client to the other engine and the peer to the other loop, then the other way round, and
  // back again.
  void MoveBoth() {
    if (place_ != Place::kMoving || received_ < move_at_) return;
    move_at_ = received_ + kBetweenMoves;
    Stream* const peer = peers_.empty() ? nullptr : peers_.front()->stream();
    for (Stream* const stream : {client_.get(), peer}) {
      bool& under_way = stream == client_.get() ? client_moves_ : peer_moves_;
      if (stream == nullptr || under_way) continue;
      under_way = true;
      const bool switches = (stream == client_.get()) == (++moves_asked_ % 4 < 2);
      auto counted = [this, &under_way,
                      mark = fates_.emplace_back().OnDone()](absl::Status status) mutable {
        under_way = false;
        moved_ += status.ok();
        std::move(mark)(std::move(status));
      };
      if (switches) {
        const bool uring = stream->stats().engine == EngineKind::kUring;
        SwitchEngine(*stream, uring ? EngineKind::kEpoll : EngineKind::kUring, std::move(counted));
      } else {
        Loop& to = &stream->loop() == loop_.get() ? *other_ : *loop_;
        Migrate(*stream, to.handle(), std::move(counted));
      }
    }
  }

  // Every wait has an end, in the virtual time that passes when nothing moves.
  static StreamOptions Bounded() {
    StreamOptions options;
    options.send_buffer = options.receive_buffer = 16 * 1024;
    options.read_deadline = absl::Seconds(3);
    options.write_deadline = absl::Seconds(3);
    options.idle_deadline = absl::Seconds(4);
    return options;
  }

  void Converse() {
    Send(0, kEcho);
    Read();
  }

  void Send(uint64_t offset, size_t size) {
    absl::StatusOr<Buffer> bytes = loop_->pool().Copy(PatternBytes(kSeed, offset, size));
    if (!bytes.ok()) return;
    sent_ += size;
    client_->Write(*std::move(bytes), fates_.emplace_back().OnDone());
  }

  void Read() {
    client_->ReadReady([this](absl::StatusOr<Buffer> data) {
      if (!data.ok()) return EndClient(data.status());
      intact_ = intact_ && !FirstMismatch(data->view(), kSeed, received_).has_value();
      received_ += data->size();
      if (received_ == kEcho) {
        Send(kEcho, kBulk);
        client_->NotifyWritable(fates_.emplace_back().OnDone());
        client_->ShutdownWrite(fates_.emplace_back().OnDone());
        if (place_ == Place::kRingless) LoseRing();
      }
      MoveBoth();
      Read();
    });
  }

  void EndClient(absl::Status how) {
    end_ = std::move(how);
    client_ended_ = true;
    client_.reset();
  }

  uint64_t Closing() const {
    return loop_->Snapshot().closing + (other_ != nullptr ? other_->Snapshot().closing : 0);
  }

  void Turn() {
    const bool more = loop_->Poll();
    if ((other_ != nullptr && other_->Poll()) || more || (ended() && Closing() == 0)) return;
    // Time is let pass only once something has failed: a run without a fault never needs it.
    const bool fired = sys_.failed();
    if (other_ != nullptr ? EitherReadable(fired ? 2 : 1000)
                          : PatientPoll(loop_->fd(), POLLIN, fired ? 2 : 1000)) {
      return;
    }
    ++idle_turns_;
    if (fired) sys_.AdvanceClock(1'000'000'000);
  }
  bool EitherReadable(int timeout_ms) {
    pollfd both[] = {{.fd = loop_->fd(), .events = POLLIN, .revents = 0},
                     {.fd = other_->fd(), .events = POLLIN, .revents = 0}};
    return ::poll(both, 2, timeout_ms) != 0;
  }

  void Finish() {
    listener_.reset();
    client_.reset();
    // What the kernel still holds comes back within a few turns, if it can.
    for (int i = 0; i < 100 && Closing() > 0; ++i) Turn();
    left_open_ = loop_->Snapshot().open + loop_->Snapshot().connecting;
    if (other_ != nullptr) left_open_ += other_->Snapshot().open;
    left_in_pool_ = loop_->Snapshot().pool.live;
    other_.reset();
    loop_.reset();
  }

  const EngineKind engine_;
  const Place place_;
  FaultSys& sys_;
  std::string path_;
  SocketAddress address_ = *SocketAddress::Parse("127.0.0.1:0");
  std::vector<Fate> fates_;
  std::unique_ptr<Loop> loop_;
  std::unique_ptr<Loop> other_;  // of kMoving
  std::unique_ptr<Listener> listener_;
  std::vector<std::unique_ptr<EchoPeer>> peers_;
  StreamPtr client_;
  absl::Status made_;
  absl::Status end_ = absl::UnknownError("not ended");
  bool client_ended_ = false;
  bool intact_ = true;
  uint64_t sent_ = 0;
  uint64_t received_ = 0;
  uint64_t move_at_ = kEcho;
  uint64_t moves_asked_ = 0;
  bool client_moves_ = false;  // on its way just now
  bool peer_moves_ = false;
  uint64_t moved_ = 0;
  uint64_t left_in_pool_ = 0;
  uint64_t left_open_ = 0;
  int idle_turns_ = 0;
};

struct SweepCase {
  EngineKind engine;
  Place place;
  Call call;
};

std::string SweepName(const SweepCase& sweep) {
  const char* const place = sweep.place == Place::kTcp         ? ""
                            : sweep.place == Place::kStaleFile ? "Unix"
                            : sweep.place == Place::kMoving    ? "Moving"
                                                               : "Ringless";
  return absl::StrCat(sweep.engine == EngineKind::kEpoll ? "Epoll" : "Uring", place,
                      std::string(CallName(sweep.call)));
}

void PrintTo(const SweepCase& sweep, std::ostream* out) { *out << SweepName(sweep); }

class NthFailureTest : public ::testing::TestWithParam<SweepCase> {
 protected:
  void SetUp() override {
    const std::string why =
        GetParam().place == Place::kMoving ? MissingEngine() : MissingEngine(GetParam().engine);
    if (!why.empty()) GTEST_SKIP() << why;
    // What the process opens once and keeps is open from now on.
    FaultSys none;
    ASSERT_TRUE(Scenario(GetParam().engine, GetParam().place, none).Run());
  }

  // True when the fault fired.
  bool Check(Fault fault) {
    SCOPED_TRACE(absl::StrCat(std::string(CallName(fault.call)), " number ", fault.nth,
                              fault.persistent ? " and later" : "", " fails with ",
                              ::strerrorname_np(fault.error)));
    const int descriptors = OpenDescriptors();
    FaultSys sys(fault);
    std::vector<Fate> fates;
    {
      Scenario scenario(GetParam().engine, GetParam().place, sys);
      EXPECT_TRUE(scenario.Run()) << "hangs: " << scenario.Describe();
      EXPECT_FALSE(scenario.lost_silently()) << scenario.Describe();
      EXPECT_EQ(scenario.left_in_pool(), 0u) << scenario.Describe();
      EXPECT_EQ(scenario.left_open(), 0u) << scenario.Describe();
      if (!sys.failed()) {
        EXPECT_TRUE(scenario.complete()) << scenario.Describe();
      }
      fates = scenario.fates();
    }
    for (const Fate& fate : fates) EXPECT_EQ(fate.runs() + fate.dropped(), 1);
    EXPECT_EQ(OpenDescriptors(), descriptors) << "descriptors leak";
    return sys.fired();
  }
};

TEST_P(NthFailureTest, IsSurvivedOnceAndForGood) {
  const Call call = GetParam().call;
  uint64_t runs = 0;
  for (const int error : PlausibleErrors(call)) {
    for (const bool persistent : {false, true}) {
      uint64_t step = 1;
      for (uint64_t n = 1;; n += step) {
        ++runs;
        if (!Check({.call = call, .error = error, .nth = n, .persistent = persistent})) break;
        if (HasFailure()) return;
        // Of a ring that moves the failures are as many as its turns, and each takes its time.
        const bool many = call == Call::kRingEnter && GetParam().place == Place::kMoving;
        if (n > (kSanitized ? 4u : many ? 8u : UINT64_MAX)) step = step * 3 / 2 + 1;
      }
    }
  }
  RecordProperty("runs", std::to_string(runs));
}

// What a move does, or what serves the streams that moved.
constexpr Call kMovesCalls[] = {Call::kReceive,
                                Call::kSend,
                                Call::kEpollCreate,
                                Call::kEpollControl,
                                Call::kEpollRemove,
                                Call::kEpollWait,
                                Call::kEventFd,
                                Call::kRead,
                                Call::kWrite,
                                Call::kTimerFdSet,
                                Call::kRingSetup,
                                Call::kRingEnter,
                                Call::kRingRegister,
                                Call::kReceiveCompletion,
                                Call::kPollWriteCompletion,
                                Call::kCancelCompletion,
                                Call::kWatchCompletion};

// By which a loop waits that no engine serves.
constexpr Call kRinglessCalls[] = {Call::kPoll, Call::kRead, Call::kWrite, Call::kTimerFdSet};

std::vector<SweepCase> AllCases() {
  std::vector<SweepCase> cases;
  for (EngineKind engine : {EngineKind::kEpoll, EngineKind::kUring}) {
    for (size_t call = 0; call < kCalls; ++call) {
      cases.push_back({engine, Place::kTcp, static_cast<Call>(call)});
    }
    for (Call call : {Call::kSocket, Call::kBind, Call::kListen, Call::kConnect, Call::kLocalName,
                      Call::kPeerName, Call::kClose, Call::kUnlink}) {
      cases.push_back({engine, Place::kStaleFile, call});
    }
    for (Call call : kMovesCalls) cases.push_back({engine, Place::kMoving, call});
  }
  for (Call call : kRinglessCalls) {
    cases.push_back({EngineKind::kUring, Place::kRingless, call});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(EveryCall, NthFailureTest, ::testing::ValuesIn(AllCases()),
                         [](const ::testing::TestParamInfo<SweepCase>& info) {
                           return SweepName(info.param);
                         });

TEST(NthFailure, BothEndsMoveManyTimes) {
  if (const std::string why = MissingEngine(); !why.empty()) GTEST_SKIP() << why;
  std::map<Call, uint64_t> counts;
  for (const EngineKind engine : {EngineKind::kEpoll, EngineKind::kUring}) {
    FaultSys sys;
    {
      Scenario scenario(engine, Place::kMoving, sys);
      ASSERT_TRUE(scenario.Run());
      EXPECT_TRUE(scenario.complete()) << scenario.Describe();
      EXPECT_GE(scenario.moved(), 8u);
    }
    for (const Call call : kMovesCalls) counts[call] += sys.count(call);
  }
  for (const auto& [call, count] : counts) EXPECT_GT(count, 0u) << CallName(call);
}

TEST(NthFailure, WithoutARingAndEpollItWaitsByPollAndEnds) {
  if (const std::string why = MissingEngine(EngineKind::kUring); !why.empty()) {
    GTEST_SKIP() << why;
  }
  FaultSys sys;
  {
    Scenario scenario(EngineKind::kUring, Place::kRingless, sys);
    ASSERT_TRUE(scenario.Run());
    EXPECT_FALSE(scenario.complete()) << scenario.Describe();
  }
  for (const Call call : kRinglessCalls) EXPECT_GT(sys.count(call), 0u) << CallName(call);
}

// The sweep ends where a call is no longer made; these are the calls it must have met at all.
TEST(NthFailure, TheScenarioMakesTheCallsItClaimsToTest) {
  const auto expect_calls = [](EngineKind engine, Place place, std::vector<Call> calls) {
    FaultSys sys;
    {
      Scenario scenario(engine, place, sys);
      ASSERT_TRUE(scenario.Run());
      EXPECT_TRUE(scenario.complete()) << scenario.Describe();
    }
    for (Call call : calls) EXPECT_GT(sys.count(call), 0u) << CallName(call);
  };
  const std::vector<Call> both = {
      Call::kSocket,   Call::kBind,       Call::kListen,      Call::kConnect,   Call::kReceive,
      Call::kSend,     Call::kShutdown,   Call::kSetOption,   Call::kGetOption, Call::kLocalName,
      Call::kPeerName, Call::kClose,      Call::kOpenReserve, Call::kEventFd,   Call::kWrite,
      Call::kTimerFd,  Call::kTimerFdSet, Call::kMap,         Call::kUnmap,     Call::kAdvise};
  std::vector<Call> epoll = both;
  for (Call call : {Call::kEpollCreate, Call::kEpollControl, Call::kEpollRemove, Call::kEpollWait,
                    Call::kAccept}) {
    epoll.push_back(call);
  }
  expect_calls(EngineKind::kEpoll, Place::kTcp, epoll);
  expect_calls(EngineKind::kEpoll, Place::kStaleFile, {Call::kUnlink});
  if (const std::string why = MissingEngine(EngineKind::kUring); !why.empty()) {
    GTEST_SKIP() << why;
  }
  std::vector<Call> uring = both;
  for (Call call : {Call::kRingSetup, Call::kRingEnter, Call::kRingRegister, Call::kRead,
                    Call::kAcceptCompletion, Call::kReceiveCompletion, Call::kPollWriteCompletion,
                    Call::kCancelCompletion, Call::kWatchCompletion}) {
    uring.push_back(call);
  }
  expect_calls(EngineKind::kUring, Place::kTcp, uring);
  expect_calls(EngineKind::kUring, Place::kStaleFile, {Call::kUnlink, Call::kPollReadCompletion});
}

}  // namespace
}  // namespace penstock::internal
