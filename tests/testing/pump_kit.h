// PumpTest: what tests of a completion pump begin with: a real loop, of either engine, with a clock
// that the test moves, and a pump fed by a fake device. One thread.
#ifndef PENSTOCK_TESTS_TESTING_PUMP_KIT_H_
#define PENSTOCK_TESTS_TESTING_PUMP_KIT_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "rdma/completion_pump.h"
#include "testing/fake_fabric.h"
#include "testing/fake_fabric_kit.h"

namespace penstock::testing {

using internal::CompletionPump;
using internal::CompletionSink;
using internal::Deferred;
using internal::FabricCompletion;
using internal::FabricOp;
using internal::FabricOutcome;
using internal::FabricQp;
using internal::LoopCore;
using internal::RealSys;
using internal::Sys;

// A clock that the test moves, and descriptors that a real loop can watch.
class WatchableHost final : public FakeHost {
 public:
  int64_t now_ns() const override { return clock.now_ns(); }
  void After(int64_t delay_ns, Action action) override { clock.After(delay_ns, std::move(action)); }
  int OpenFd() override { return RealSys().EventFd(); }
  void CloseFd(int fd) override { RealSys().Close(fd); }
  void RaiseFd(int fd) override {
    const uint64_t one = 1;
    RealSys().Write(fd, &one, sizeof(one));
  }
  void ClearFd(int fd) override {
    uint64_t count;
    RealSys().Read(fd, &count, sizeof(count));
  }

  VirtualHost clock;
};

// The loop's clock, moved by the test; waits are noted.
class ClockSys final : public Sys {
 public:
  int64_t Now() override { return now_ns; }
  int EpollWait(int epoll, epoll_event* events, int count, int64_t timeout_ns) override {
    if (on_wait) on_wait();
    return Sys::EpollWait(epoll, events, count, timeout_ns);
  }
  int RingEnter() override { return -ring_error; }
  int64_t now_ns = 1'000'000'000;
  int ring_error = 0;
  std::function<void()> on_wait;
};

// What somebody does in a turn of its own.
class Errand : public Deferred {
 public:
  explicit Errand(std::function<void()> act)
      : Deferred([](Deferred* node) { static_cast<Errand*>(node)->act_(); }),
        act_(std::move(act)) {}

 private:
  std::function<void()> act_;
};

class Recorder final : public CompletionSink {
 public:
  void OnCompletion(uint32_t word, const FabricCompletion& completion) override {
    words.push_back(word);
    if (completion.outcome != FabricOutcome::kOk) ++failed;
    if (then) then();
  }
  std::vector<uint32_t> words;
  int failed = 0;
  std::function<void()> then;
};

class PumpTest : public ::testing::TestWithParam<EngineKind> {
 protected:
  void Begin(CompletionPump::Options options = {}) {
    LoopOptions loop_options;
    loop_options.engine = GetParam();
    LoopCore::Seams seams;
    seams.sys = &sys_;
    auto made = LoopCore::CreateLoop(std::move(loop_options), seams);
    if (!made.ok()) GTEST_SKIP() << made.status();
    loop_ = *std::move(made);
    peer_.emplace(fabric_, "fake1");
    end_.emplace(fabric_, "fake0");
    auto pump = CompletionPump::Create(loop_->core(), *end_->device, std::move(options));
    ASSERT_TRUE(pump.ok()) << pump.status();
    pump_ = *std::move(pump);
    sink_ = pump_->AddSink(recorder_);
    auto& qp = end_->options.qp;
    qp.send_cq = &pump_->send_cq();
    qp.receive_cq = &pump_->cq();
    qp.send_depth = qp.receive_depth = 1024;
    qp_ = *end_->device->CreateQp(qp);
    ASSERT_TRUE(qp_->ToInit({}).ok());
    std::swap(end_->qp, qp_);
    ASSERT_TRUE(end_->Receive(*peer_).ok());
    ASSERT_TRUE(peer_->Receive(*end_).ok());
    ASSERT_TRUE(end_->Send().ok());
    Settle();
  }
  void TearDown() override {
    fabric_.set_on_call(nullptr);
    sys_.on_wait = nullptr;
    if (end_) end_->qp.reset();
    pump_.reset();
    qp_.reset();
    end_.reset();
    peer_.reset();
    for (const std::string& what : fabric_.violations()) ADD_FAILURE() << what;
    EXPECT_EQ(fabric_.objects(), 0u);
  }
  void Write(uint32_t word) {
    ASSERT_EQ(end_->Post(CompletionPump::Tag(sink_, word), FabricOp::kWrite, 0, 8, &*peer_), 0);
  }
  // So many messages of the peer, each into a receive that is named by its number.
  void Receive(uint32_t count) {
    ASSERT_TRUE(peer_->Send().ok());
    for (uint32_t word = 0; word < count; ++word) ReceiveOne(word);
  }
  void ReceiveOne(uint32_t word) {
    ASSERT_EQ(end_->PostReceive(CompletionPump::Tag(sink_, word), 0, 8), 0);
    ASSERT_EQ(peer_->Post(0, FabricOp::kSend, 0, 8), 0);
    Deliver();
    peer_->Poll();
  }
  // Ten microseconds apart, so that the pump spins.
  void Brisk() {
    for (int i = 0; i < 50; ++i) {
      sys_.now_ns += 10'000;
      Write(1);
      Deliver();
      loop_->Poll();
    }
    ASSERT_GT(pump_->stats().spins, 0u);
  }
  void Deliver() { host_.clock.Advance(absl::Milliseconds(1)); }
  // Turns until nothing is left to do; how many.
  int Settle() {
    int turns = 1;
    while (loop_->Poll() && turns < 10'000) ++turns;
    return turns;
  }

  WatchableHost host_;
  FakeFabric fabric_{host_, 1};
  ClockSys sys_;
  std::unique_ptr<Loop> loop_;
  std::optional<FakeEnd> peer_;
  std::optional<FakeEnd> end_;
  std::unique_ptr<CompletionPump> pump_;
  std::unique_ptr<FabricQp> qp_;
  Recorder recorder_;
  uint32_t sink_ = 0;
};

inline const auto kPumpEngines = ::testing::Values(EngineKind::kEpoll, EngineKind::kUring);
inline std::string PumpEngineName(const ::testing::TestParamInfo<EngineKind>& info) {
  return std::string(EngineKindName(info.param));
}

}  // namespace penstock::testing

#endif  // PENSTOCK_TESTS_TESTING_PUMP_KIT_H_
