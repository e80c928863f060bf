// What lanes do on the fake fabric and on the machine's own devices: the same scenarios with the
// same trace. Two devices are needed, as in the machine of tests/vm/run.py --rdma; elsewhere the
// second half is skipped. With PENSTOCK_TESTS_LONG=1 they move 1 GiB and connect 1,000 times.
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/absl_view.h"
#include "gtest/gtest.h"
#include "rdma/lane.h"
#include "testing/device_scenario.h"
#include "testing/fake_fabric.h"
#include "testing/fake_fabric_host.h"
#include "testing/lane_kit.h"
#include "testing/long_run.h"

namespace penstock::internal {
namespace {

using testing::FakeFabric;
using testing::LaneText;
using testing::LaneUser;
using testing::LoopHost;

enum class LanesOn { kFake, kMachine };

constexpr uint8_t kAddressGid = 1;  // of rdma_rxe, its IPv4 address

LaneHub::Options HubOptions() {
  LaneHub::Options options;
  options.gid_index = kAddressGid;
  options.receives = 128;
  options.completion_depth = 1024;
  return options;
}

class LaneScenarioTest : public ::testing::TestWithParam<LanesOn> {
 protected:
  void SetUp() override {
    loop_ = *Loop::Create();
    if (GetParam() == LanesOn::kFake) {
      host_.emplace(*loop_);
      fake_.emplace(*host_, 1);
      fabric_ = &*fake_;
    } else {
      fabric_ = &SystemFabric();
    }
    const auto names = fabric_->ListDevices();
    if (!names.ok()) GTEST_SKIP() << names.status();
    if (names->size() < 2) {
      GTEST_SKIP() << "two RDMA devices are needed, here are " << names->size();
    }
    for (size_t i = 0; i < 2; ++i) {
      devices_[i] = *fabric_->Open((*names)[i]);
      auto hub = LaneHub::Create(loop_->core(), *devices_[i], HubOptions());
      ASSERT_TRUE(hub.ok()) << hub.status();
      hubs_[i] = *std::move(hub);
    }
  }
  void TearDown() override {
    exposed_ = ExposedMemory();
    for (LaneUser& user : users_) user.lane.reset();
    for (auto& hub : hubs_) hub.reset();
    for (auto& device : devices_) device.reset();
    if (!fake_) return;
    for (const std::string& what : fake_->violations()) ADD_FAILURE() << what;
    fake_.reset();
    host_.reset();
  }

  void Connect() {
    // Far from the last ones, as random ones would be: what a queue pair that has gone still sends
    // may meet one of the same number.
    psn_ += 0x10000;
    for (size_t i = 0; i < 2; ++i) {
      users_[i] = {};
      auto lane = Lane::Create(*hubs_[i], users_[i], psn_ + static_cast<uint32_t>(i), 16);
      ASSERT_TRUE(lane.ok()) << lane.status();
      users_[i].lane = *std::move(lane);
    }
    for (size_t i = 0; i < 2; ++i) {
      const absl::Status up = users_[i].lane->BringUp(users_[1 - i].lane->address(), 4);
      ASSERT_TRUE(up.ok()) << up;
    }
  }
  void Expose(size_t size, RdmaAccess access = RdmaAccess::kReadWrite) {
    exposed_ = ExposedMemory();
    memory_.assign(size, '-');
    auto exposed = hubs_[1]->Expose(memory_, access);
    ASSERT_TRUE(exposed.ok()) << exposed.status();
    exposed_ = *std::move(exposed);
  }
  LaneTarget At(uint64_t offset) const { return {exposed_.address() + offset, exposed_.key()}; }
  BufferChain Payload(const std::string& text) { return CopyInBlocks(loop_->pool(), text, 65536); }
  bool Run(const std::function<bool()>& until) {
    return RunLoopUntil(*loop_, absl::Seconds(LongRun() ? 600 : 60), until);
  }
  static std::string Trace(const LaneUser& user) {
    std::string trace;
    for (const LaneUser::Done& done : user.done) {
      absl::StrAppend(&trace, done.token, " ", AbslView(RdmaOutcomeName(done.outcome)), "; ");
    }
    for (const std::string& end : user.ends) {
      absl::StrAppend(&trace, "end", AbslView(std::string_view(end).substr(end.rfind(": "))));
    }
    return trace;
  }

