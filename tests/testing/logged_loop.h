// LoggedLoop: a fixture of one loop over system calls that the test makes fail, and what it logged.
#ifndef PENSTOCK_TESTS_TESTING_LOGGED_LOOP_H_
#define PENSTOCK_TESTS_TESTING_LOGGED_LOOP_H_

#include <penstock/buffer.h>
#include <penstock/export.h>
#include <penstock/loop.h>
#include <penstock/stream.h>

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/functional/function_ref.h"
#include "engine/loop_core.h"
#include "testing/plain_socket.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// `Sys` is a FaultSys.
template <typename Sys>
class LoggedLoop : public ::testing::Test {
 protected:
  void TearDown() override {
    stream_ = nullptr;
    loop_ = nullptr;
  }

  absl::Status Make(EngineKind kind) {
    LoopOptions options;
    options.engine = kind;
    options.log = [this](LogSeverity, const char*, int, std::string_view text) {
      log_.emplace_back(text);
    };
    absl::StatusOr<std::unique_ptr<Loop>> loop =
        LoopCore::CreateLoop(std::move(options), {.sys = &sys_, .engines = {}});
    if (loop.ok()) loop_ = *std::move(loop);
    return loop.status();
  }
  bool PollUntil(absl::FunctionRef<bool()> done) {
    const auto limit = std::chrono::steady_clock::now() + std::chrono::minutes(2);
    while (!done()) {
      loop_->Poll();
      if (std::chrono::steady_clock::now() > limit) return false;
    }
    return true;
  }
  // A stream of the loop hears the other end of its connection.
  void ExpectHears(Stream& stream, PlainSocket& peer) {
    ASSERT_EQ(peer.Send("heard"), 5);
    std::optional<std::string> got;
    stream.ReadReady([&](absl::StatusOr<Buffer> data) {
      got = data.ok() ? std::string(data->view()) : data.status().ToString();
    });
    ASSERT_TRUE(PollUntil([&] { return got.has_value(); }));
    EXPECT_EQ(*got, "heard");
  }

  int LinesWith(std::string_view words) const {
    int lines = 0;
    for (const std::string& line : log_) lines += line.find(words) != std::string::npos;
    return lines;
  }
  bool Logged(std::string_view words) const { return LinesWith(words) > 0; }

  Sys sys_;
  std::vector<std::string> log_;
  std::unique_ptr<Loop> loop_;
  StreamPtr stream_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_LOGGED_LOOP_H_
