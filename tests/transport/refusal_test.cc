// Why Listen and Connect are refused: the code that listener.h and connect.h promise for what the
// system says, with the address and the system's own word.
#include <penstock/connect.h>
#include <penstock/listener.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "testing/environment.h"
#include "testing/fate.h"
#include "testing/fault_sys.h"
#include "testing/logged_loop.h"

namespace penstock::internal {
namespace {

struct Refusal {
  Call call;
  int error;
  absl::StatusCode code;
};

class RefusalTest : public LoggedLoop<FaultSys>, public ::testing::WithParamInterface<EngineKind> {
 protected:
  void SetUp() override {
    if (const std::string why = MissingEngine(GetParam()); !why.empty()) GTEST_SKIP() << why;
    ASSERT_TRUE(Make(GetParam()).ok());
  }
  void TearDown() override {
    // It is nobody's fault, and nothing is left of it.
    if (loop_ != nullptr) {
      EXPECT_EQ(loop_->Snapshot().faults, 0u);
      EXPECT_EQ(loop_->Snapshot().listeners + loop_->Snapshot().connecting, 0u);
    }
    LoggedLoop::TearDown();
  }
  void Refuse(const Refusal& refusal) {
    sys_.Set({.call = refusal.call, .error = refusal.error, .nth = 1, .persistent = true});
  }
  void Expect(const Refusal& refusal, const absl::Status& status) const {
    EXPECT_EQ(status.code(), refusal.code) << status;
    for (const std::string& word :
         {address_.ToString(), std::string(::strerrorname_np(refusal.error))}) {
      EXPECT_NE(status.message().find(word), std::string::npos) << status;
    }
  }

  const SocketAddress address_ = *SocketAddress::Parse("127.0.0.1:80");
};

TEST_P(RefusalTest, OfListen) {
  using enum absl::StatusCode;
  for (const Refusal& refusal : {Refusal{Call::kSocket, EACCES, kPermissionDenied},
                                 {Call::kBind, EACCES, kPermissionDenied},
                                 {Call::kBind, EPERM, kPermissionDenied},
                                 {Call::kListen, EACCES, kPermissionDenied},
                                 {Call::kSocket, EAFNOSUPPORT, kUnimplemented},
                                 {Call::kSocket, EMFILE, kResourceExhausted},
                                 {Call::kBind, EADDRNOTAVAIL, kUnavailable}}) {
    Refuse(refusal);
    Expect(refusal, Listener::Listen(*loop_, address_, {}, [](StreamPtr) {}).status());
  }
}

TEST_P(RefusalTest, OfConnectAndNeverInsideTheCall) {
  using enum absl::StatusCode;
  for (const Refusal& refusal : {Refusal{Call::kSocket, EACCES, kPermissionDenied},
                                 {Call::kConnect, EACCES, kPermissionDenied},
                                 {Call::kConnect, EPERM, kPermissionDenied},
                                 {Call::kSocket, EAFNOSUPPORT, kUnimplemented},
                                 {Call::kSocket, EMFILE, kResourceExhausted},
                                 {Call::kConnect, ENETUNREACH, kUnavailable}}) {
    Refuse(refusal);
    Fate connected;
    Connect(*loop_, address_, {},
            [done = connected.OnDone()](absl::StatusOr<StreamPtr> stream) mutable {
              std::move(done)(stream.status());
            });
    EXPECT_FALSE(connected.ended());
    ASSERT_TRUE(PollUntil([&] { return connected.ended(); }));
    Expect(refusal, connected.status());
  }
}

INSTANTIATE_TEST_SUITE_P(Engines, RefusalTest,
                         ::testing::Values(EngineKind::kEpoll, EngineKind::kUring),
                         [](const ::testing::TestParamInfo<EngineKind>& info) {
                           return std::string(info.param == EngineKind::kEpoll ? "Epoll" : "Uring");
                         });

}  // namespace
}  // namespace penstock::internal