  std::unique_ptr<Loop> loop_;
  std::optional<LoopHost> host_;
  std::optional<FakeFabric> fake_;
  Fabric* fabric_ = nullptr;
  std::unique_ptr<FabricDevice> devices_[2];
  std::unique_ptr<LaneHub> hubs_[2];
  LaneUser users_[2];
  uint32_t psn_ = 0x3456;
  std::vector<char> memory_;
  ExposedMemory exposed_;
};

TEST_P(LaneScenarioTest, EachMessageIsAnsweredByTheNext) {
  Connect();
  constexpr uint32_t kMessages = 500;
  uint32_t sent = 0;
  const auto send = [&](size_t from) {
    const uint32_t number = sent++;
    users_[from].lane->Send("0123456789abcdef", Payload(LaneText(number, number * 37 % 8000)));
  };
  for (size_t i = 0; i < 2; ++i) {
    users_[i].on_message = [&, i] {
      EXPECT_EQ(users_[i].messages.back().substr(16), LaneText(sent - 1, (sent - 1) * 37 % 8000));
      if (sent < kMessages) send(i);
    };
  }
  send(0);
  EXPECT_TRUE(Run([&] {
    return users_[0].messages.size() + users_[1].messages.size() == kMessages ||
           !users_[0].ends.empty() || !users_[1].ends.empty();
  }));
  EXPECT_EQ(Trace(users_[0]) + Trace(users_[1]), "");
}

TEST_P(LaneScenarioTest, WritesMessagesAndReads) {
  Connect();
  Expose(1 << 20);
  const std::string text = LaneText(1, 300'000);
  users_[1].on_message = [&] {
    EXPECT_TRUE(std::string(memory_.data() + 10, text.size()) == text);
  };
  LaneUser& user = users_[0];
  user.lane->Write(1, At(10), Payload(text));
  user.lane->Send("written", {}, 2);
  // The message is in the peer's queue by then, and nobody may have looked.
  EXPECT_TRUE(Run([&] {
    return (user.done.size() == 2 && !users_[1].messages.empty()) || !user.ends.empty();
  }));
  user.lane->Write(3, At(1000), Payload("small"));
  user.lane->Write(4, At(1 << 20), {});
  user.lane->Read(5, At(0), 500'000);
  EXPECT_TRUE(Run([&] { return user.done.size() == 5 || !user.ends.empty(); }));
  EXPECT_EQ(Trace(user), "1 done; 2 done; 3 done; 4 done; 5 done; ");
  ASSERT_EQ(user.done.size(), 5u);
  EXPECT_TRUE(user.done[4].data == std::string(memory_.data(), 500'000));
  EXPECT_EQ(user.done[4].data.substr(1000, 5), "small");
  EXPECT_EQ(users_[1].messages, std::vector<std::string>{"written"});
}

TEST_P(LaneScenarioTest, WhatIsNotAllowedIsInDoubtAndEndsTheLane) {
  LaneUser& user = users_[0];
  const auto refused = [&](std::function<void()> start) {
    Connect();
    start();
    user.lane->Send("x", {}, 2);
    EXPECT_TRUE(Run([&] { return !user.ends.empty(); }));
    EXPECT_EQ(Trace(user), "1 in doubt; 2 in doubt; end: remote access error");
    EXPECT_TRUE(users_[1].messages.empty());
  };
  Expose(4096, RdmaAccess::kRead);
  refused([&] { user.lane->Write(1, At(0), Payload(LaneText(1, 2000))); });
  refused([&] { user.lane->Read(1, At(4000), 97); });
  const LaneTarget gone = At(0);
  EXPECT_TRUE(exposed_.Withdraw().ok());
  refused([&] { user.lane->Read(1, gone, 10); });
  Expose(4096, RdmaAccess::kWrite);
  refused([&] { user.lane->Read(1, At(0), 10); });
  EXPECT_EQ(std::string(memory_.data(), memory_.size()), std::string(4096, '-'));
}

TEST_P(LaneScenarioTest, ALaneThatIsToldToEndHasOneEndForEverything) {
  Connect();
  Expose(1 << 20);
  LaneUser& user = users_[0];
  for (uint64_t i = 0; i < 200; ++i) user.lane->Write(i, At(0), Payload(LaneText(1, 20'000)));
  user.lane->OnFailed("test", "made to fail");
  EXPECT_TRUE(Run([&] { return !user.ends.empty(); }));
  EXPECT_EQ(user.done.size(), 200u);
  for (uint64_t i = 0; i < 200; ++i) EXPECT_EQ(user.done[i].token, i);
  EXPECT_EQ(user.Count(RdmaOutcome::kNeverPosted), 73u);
  EXPECT_EQ(user.lane->out(), 0u);
}

TEST_P(LaneScenarioTest, EveryByteOfMuchArrives) {
  Connect();
  Expose(1 << 20);
  constexpr uint64_t kPiece = 1 << 18;
  const uint64_t rounds = LongRun() ? (uint64_t{1} << 30) / kPiece : 32;
  LaneUser& user = users_[0];
  uint64_t begun = 0, read = 0;
  std::vector<std::string> texts;
  for (uint32_t i = 0; i < 26; ++i) texts.push_back(LaneText(i, kPiece));
  // Each quarter is written, then read back, while the others are under way.
  const auto begin = [&] {
    const LaneTarget quarter = At(begun % 4 * kPiece);
    user.lane->Write(2 * begun, quarter, Payload(texts[begun % texts.size()]));
    user.lane->Read(2 * begun + 1, quarter, kPiece);
    ++begun;
  };
  user.on_done = [&] {
    const LaneUser::Done done = std::move(user.done.back());
    user.done.clear();
    ASSERT_EQ(done.outcome, RdmaOutcome::kDone);
    if (done.token % 2 == 0) return;
    ASSERT_TRUE(done.data == texts[done.token / 2 % texts.size()]) << done.token;
    ++read;
    if (begun < rounds) begin();
  };
  for (int i = 0; i < 4; ++i) begin();
  EXPECT_TRUE(Run([&] { return read == rounds || !user.ends.empty(); }));
  EXPECT_EQ(read, rounds);
  EXPECT_EQ(Trace(user), "");
}

TEST_P(LaneScenarioTest, LanesComeAndGoAndMemoryStays) {
  const int cycles = LongRun() ? 1000 : 40;
  size_t pinned = 0, resident = 0;
  for (int i = 0; i < cycles; ++i) {
    Connect();
    users_[0].lane->Send("there", {}, 1);
    users_[1].on_message = [&] { users_[1].lane->Send("back", {}, 1); };
    ASSERT_TRUE(Run([&] { return users_[0].done.size() + users_[1].done.size() == 2; }));
    ASSERT_EQ(Trace(users_[0]) + Trace(users_[1]), "1 done; 1 done; ");
    // By turns with work under way.
    if (i % 2 == 0) users_[0].lane->Send("lost, perhaps", Payload(LaneText(1, 5000)));
    users_[i % 2].lane.reset();
    users_[1 - i % 2].lane.reset();
    if (i == cycles / 10) {
      pinned = loop_->pool().Stats().live;
      resident = ResidentBytes();
    }
  }
  ASSERT_TRUE(Run([&] {
    return hubs_[0]->queue_pairs() + hubs_[1]->queue_pairs() == 0 &&
           loop_->pool().Stats().live <= pinned;
  }));
  EXPECT_EQ(hubs_[0]->available(), HubOptions().receives);
  if (GetParam() == LanesOn::kMachine) {
    EXPECT_LT(ResidentBytes(), resident + (1 << 20));
  }
}

INSTANTIATE_TEST_SUITE_P(, LaneScenarioTest, ::testing::Values(LanesOn::kFake, LanesOn::kMachine),
                         [](const auto& info) {
                           return std::string(info.param == LanesOn::kFake ? "Fake" : "Machine");
                         });

// --- A peer that is killed ---

// How far the peer has come when it is.
enum class Killed { kPrepared, kUp, kTalking };

// One end of a pair of devices, with a loop of its own.
struct Station {
  Station(Fabric& fabric, const std::string& name) : device(*fabric.Open(name)) {
    hub = *LaneHub::Create(loop->core(), *device, HubOptions());
    user.lane = *Lane::Create(*hub, user, 0x654321, 16);
  }
  ~Station() {
    user.lane.reset();
    hub.reset();
  }

  std::unique_ptr<Loop> loop = *Loop::Create();
  std::unique_ptr<FabricDevice> device;
  std::unique_ptr<LaneHub> hub;
  LaneUser user;
};

void Tell(int socket, const LaneAddress& address) {
  ASSERT_EQ(::write(socket, &address, sizeof(address)), static_cast<ssize_t>(sizeof(address)));
}

LaneAddress Hear(int socket) {
  LaneAddress address;
  EXPECT_EQ(::read(socket, &address, sizeof(address)), static_cast<ssize_t>(sizeof(address)));
  return address;
}

// Answers every message until it is killed.
[[noreturn]] void BeThePeer(const std::string& device, Killed killed, int socket) {
  Station station(SystemFabric(), device);
  LaneUser& user = station.user;
  user.on_message = [&] { user.lane->Send(user.messages.back(), {}); };
  const LaneAddress& address = user.lane->address();
  const LaneAddress peer = Hear(socket);
  if (killed != Killed::kPrepared && !user.lane->BringUp(peer).ok()) std::abort();
  Tell(socket, address);
  while (killed != Killed::kTalking) ::pause();
  station.loop->Run();
  std::abort();
}

class LanePeerTest : public ::testing::TestWithParam<Killed> {};

// Whoever speaks to a peer that has gone learns it, and what was under way is in doubt.
TEST_P(LanePeerTest, ThatIsKilledEndsTheLane) {
  const auto names = SystemFabric().ListDevices();
  if (!names.ok()) GTEST_SKIP() << names.status();
  if (names->size() < 2) GTEST_SKIP() << "two RDMA devices are needed, here are " << names->size();
  int sockets[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sockets), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) BeThePeer((*names)[1], GetParam(), sockets[1]);
  Station station(SystemFabric(), (*names)[0]);
  LaneUser& user = station.user;
  Tell(sockets[0], user.lane->address());
  ASSERT_TRUE(user.lane->BringUp(Hear(sockets[0])).ok());
  const auto kill = [child] {
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    int status;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
  };
  uint64_t token = 0;
  if (GetParam() == Killed::kTalking) {
    user.on_message = [&] {
      if (user.messages.size() == 10) kill();
      user.lane->Send("again", {}, ++token);
    };
  } else {
    kill();
  }
  user.lane->Send("hello", {}, ++token);
  user.on_end = [&] { station.loop->Stop(); };
  Timer limit(*station.loop);
  limit.Arm(absl::Seconds(60), [&] { station.loop->Stop(); });
  station.loop->Run();
  ASSERT_EQ(user.ends.size(), 1u);
  EXPECT_NE(user.ends[0].find("retries exceeded"), std::string::npos) << user.ends[0];
  EXPECT_EQ(user.done.size(), token);
  EXPECT_EQ(user.done.back().outcome, RdmaOutcome::kInDoubt);
  ::close(sockets[0]);
  ::close(sockets[1]);
}

std::string KilledName(const ::testing::TestParamInfo<Killed>& info) {
  constexpr const char* kNames[] = {"Prepared", "Up", "Talking"};
  return kNames[static_cast<size_t>(info.param)];
}

INSTANTIATE_TEST_SUITE_P(Machine, LanePeerTest,
                         ::testing::Values(Killed::kPrepared, Killed::kUp, Killed::kTalking),
                         KilledName);

}  // namespace
}  // namespace penstock::internal
